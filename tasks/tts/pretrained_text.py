"""The tokenizer of a language model as a front end: its ids are the ids that the speech model reads."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from xcodec_lm.codec.runtime.files import write_files
from xcodec_lm.codec.semantic import quiet_transformers
from xcodec_lm.configs import to_dict
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.configs.text import TextConfig
from xcodec_lm.tasks.tts.normalise import RULES
from xcodec_lm.tasks.tts.symbols import FILE, VERSION, Encoded, TextEncoder


class Tokens:
    """Tokens of a tokenizer of transformers."""

    name = "transformers"
    alphabet: tuple[str, ...] = ()

    def __init__(self, language: str, folder: Path):
        self.language, self.folder = language, folder

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer.

        Raises:
            XcodecLMError: the folder holds none.
        """
        from transformers import AutoTokenizer

        try:
            with quiet_transformers():
                return AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
        except Exception as error:  # what a broken folder raises depends on the tokenizer's kind
            raise XcodecLMError(
                f"{self.folder} holds no tokenizer that transformers can load: {error}",
                "give the folder of a language model, with its tokenizer.json and tokenizer_config.json",
            ) from None

    @property
    def version(self) -> str:
        """Of the library; the tokenizer itself is kept beside."""
        return f"tokenizers {metadata.version('tokenizers')}, text rules {RULES}"

    def units(self, text: str) -> list[str]:
        """The tokens of a text."""
        return self.tokenizer.convert_ids_to_tokens(self.ids(text))

    def ids(self, text: str) -> list[int]:
        """Their ids, without special ones."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)

    def __getstate__(self) -> dict[str, Any]:
        return {"language": self.language, "folder": self.folder}


class PretrainedEncoder(TextEncoder):
    """Text to the ids of a language model's tokenizer, behind its bos if it has one.

    Args:
        config: with `front_end: transformers`.
    """

    _front_end: Tokens

    def __init__(self, config: TextConfig):
        super().__init__(config, ())

    @property
    def size(self) -> int:
        """Ids in all."""
        return len(self._front_end.tokenizer)

    @property
    def facts(self) -> dict[str, Any]:
        """See `TextEncoder.facts`."""
        return super().facts | {"symbols": self.size}

    def encode(self, text: str) -> Encoded:
        """See `TextEncoder.encode`. Special tokens that are written out in the text are not taken for such."""
        clean = self.normalise(text)
        if not any(letter.isalnum() for letter in clean.text):
            shown = text if len(text) <= 40 else text[:40] + "..."
            raise UsageError(
                f"the text {shown!r} has nothing that can be said" if text.strip() else "the text is empty",
                "give it words: letters or digits",
            )
        tokenizer = self._front_end.tokenizer
        ids = self._front_end.ids(clean.text)
        units = tokenizer.convert_ids_to_tokens(ids)
        unknown = [unit for unit, one in zip(units, ids, strict=True) if one == tokenizer.unk_token_id]
        begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        return Encoded([*begin, *ids], units, unknown=tuple(dict.fromkeys(unknown)), dropped=clean.dropped)

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer's files, and `text.json` beside them.

        Raises:
            XcodecLMError: the folder cannot be written.
        """
        folder = Path(folder)
        stored = {
            "version": VERSION,
            "text": to_dict(self.config) | {"model": "."},
            "front_end_version": self.version,
            "language": self.config.language,
            "symbols": [],
            "vocabulary_sha256": self._digest(),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._front_end.tokenizer.save_pretrained(str(folder))
        except OSError as error:
            raise XcodecLMError(f"cannot write {folder}: {error}", "choose a folder that can be written") from None
        content = json.dumps(stored, ensure_ascii=False, indent=1) + "\n"
        write_files(folder, {FILE: lambda path: path.write_text(content, encoding="utf-8")})

    @classmethod
    def restored(cls, config: TextConfig, stored: dict[str, Any]) -> PretrainedEncoder:
        """What `save` wrote.

        Args:
            config: with the folder of the tokenizer.
            stored: the content of text.json.

        Raises:
            XcodecLMError: the tokenizer is missing, or another one.
        """
        encoder = cls(config)
        if encoder._digest() != stored.get("vocabulary_sha256"):
            raise XcodecLMError(
                f"the tokenizer in {config.model} is not the one that this run was trained with",
                "put its files back, or train again",
            )
        encoder.compare_version(stored["front_end_version"])
        return encoder

    def _digest(self) -> str:
        vocabulary = sorted(self._front_end.tokenizer.get_vocab().items())
        return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()
