"""A small recogniser of speech for the data at hand: log-mel frames, dilated convolutions, CTC.

Where the training texts have at most 100 different words (digits, commands) it names whole words, which so small a
model does far better than spelling; else it spells. It is a judge, not a dictation machine: its word error rate on real
recordings must be looked at before what it says of generated ones.

A word is decided within some two seconds around it, so convolutions do, and train several times as fast on a CPU as
recurrent layers.

Source: Graves et al. 2006, "Connectionist temporal classification"; greedy decoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcodec_lm import configs
from xcodec_lm.codec.batching import keep
from xcodec_lm.configs.errors import ConfigError, XcodecLMError
from xcodec_lm.configs.evaluators import MOST_WORDS, RecogniserConfig
from xcodec_lm.tasks.eval.judge_audio import SAMPLE_RATE, bands_below, check_clips, features, is_silent, pad_frames
from xcodec_lm.tasks.eval.judge_files import (
    find_judge,
    load_weights,
    module_fingerprint,
    read_judge_config,
    save_judge,
)

MODEL_TYPE = "xcodec_lm_tiny_ctc"
BLANK = 0
KERNEL = 5
STRIDES = {"words": (2, 2), "characters": (2, 1)}
"""A letter may last 40 ms, a word does not: frames of 20 ms spell, frames of 40 ms name."""


@dataclass(frozen=True)
class Alphabet:
    """What the outputs mean: output 0 is CTC's blank, output i + 1 is `symbols[i]`.

    Attributes:
        units: `words` or `characters`.
        symbols: sorted.
    """

    units: str
    symbols: tuple[str, ...]

    @staticmethod
    def build(texts: Iterable[str], units: str = "auto") -> Alphabet:
        """The alphabet of normalised texts.

        Args:
            texts: of the training clips, after `wer.normalise`.
            units: `words`, `characters`, or `auto`: words where there are at most 100 different ones.

        Raises:
            ConfigError: no text has a word.
        """
        texts = list(texts)
        words = {word for text in texts for word in text.split()}
        if not words:
            raise ConfigError(
                "no training clip has a `text` with a word in it", "give manifests whose rows have `text`"
            )
        if units == "auto":
            units = "words" if len(words) <= MOST_WORDS else "characters"
        return Alphabet(units, tuple(sorted(words if units == "words" else set("".join(texts)))))

    def encode(self, text: str) -> Tensor:
        """(S,) int64 outputs for a normalised text; symbols that are not known are left out."""
        index = {symbol: number for number, symbol in enumerate(self.symbols, start=1)}
        pieces: Sequence[str] = text.split() if self.units == "words" else text
        return torch.tensor([index[piece] for piece in pieces if piece in index], dtype=torch.int64)

    def decode(self, outputs: Tensor) -> str:
        """The text of the best output of every frame (T,): repeats are joined, blanks dropped."""
        kept = [output for output in torch.unique_consecutive(outputs).tolist() if output != BLANK]
        pieces = [self.symbols[output - 1] for output in kept]
        return " ".join(pieces) if self.units == "words" else " ".join("".join(pieces).split())


class TinyCTC(nn.Module):
    """The network.

    Args:
        config: sizes.
        alphabet: what it names.
    """

    def __init__(self, config: RecogniserConfig, alphabet: Alphabet):
        super().__init__()
        self.config, self.alphabet = config, alphabet
        self.bands, self.strides = bands_below(config.highest_hz), STRIDES[alphabet.units]
        width = config.channels
        inner = [(width, 1, 2**layer) for layer in range(config.layers)]  # input channels, stride, dilation
        shapes = [(self.bands, self.strides[0], 1), (width, self.strides[1], 1), *inner]
        self.convs = nn.ModuleList(
            nn.Conv1d(channels, width, KERNEL, stride, dilation * (KERNEL // 2), dilation)
            for channels, stride, dilation in shapes
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in shapes)
        self.dropout = nn.Dropout1d(config.dropout)
        self.head = nn.Linear(width, 1 + len(alphabet.symbols))

    def forward(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log probabilities of the outputs.

        Args:
            frames: (B, T, bands) of `judge_audio.features`, with zeros behind each row.
            lengths: (B,) frames of each row.

        Returns:
            (B, T', 1 + symbols) and the rows' lengths (B,); what stands behind a row's length means nothing.
        """
        x = frames.mT  # (B, bands, T)
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = conv(keep(x, lengths))  # (B, C, T)
            stride = conv.stride[0]
            lengths = (lengths + stride - 1) // stride
            y = self.dropout(F.gelu(norm(y.mT)).mT)
            x = x + y if index >= len(self.strides) else y
        return self.head(x.mT).log_softmax(dim=2), lengths

    def loss(self, rows: Sequence[Tensor], texts: Sequence[str]) -> Tensor:
        """CTC loss of a batch, per symbol.

        Args:
            rows: (T_i, bands) of each clip.
            texts: normalised.
        """
        frames, lengths = pad_frames(rows)
        device = self.head.weight.device
        scores, out_lengths = self(frames.to(device), lengths.to(device))
        targets = [self.alphabet.encode(text) for text in texts]
        sizes = torch.tensor([len(target) for target in targets])
        return F.ctc_loss(
            scores.transpose(0, 1), torch.cat(targets).to(device), out_lengths, sizes.to(device), BLANK,
            zero_infinity=True,
        )  # fmt: skip


