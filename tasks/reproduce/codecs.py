"""The codecs of a table by name, and the rows of the paper that they stand for."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from xcodec_lm.codec.tokens import AudioTokenizer
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.reproduce.settings import Settings, named

FAMILIES = {"encodec": "Encodec", "dac": "DAC", "speechtokenizer": "Speechtokenizer"}
"""How an adapter's class begins -> the paper's name."""
BASELINE, XCODEC = "Baseline Acoustic Codec", "X-Codec"


def load_codecs(settings: Settings) -> dict[str, AudioTokenizer]:
    """The codecs by name, in the order of --codecs.

    Raises:
        XcodecLMError: one cannot be loaded, or two are the same.
    """
    found = {name: _load(source, settings.device) for name, source in sources(settings).items()}
    seen: dict[str, str] = {}
    for name, codec in found.items():
        other = seen.setdefault(codec.spec.fingerprint, name)
        if other != name:
            raise XcodecLMError(f"--codecs: {other} and {name} are the same codec", "name each codec once")
    return found


def sources(settings: Settings) -> dict[str, str]:
    """Where each codec is, by name."""
    return named(settings.codecs, "--codecs")


@lru_cache(maxsize=16)
def _load(source: str, device: str) -> AudioTokenizer:
    from xcodec_lm.codec import load_codec

    return load_codec(source, device=device)


def fingerprints(settings: Settings) -> dict[str, str]:
    """What tells the codecs apart, by name; a result depends on it."""
    return {name: codec.spec.fingerprint for name, codec in load_codecs(settings).items()}


def paper_name(codec: AudioTokenizer) -> str:
    """The paper's name for a codec of this kind; "" where it has none."""
    from xcodec_lm.codec.xcodec import XCodec

    if isinstance(codec, XCodec):
        return BASELINE if codec.semantic_config.teacher == "none" else XCODEC
    kind = type(codec).__name__.lower()
    return next((name for family, name in FAMILIES.items() if kind.startswith(family)), "")


def layers_of(codec: AudioTokenizer, wanted: tuple[int, ...]) -> list[int]:
    """Of the numbers of layers that are wanted those that a codec has; all of its layers stand in for the largest."""
    most = codec.spec.n_q
    return sorted({min(number, most) for number in wanted})


def codec_settings(codecs: dict[str, AudioTokenizer]) -> list[tuple[str, str, str]]:
    """How the codecs differ from the paper's, as rows of setting, paper, here."""
    rows = []
    for name, codec in codecs.items():
        spec, kind = codec.spec, paper_name(codec)
        if kind in (XCODEC, BASELINE):
            here = f"{spec.sample_rate} Hz, {float(spec.frame_rate):g} frames/s, {spec.n_q} x {spec.codebook_sizes[0]}"
            millions = _parameters(codec) / 1e6
            rows.append((f"codec {name}", f"{kind}: 16000 Hz, 50 frames/s, 8 x 1024; trained for 400,000 steps on "
                         "200,000 hours (section 4.2), for speech on LibriSpeech (4.1)", f"{here}, {millions:.1f} M "
                         "parameters; see its card for what it was trained on"))  # fmt: skip
    return rows


def _parameters(codec: Any) -> int:
    return sum(parameter.numel() for parameter in codec.parameters())
