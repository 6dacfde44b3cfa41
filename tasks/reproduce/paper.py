"""The tables of the X-Codec paper as data, and where the paper is silent.

Source: Ye et al., "Codec Does Matter", arXiv 2408.17175: tables 1 and 2 in section 4.1, 3 to 5 in 4.2, 6 in 4.3, 7 in
the appendix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Better = Literal["min", "max"]


@dataclass(frozen=True)
class Measured:
    """A column of a table.

    Attributes:
        head: its name in the paper.
        format: of its figures, as the paper prints them.
        best: which end is better.
    """

    head: str
    format: str
    best: Better


@dataclass(frozen=True)
class PaperTable:
    """A table as printed.

    Attributes:
        number: in the paper.
        title: what it shows.
        columns: key -> column.
        rows: name of the row -> key -> figure.
        silent: what the paper does not say, and what is done here.
        cautions: why even the same data would not give the same figures.
    """

    number: int
    title: str
    columns: Mapping[str, Measured]
    rows: Mapping[str, Mapping[str, float]]
    silent: Mapping[str, str]
    cautions: tuple[str, ...] = ()


def _rows(keys: str, lines: Mapping[str, str]) -> dict[str, dict[str, float]]:
    names = keys.split()
    return {
        row: dict(zip(names, (float(value) for value in values.split()), strict=True)) for row, values in lines.items()
    }


def _set_columns() -> dict[str, Measured]:
    return {
        "fd": Measured("FD", ".2f", "min"), "fad": Measured("FAD", ".2f", "min"),
        "fd_mert": Measured("FD-MERT-layer-9", ".2f", "min"),
    }  # fmt: skip


_MUSIC_SILENT = {
    "split of MUSDB18": "all 150 tracks (--split test: the 50 of test); crops overlap, so intervals are over tracks",
    "rate of the PANNs": "Cnn14 at 16 kHz, the codec's rate",
    "port of FAD": "VGGish in torch, without the final ReLU and without PCA",
    "pooling of MERT": "frames of all clips together",
    "training music": "100,000 hours of own songs, which are not public: name yours with --train-data",
}

TABLES: dict[int, PaperTable] = {
    1: PaperTable(
        1, "zero-shot speech of VALL-E on codecs' tokens",
        {
            "ar_wer": Measured("AR: WER", ".2f", "min"), "ar_sim": Measured("AR: SIM-O", ".2f", "max"),
            "ar_utmos": Measured("AR: UTMOS", ".2f", "max"), "wer": Measured("AR+NAR: WER", ".2f", "min"),
            "sim": Measured("AR+NAR: SIM-O", ".2f", "max"), "utmos": Measured("AR+NAR: UTMOS", ".2f", "max"),
        },
        _rows("ar_wer ar_sim ar_utmos wer sim utmos", {
            "GT": "2.23 0.67 4.10 2.23 0.67 4.10",
            "Encodec": "47.17 0.09 1.24 6.37 0.33 3.02",
            "DAC": "85.55 0.03 1.24 6.81 0.34 3.31",
            "Speechtokenizer": "7.53 0.10 1.26 5.24 0.36 3.84",
            "Baseline Acoustic Codec": "22.32 0.16 3.15 7.70 0.41 3.89",
            "X-Codec-hubert": "5.27 0.22 3.85 4.07 0.42 4.16",
            "X-Codec-wavlm-base-plus": "4.83 0.24 4.02 3.26 0.41 4.22",
        }),
        {
            "recogniser": "HuBERT-large-ls960-ft, greedy CTC, Whisper's English normaliser on both sides",
            "scope of WER": "the whole utterance: decoded prompt and continuation against the whole text",
            "average of WER": "over the corpus: all errors by all words",
            "prompt of SIM-O": "the first 3 s of the original recording against the part behind them",
            "number of utterances": "all of test-clean between 4 and 10 s",
        },
        ("the paper's X-Codec-wavlm was trained on MLS English, the others on LibriSpeech",),
    ),
    2: PaperTable(
        2, "ABX phone discriminability of codecs' vectors",
        {"within": Measured("within, %", ".1f", "min"), "across": Measured("across, %", ".1f", "min")},
        _rows("within across", {
            "hubert-ls-960": "3.3 4.1", "Encodec, nq 1": "21.5 28.3", "Encodec, nq 8": "17.5 27.0",
            "DAC, nq 1": "26.3 32.7", "DAC, nq 12": "21.7 33.2", "Speechtokenizer, nq 1": "3.5 4.3",
            "Speechtokenizer, nq 8": "3.6 4.5", "Baseline Acoustic Codec, nq 1": "26.4 31.2",
            "Baseline Acoustic Codec, nq 8": "20.1 28.3", "X-Codec, nq 1": "3.9 4.9", "X-Codec, nq 8": "3.3 4.3",
        }),
        {
            "items": "test-clean of Libri-light's items",
            "layer of the teacher": "what the codec uses (for HuBERT the mean of its layers)",
            "frames of an item": "both ends included; Libri-light's code leaves the last one out",
            "vectors": "the sum of the first nq codewords (post_vq) and the semantic decoder's output (sem_decoder) "
            "stand beside each other",
        },
        (
            "the author points to the semantic decoder's output for this table (zhenye234/xcodec#9), which is trained "
            "to copy the teacher; the codec's own vectors are post_vq",
        ),
    ),
    3: PaperTable(
        3, "music continuation over the first codebook", _set_columns(),
        _rows("fd fad fd_mert", {"Baseline Acoustic Codec": "16.17 1.43 2.88", "X-Codec": "12.66 1.37 2.62"}),
        _MUSIC_SILENT,
    ),
    4: PaperTable(
        4, "text to sound over four flattened codebooks",
        {
            "fd": Measured("FD", ".2f", "min"), "is": Measured("IS", ".2f", "max"),
            "fad": Measured("FAD", ".2f", "min"), "clap": Measured("CLAP", ".3f", "max"),
        },
        _rows("fd is fad clap", {
            "Baseline Acoustic Codec": "59.03 3.89 6.19 0.417", "X-Codec": "46.31 5.29 4.10 0.483",
        }),
        {
            "test set": "AudioCaps test, one caption a clip by seed",
            "reference": "the recordings; the codec's resynthesis of them stands beside as a row",
            "splits of IS": "10",
            "CLAP of the score": "music_speech_audioset_epoch_15_esc_89.98; never the one that conditions the model",
            "guidance": "none is named; sound make's usual one is taken",
        },
    ),
    5: PaperTable(
        5, "linear probes on ARCH",
        {
            key: Measured(head, ".2f", "max")
            for key, head in (
                ("esc50", "ESC-50"), ("us8k", "US8K"), ("fsd50k", "FSD50K"), ("vivae", "VIVAE"), ("fma_small", "FMA"),
                ("mtt", "MTT"), ("irmas", "IRMAS"), ("medley_solos", "MS-DB"), ("ravdess", "RAVDESS"),
                ("audiomnist", "A-MNIST"), ("slurp", "SLURP"), ("emovo", "EMOVO"),
            )
        },
        _rows(
            "esc50 us8k fsd50k vivae fma_small mtt irmas medley_solos ravdess audiomnist slurp emovo",
            {
                "DAC": "27.65 45.16 7.08 30.80 38.50 27.69 30.33 51.79 37.50 73.59 7.72 23.46",
                "Encodec": "30.60 64.47 8.63 31.59 39.5 26.57 28.16 64.47 31.60 78.71 8.44 25.51",
                "Baseline Acoustic Codec": "40.00 55.38 11.10 37.70 48.75 32.26 36.26 62.77 47.22 82.58 9.28 24.83",
                "Hubert-general-audio": "69.95 74.87 34.27 48.35 64.50 43.35 49.80 74.09 69.10 99.43 21.27 35.03",
                "X-Codec": "69.85 75.37 34.05 49.40 64.63 42.95 52.24 75.63 68.40 99.48 21.65 35.20",
            },
        ),
        {
            "vectors": "post_vq of all layers and the semantic decoder's output, side by side",
            "padding": "none: the mean goes over the frames of the recording alone",
        },
        (
            "the author points to the semantic decoder's output (zhenye234/xcodec#14)",
            "ARCH's code returns the weights of the last epoch, not of the best; here validation chooses",
        ),
    ),
    6: PaperTable(
        6, "reconstruction of speech",
        {
            "mel": Measured("Mel DT.", ".2f", "min"), "stft": Measured("STFT DT.", ".2f", "min"),
            "utmos": Measured("UTMOS", ".2f", "max"),
        },
        _rows("mel stft utmos", {
            "Baseline Acoustic Codec, nq 1": "0.79 0.73 2.96", "Baseline Acoustic Codec, nq 8": "0.54 0.58 3.72",
            "X-Codec, nq 1": "0.86 0.77 3.71", "X-Codec, nq 8": "0.62 0.63 4.01",
        }),
        {
            "formula of the distances": "mean absolute difference of natural-log magnitudes: 80 mel bands (hifigan80); "
            "three STFTs (ln_stft)",
            "subset of LibriTTS": "1000 clips of test-clean, drawn by the seed",
        },
    ),
    7: PaperTable(
        7, "music continuation over four flattened codebooks", _set_columns(),
        _rows("fd fad fd_mert", {"Baseline Acoustic Codec": "3.86 7.08 1.12", "X-Codec": "3.47 0.20 0.79"}),
        _MUSIC_SILENT,
        ("the baseline's FD 3.86 and FAD 7.08 look as if their columns were swapped: they are no target",),
    ),
}  # fmt: skip
"""By number."""
