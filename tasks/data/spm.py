"""Sentencepiece models from the texts of manifests.

A unigram model with bytes for what it never saw, so that no text is unknown to it. Texts are normalised as in speaking
(`tasks.tts.normalise`). Upper case is folded and accents joined inside the model, by rules of our own: those of
sentencepiece, which know every script's variants, make 250 kB of each model.

Source: Kudo and Richardson 2018, arXiv 1808.06226; options in
https://github.com/google/sentencepiece/blob/master/doc/options.md
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from xcodec_lm.codec.clips import Split, read_manifests
from xcodec_lm.codec.runtime.files import write_files
from xcodec_lm.codec.runtime.progress import track
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.tts.normalise import normalise

BYTES = 256
META = 3
"""Pieces for the unknown, the beginning and the end of a text."""
RULES = "rules.tsv"
LONGEST_BYTES = 4192
"""Texts beyond this many bytes are left out by sentencepiece unless it is told otherwise."""


@dataclass(frozen=True)
class Trained:
    """What was made.

    Attributes:
        pieces: size of the vocabulary.
        texts: how many it was trained on.
        without_text: recordings of the split that have none, or nothing that can be said.
        characters_per_piece: of the training texts.
    """

    pieces: int
    texts: int
    without_text: int
    characters_per_piece: float


def train_spm(
    manifests: Sequence[str | Path],
    out: str | Path,
    *,
    vocab_size: int = 512,
    split: Split | None = "train",
    language: str = "en-us",
) -> Trained:
    """Trains a model and writes it; the same texts give the same bytes.

    Args:
        manifests: rows with `text`.
        out: the model file.
        vocab_size: pieces in all, bytes among them.
        split: of the rows that are used; None takes all.
        language: espeak-ng's name of it, for the normalisation.

    Raises:
        ManifestError: a manifest cannot be read.
        UsageError: the texts do not give that many pieces, or need more, or there are no texts; `out` is a folder.
        XcodecLMError: the file cannot be written.
    """
    out = Path(out)
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder", "give the model file: --out text.model")
    if vocab_size < 1:
        raise UsageError(f"a vocabulary of {vocab_size} pieces is impossible", _smallest_hint(0))
    clips = read_manifests(manifests, split)
    rows = [clip.row.get("text") for clip in clips]
    rows = [row if isinstance(row, str) else "" for row in rows]
    texts = [normalise(row, language).text for row in track(rows, "texts", len(rows))]
    texts = [text for text in texts if any(letter.isalnum() for letter in text)]
    if not texts:
        where = ", ".join(map(str, manifests))
        raise UsageError(
            f"{where}: none of the {len(clips)} recordings{f' with split: {split}' if split else ''} has a text",
            "choose the split with --split, or a manifest whose rows have `text`",
        )
    model = _train(texts, vocab_size)
    write_files(out.absolute().parent, {out.name: lambda path: path.write_bytes(model)})
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=model)
    pieces = sum(map(len, processor.encode(texts)))
    return Trained(
        pieces=processor.get_piece_size(),
        texts=len(texts),
        without_text=len(clips) - len(texts),
        characters_per_piece=sum(map(len, texts)) / pieces,
    )


def _train(texts: list[str], vocab_size: int) -> bytes:
    model = io.BytesIO()
    with TemporaryDirectory() as folder, chdir(folder):  # the model keeps the path: a relative one is the same anywhere
        Path(RULES).write_text(folding_rules(), encoding="ascii")
        _fill(model, texts, vocab_size)
    return model.getvalue()


def folding_rules() -> str:
    """What becomes of characters before they are cut into pieces, as sentencepiece reads it, by code points in hex.

    Upper case becomes lower case, a letter and an accent apart become one, ligatures and full-width letters plain ones.
    """
    rules = {}
    for letter in map(chr, range(0x20, 0x20000)):
        wide = unicodedata.name(letter, "").startswith(("FULLWIDTH", "LATIN SMALL LIGATURE"))
        folded = unicodedata.normalize("NFKC" if wide else "NFC", letter).casefold()
        folded = unicodedata.normalize("NFC", folded)
        apart = unicodedata.normalize("NFD", letter)
        if folded != letter:
            rules[letter] = folded
        if len(apart) > 1 and unicodedata.normalize("NFC", apart) == letter and not "\uac00" <= letter <= "\ud7a3":
            rules[apart] = folded
    codes = [[" ".join(f"{ord(one):X}" for one in side) for side in rule] for rule in sorted(rules.items())]
    return "".join(f"{before}\t{after}\n" for before, after in codes)


def _fill(model: io.BytesIO, texts: list[str], vocab_size: int) -> None:
    from sentencepiece import SentencePieceTrainer

    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="unigram",
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_tsv=RULES,
            max_sentence_length=max(LONGEST_BYTES, max(len(text.encode()) for text in texts)),
            num_threads=1,  # more would add up in another order
            minloglevel=3,
        )
    except RuntimeError as error:
        _explain(str(error), vocab_size, len(texts))
        raise


def _explain(message: str, vocab_size: int, count: int) -> None:
    """Raises the error in our words if it is about the size of the vocabulary."""
    if found := re.search(r"too high.*?<= ?([0-9]+)", message):
        raise UsageError(
            f"{count} texts have too few different parts for {vocab_size} pieces; they give at most {found[1]}",
            f"choose fewer: --vocab-size {found[1]}; or add texts",
        ) from None
    if found := re.search(r"smaller than required_chars\. *[0-9]+ vs ([0-9]+)", message):
        raise UsageError(f"{vocab_size} pieces are too few for these texts", _smallest_hint(int(found[1]))) from None
    raise XcodecLMError(f"sentencepiece could not be trained: {message}", "look at the texts of the manifest") from None


def _smallest_hint(needed: int) -> str:
    least = max(needed, BYTES + META + 1)
    return f"choose at least {least}: {BYTES} bytes, {META} marks and every character that occurs"
