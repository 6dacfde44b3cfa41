"""The figures of the X-Codec paper's Tables 1 to 7, as facts to compare with.

Source: Ye et al. 2024, "Codec Does Matter: Exploring the Semantic Shortcoming of Codec for Audio Language Model",
https://arxiv.org/abs/2408.17175. Systems and metrics are named as in the paper, but for two names: "baseline" is its
"Baseline Acoustic Codec" (here the twin), and a metric of Table 1 begins with its stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xcodec_lm.tasks.report.document import Best, ReportError


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        number: 1 to 7.
        title: what it shows.
        metrics: its columns, each with its better end.
        systems: its rows, each with as many figures.
        references: rows that are no contestants.
        doubt: what is known to be odd in the paper's figures.
    """

    number: int
    title: str
    metrics: Mapping[str, Best]
    systems: Mapping[str, Sequence[float]]
    references: Sequence[str] = ()
    doubt: str = ""

    def value(self, system: str, metric: str) -> float | None:
        """The paper's figure, or None where it has none."""
        if system not in self.systems or metric not in self.metrics:
            return None
        return self.systems[system][list(self.metrics).index(metric)]


_ARCH = (
    "ESC-50", "US8K", "FSD50K", "VIVAE", "FMA", "MTT", "IRMAS", "MS-DB", "RAVDESS", "A-MNIST", "SLURP", "EMOVO",
)  # fmt: skip
_FRECHET: Mapping[str, Best] = {"FD": "min", "FAD": "min", "FD-MERT-layer-9": "min"}

PAPER_TABLES: Mapping[int, PaperTable] = {
    1: PaperTable(
        1, "Continuation zero-shot speech synthesis with VALL-E",
        {"AR: WER": "min", "AR: SIM-O": "max", "AR: UTMOS": "max",
         "AR+NAR: WER": "min", "AR+NAR: SIM-O": "max", "AR+NAR: UTMOS": "max"},
        {
            "GT": (2.23, 0.67, 4.10, 2.23, 0.67, 4.10),
            "EnCodec": (47.17, 0.09, 1.24, 6.37, 0.33, 3.02),
            "DAC": (85.55, 0.03, 1.24, 6.81, 0.34, 3.31),
            "SpeechTokenizer": (7.53, 0.10, 1.26, 5.24, 0.36, 3.84),
            "baseline": (22.32, 0.16, 3.15, 7.70, 0.41, 3.89),
            "X-Codec-hubert": (5.27, 0.22, 3.85, 4.07, 0.42, 4.16),
            "X-Codec-wavlm": (4.83, 0.24, 4.02, 3.26, 0.41, 4.22),
        },
        references=("GT",),
    ),
    2: PaperTable(
        2, "Phonetic discriminability: ABX error rates in %", {"within": "min", "across": "min"},
        {
            "HuBERT": (3.3, 4.1),
            "EnCodec, n_q 1": (21.5, 28.3), "EnCodec, n_q 8": (17.5, 27.0),
            "DAC, n_q 1": (26.3, 32.7), "DAC, n_q 12": (21.7, 33.2),
            "SpeechTokenizer, n_q 1": (3.5, 4.3), "SpeechTokenizer, n_q 8": (3.6, 4.5),
            "baseline, n_q 1": (26.4, 31.2), "baseline, n_q 8": (20.1, 28.3),
            "X-Codec, n_q 1": (3.9, 4.9), "X-Codec, n_q 8": (3.3, 4.3),
        },
        references=("HuBERT",),
        doubt="The paper does not say which layer, items or slices it took.",
    ),
    3: PaperTable(
        3, "Music continuation with one codebook", _FRECHET,
        {"baseline": (16.17, 1.43, 2.88), "X-Codec": (12.66, 1.37, 2.62)},
    ),
    4: PaperTable(
        4, "Text to sound", {"FD": "min", "IS": "max", "FAD": "min", "CLAP": "max"},
        {"baseline": (59.03, 3.89, 6.19, 0.417), "X-Codec": (46.31, 5.29, 4.10, 0.483)},
    ),
    5: PaperTable(
        5, "Semantic representation: accuracy of linear probes on ARCH in %", dict.fromkeys(_ARCH, "max"),
        {
            "DAC": (27.65, 45.16, 7.08, 30.80, 38.50, 27.69, 30.33, 51.79, 37.50, 73.59, 7.72, 23.46),
            "EnCodec": (30.60, 64.47, 8.63, 31.59, 39.5, 26.57, 28.16, 64.47, 31.60, 78.71, 8.44, 25.51),
            "baseline": (40.00, 55.38, 11.10, 37.70, 48.75, 32.26, 36.26, 62.77, 47.22, 82.58, 9.28, 24.83),
            "HuBERT-general-audio": (
                69.95, 74.87, 34.27, 48.35, 64.50, 43.35, 49.80, 74.09, 69.10, 99.43, 21.27, 35.03,
            ),
            "X-Codec": (69.85, 75.37, 34.05, 49.40, 64.63, 42.95, 52.24, 75.63, 68.40, 99.48, 21.65, 35.20),
        },
        references=("HuBERT-general-audio",),
    ),
    6: PaperTable(
        6, "Reconstruction of speech", {"Mel DT.": "min", "STFT DT.": "min", "UTMOS": "max"},
        {
            "baseline, n_q 1": (0.79, 0.73, 2.96), "baseline, n_q 8": (0.54, 0.58, 3.72),
            "X-Codec, n_q 1": (0.86, 0.77, 3.71), "X-Codec, n_q 8": (0.62, 0.63, 4.01),
        },
    ),
    7: PaperTable(
        7, "Music continuation with four flattened codebooks", _FRECHET,
        {"baseline": (3.86, 7.08, 1.12), "X-Codec": (3.47, 0.20, 0.79)},
        doubt="The paper's FD and FAD of the baseline look exchanged.",
    ),
}  # fmt: skip


def paper_layout(number: int) -> PaperTable:
    """A table of the paper.

    Raises:
        ReportError: the paper has no table of this number.
    """
    if number not in PAPER_TABLES:
        raise ReportError(f"the paper has no table {number!r}", "its tables are 1 to 7")
    return PAPER_TABLES[number]
