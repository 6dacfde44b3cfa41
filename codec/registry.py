"""The codecs that this release knows of, and what each of them still needs on this machine.

`codec info --list` shows this table. Nothing is loaded and nothing is asked of the network for it.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import XcodecLMError

PRETRAINED = Path(__file__).parent / "pretrained"
"""Codecs that ship with the package, one folder each."""
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class KnownCodec:
    """What there is to know of a codec before it is loaded.

    Attributes:
        name: short, for people.
        source: what `load_codec` is given: a shipped name or a hub id.
        sample_rate: of the audio that is encoded, in Hz.
        output_sample_rate: of the audio that is decoded, in Hz.
        hop_samples: samples per frame at `sample_rate`.
        codebook_sizes: codes of each quantizer.
        causal: whether no later frame acts on a sample.
        parameters_m: millions of numbers that inference needs, codebooks and teacher included; None when unknown.
        licence: of the weights.
        shipped: whether the weights are inside the package.
        module: the module of this package that runs it; None when there is none.
        packages: what must be installed beside the core dependencies.
        install: how to get them.
        note: what else its user must know.
    """

    name: str
    source: str
    sample_rate: int
    output_sample_rate: int
    hop_samples: int
    codebook_sizes: tuple[int, ...]
    causal: bool
    parameters_m: float | None
    licence: str
    shipped: bool = False
    module: str | None = "xcodec_lm.codec.adapters.models"
    packages: tuple[str, ...] = ()
    install: str = ""
    note: str = ""

    @property
    def spec(self) -> TokenSpec:
        """Rates and codebooks, without a fingerprint."""
        return TokenSpec(self.name, self.sample_rate, self.output_sample_rate, self.hop_samples, self.codebook_sizes)


def _xcodec(suffix: str) -> KnownCodec:
    return KnownCodec(
        f"xcodec-{suffix}",
        f"hf-audio/xcodec-{suffix}",
        16_000,
        16_000,
        320,
        (1024,) * 8,
        causal=False,
        parameters_m=169.1,
        licence="MIT (code)",
        module="xcodec_lm.codec.xcodec",
    )


FOREIGN = (
    # Names and data of the five: github.com/huggingface/transformers, models/xcodec/convert_xcodec_weights_to_hf.py.
    # Sizes: arXiv 2408.17175, section 6, and transformers.XcodecModel counted.
    *map(
        _xcodec,
        ("hubert-librispeech", "wavlm-mls", "wavlm-more-data", "hubert-general", "hubert-general-balanced"),
    ),
    # arXiv 2502.04128; licence: the model card of HKUSTAudio/xcodec2.
    KnownCodec(
        "xcodec2",
        "HKUSTAudio/xcodec2-hf",
        16_000,
        16_000,
        320,
        (65_536,),
        causal=False,
        parameters_m=629.3,
        licence="CC-BY-NC-4.0",
        module="xcodec_lm.codec.xcodec2",
    ),
    # arXiv 2509.09550; licence: huggingface.co/neuphonic/neucodec.
    KnownCodec(
        "neucodec",
        "neuphonic/neucodec",
        16_000,
        24_000,
        320,
        (65_536,),
        causal=False,
        parameters_m=629.9,
        licence="Apache-2.0",
        module="xcodec_lm.codec.xcodec2",
    ),
    # arXiv 2210.13438, section 3; licence: github.com/facebookresearch/encodec, LICENSE. The hub's page states none.
    KnownCodec(
        "encodec-24k",
        "facebook/encodec_24khz",
        24_000,
        24_000,
        320,
        (1024,) * 32,
        causal=True,
        parameters_m=19.0,
        licence="MIT (code)",
        note="streams start after 7 frames",
    ),
    # arXiv 2306.06546, and final/{16khz,24khz,44khz}.yml of github.com/descriptinc/descript-audio-codec (MIT).
    KnownCodec("dac-16k", "descript/dac_16khz", 16_000, 16_000, 320, (1024,) * 12, False, 74.1, "MIT"),
    KnownCodec("dac-24k", "descript/dac_24khz", 24_000, 24_000, 320, (1024,) * 32, False, 74.7, "MIT"),
    KnownCodec("dac-44k", "descript/dac_44khz", 44_100, 44_100, 512, (1024,) * 9, False, 76.6, "MIT"),
    # arXiv 2410.00037, section 3.3; licence: github.com/kyutai-labs/moshi, README, "License".
    KnownCodec("mimi-24k", "kyutai/mimi", 24_000, 24_000, 1920, (2048,) * 32, True, 96.1, "CC-BY-4.0"),
    # arXiv 2308.16692; config/spt_base_cfg.json and LICENSE of github.com/ZhangXInFD/SpeechTokenizer.
    KnownCodec(
        "speechtokenizer",
        "fnlp/SpeechTokenizer",
        16_000,
        16_000,
        320,
        (1024,) * 8,
        causal=False,
        parameters_m=112.1,
        licence="Apache-2.0",
        module="xcodec_lm.codec.adapters.speechtokenizer",
        packages=("speechtokenizer", "einops"),
        install="pip install --no-deps speechtokenizer einops",
        note="give the local folder speechtokenizer_hubert_avg of it",
    ),
    # huggingface.co/bosonai/higgs-audio-v2-tokenizer; a relative of X-Codec whose peer needs torchaudio.
    KnownCodec(
        "higgs-v2",
        "bosonai/higgs-audio-v2-tokenizer",
        24_000,
        24_000,
        960,
        (1024,) * 8,
        causal=False,
        parameters_m=None,
        licence="Boson Higgs Audio 2",
        module=None,
    ),
)
"""Codecs of other projects, by what their authors publish."""


def known_codecs(pretrained: Path | None = None) -> tuple[KnownCodec, ...]:
    """Shipped codecs first, then those of other projects.

    Args:
        pretrained: folder of the shipped ones; None for the package's own.
    """
    root = PRETRAINED if pretrained is None else pretrained
    folders = sorted(path.parent for path in root.glob("*/config.json")) if root.is_dir() else []
    shipped = [entry for folder in folders if (entry := _shipped(folder)) is not None]
    return (*shipped, *FOREIGN)


def missing(codec: KnownCodec, cache: Path | None = None) -> str:
    """What keeps a codec from being used here; empty if nothing does.

    Args:
        codec: any entry of the table.
        cache: the hub's cache; None for the one that the hub's client uses.
    """
    if codec.module is None or not _importable(codec.module):
        return "no adapter in this release"
    if absent := [package for package in codec.packages if not _importable(package)]:
        return f"package {' and '.join(absent)}: {codec.install}"
    if codec.shipped or weights_in_cache(codec.source, cache):
        return ""
    return f"weights: hub id {codec.source} downloads on first use, or give a local folder"


def weights_in_cache(hub_id: str, cache: Path | None = None) -> bool:
    """Whether the hub's cache on this machine holds weights of a model."""
    if cache is None:
        from huggingface_hub.constants import HF_HUB_CACHE

        cache = Path(HF_HUB_CACHE)
    snapshots = cache / f"models--{hub_id.replace('/', '--')}" / "snapshots"
    return any(file.exists() for pattern in WEIGHT_FILES for file in snapshots.glob(f"*/**/{pattern}"))