class TinyTranscriber:
    """A trained `TinyCTC` as a judge.

    Args:
        model: in eval mode.
        name: shown in reports.
        ancestry: what it was trained on.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, model: TinyCTC, name: str = "tinyctc", ancestry: dict[str, Any] | None = None):
        self.model, self.name, self.ancestry = model, name, ancestry or {}

    @cached_property
    def fingerprint(self) -> str:
        """See `plugins.PlugIn`."""
        alphabet = [self.model.alphabet.units, *self.model.alphabet.symbols]
        return module_fingerprint(self.model, {"model": configs.to_dict(self.model.config), "alphabet": alphabet})

    @torch.inference_mode()
    def transcribe(self, wavs: Sequence[np.ndarray]) -> list[str]:
        """The words of clips; each is heard alone, so a result does not depend on the others.

        Args:
            wavs: (N,) float32 at 16 kHz each; one below -60 dBFS has no words.

        Raises:
            AudioError: a clip is empty, not finite, or not on the scale of [-1, 1].
        """
        device = self.model.head.weight.device
        texts = []
        for wav in check_clips(wavs):
            if is_silent(wav):
                texts.append("")
                continue
            frames = features(wav, self.model.bands)
            scores, _ = self.model(frames[None].to(device), torch.tensor([len(frames)], device=device))
            texts.append(self.model.alphabet.decode(scores[0].argmax(dim=1).cpu()))
        return texts


def save_tiny_ctc(model: TinyCTC, folder: Path, ancestry: dict[str, Any]) -> None:
    """Writes a recogniser; `load_tiny_ctc` reads it.

    Raises:
        XcodecLMError: the folder cannot be written.
    """
    alphabet = {"units": model.alphabet.units, "symbols": list(model.alphabet.symbols)}
    header = {"model": configs.to_dict(model.config), "alphabet": alphabet, "ancestry": ancestry}
    save_judge(model, folder, MODEL_TYPE, header)


def load_tiny_ctc(source: str | Path, device: str | torch.device = "cpu") -> TinyTranscriber:
    """A recogniser from a folder.

    Args:
        source: model folder, run folder, or what `eval train-evaluators` wrote.
        device: where it computes.

    Raises:
        XcodecLMError: no recogniser is there, or it is damaged.
    """
    folder = find_judge(source, "recogniser")
    header = read_judge_config(folder)
    where = str(folder / "config.json")
    try:
        if header["model_type"] != MODEL_TYPE:
            raise XcodecLMError(f"{where} describes a {header['model_type']!r}, not a {MODEL_TYPE!r}")
        config = configs.from_dict(header["model"], RecogniserConfig, where)
        alphabet = Alphabet(header["alphabet"]["units"], tuple(header["alphabet"]["symbols"]))
        model = TinyCTC(config, alphabet)
    except (KeyError, TypeError) as error:
        raise XcodecLMError(f"{where} is incomplete: {error}", "train the judge again") from None
    load_weights(model, folder)
    return TinyTranscriber(model.to(device), ancestry=header.get("ancestry"))
