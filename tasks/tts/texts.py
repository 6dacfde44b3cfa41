"""The text front end of a run: the one in its folder, that of the run it starts from, or a new one."""

from __future__ import annotations

import os
from pathlib import Path

from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.configs.text import TextConfig
from xcodec_lm.lm.trainer import open_tokens
from xcodec_lm.tasks.tts.symbols import TextEncoder


def text_encoder(config: TextConfig, tokens: tuple[str, ...], init: str, folder: Path) -> TextEncoder:
    """The symbols of a run: those in its folder, else those of its training texts, which are written there.

    Args:
        config: front end, language, normalisation.
        tokens: the stores whose texts are read.
        init: a run that training starts from, whose symbols are taken; empty for none.
        folder: of the run.

    Raises:
        XcodecLMError: the folder has symbols of another front end, or no recording has text.
    """
    place = folder / "text"
    if (place / "text.json").is_file():
        encoder = TextEncoder.load(place)
        if {**vars(encoder.config), "model": ""} != {**vars(config), "model": ""}:
            raise XcodecLMError(
                f"{folder} was begun with the front end {encoder.config}, not {config}",
                "give text.* the same values, or choose another --out",
            )
        return encoder
    if init:
        encoder = TextEncoder.load(Path(init) / "text")
    else:
        store = open_tokens(tokens)
        found = (store.rows[index].get("text") for index in store.split("train"))
        texts = [text for text in found if isinstance(text, str) and text.strip()]
        if not texts:
            raise XcodecLMError(
                f"{store.folder} has no text in its split train", "tokenize a manifest whose rows have the field text"
            )
        encoder = TextEncoder.build(config, texts)
        say(f"{'text':<12}{config.front_end}, {encoder.size} symbols from {len(texts)} texts")
    if int(os.environ.get("RANK", "0")) == 0:  # every process builds the same; one writes
        encoder.save(place)
    return encoder