def codec_rows(codecs: Iterable[KnownCodec], cache: Path | None = None) -> list[dict[str, Any]]:
    """The table as plain values, for JSON."""
    return [
        asdict(codec)
        | {
            "frame_rate": float(codec.spec.frame_rate),
            "n_q": codec.spec.n_q,
            "bitrate_kbps": codec.spec.bitrate_kbps,
            "missing": missing(codec, cache),
        }
        for codec in codecs
    ]


def codec_table(codecs: Iterable[KnownCodec], cache: Path | None = None) -> str:
    """The table as text: one codec a line, then what is missing and what to know, by name."""
    header = ("codec", "Hz", "frames/s", "n_q x size", "kbps", "causal", "M params", "licence", "here")
    rows, notes = [header], []
    for codec in codecs:
        spec, lack = codec.spec, missing(codec, cache)
        rates = str(spec.sample_rate)
        if spec.output_sample_rate != spec.sample_rate:
            rates += f" -> {spec.output_sample_rate}"
        rows.append(
            (
                codec.name,
                rates,
                _number(spec.frame_rate),
                f"{spec.n_q} x {spec.codebook_sizes[0]}",
                f"{spec.bitrate_kbps:.1f}",
                "yes" if codec.causal else "no",
                "-" if codec.parameters_m is None else f"{codec.parameters_m:.1f}",
                codec.licence,
                "shipped" if codec.shipped else lack.split(":")[0] if lack else "ready",
            )
        )
        if said := "; ".join(part for part in (lack, codec.note) if part):
            notes.append(f"  {codec.name}: {said}")
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *(["", "missing or to know:", *notes] if notes else [])])


def _shipped(folder: Path) -> KnownCodec | None:
    """The entry of a codec inside the package, from its own files; None for what is no X-Codec (a teacher)."""
    from xcodec_lm.codec.convert import OWN_MODEL_TYPE, from_own_block

    try:
        data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        block = data.get(OWN_MODEL_TYPE)
        if block is None or "semantic" not in block:
            return None
        model, _ = from_own_block(block, str(folder / "config.json"))
        return KnownCodec(
            folder.name,
            folder.name,
            model.sample_rate,
            model.sample_rate,
            model.hop_samples,
            (model.quantizer.codebook_size,) * model.quantizer.n_q,
            causal=False,
            parameters_m=_stored_numbers(folder) / 1e6,
            licence=block.get("licence", "Apache-2.0"),
            shipped=True,
            module="xcodec_lm.codec.xcodec",
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise XcodecLMError(
            f"{folder}: the shipped codec cannot be read: {error}", "install the package again"
        ) from None


def _stored_numbers(folder: Path) -> int:
    """Numbers in a folder's weight files, but for those that only training reads."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118
                if not key.endswith((".embed_avg", ".cluster_size", ".inited")):
                    total += math.prod(handle.get_slice(key).get_shape())
    return total


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _number(value: Fraction) -> str:
    return f"{float(value):.2f}".rstrip("0").rstrip(".")
