"""Recognisers of speech behind one protocol: the small one that is trained here, and transformers' from a local folder.

A result never depends on the other clips of a call: every clip is heard alone. Below -60 dBFS a clip has no words,
whatever a recogniser would invent.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.codec.semantic import quiet_transformers
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.eval import tiny_ctc
from xcodec_lm.tasks.eval.judge_audio import SAMPLE_RATE, check_clips, is_silent
from xcodec_lm.tasks.eval.judge_files import find_judge, module_fingerprint, read_judge_config
from xcodec_lm.tasks.eval.plugins import Transcriber

WHISPER_S = 30.0
"""What Whisper hears at once; longer clips are cut at quiet places."""
LOOK_BACK_S = 5.0
"""The last seconds of a piece, in which a quiet place is looked for."""
SHORTEST_SAMPLES = 1600
"""Shorter clips are padded with zeros to 0.1 s, which every front end takes."""


def load_transcriber(source: str | Path, device: str | torch.device = "cpu") -> Transcriber:
    """A recogniser from a local folder; nothing is downloaded.

    Args:
        source: what `eval train-evaluators` wrote, or a folder of a transformers CTC model (HuBERT, wav2vec 2.0,
            WavLM) or Whisper, with its processor's files.
        device: where it computes.

    Raises:
        XcodecLMError: nothing is there, it is no recogniser, or it is damaged.
    """
    folder = find_judge(source, "recogniser")
    config = read_judge_config(folder)
    kind = str(config.get("model_type"))
    if kind == tiny_ctc.MODEL_TYPE:
        return tiny_ctc.load_tiny_ctc(folder, device)
    architecture = str((config.get("architectures") or [""])[0])
    if kind == "whisper":
        return WhisperTranscriber(folder, device)
    if architecture.endswith("ForCTC"):
        return CTCTranscriber(folder, device)
    raise XcodecLMError(
        f"{folder / 'config.json'} describes a {kind!r} model ({architecture or 'no architecture named'}), "
        "which is not a recogniser that is known here",
        "give a folder of `eval train-evaluators`, of a transformers model for CTC, or of Whisper",
    )


def load_hubert_ctc(source: str | Path, device: str | torch.device = "cpu") -> Transcriber:
    """A transformers model for CTC from a local folder; raises as `load_transcriber`."""
    return _of_kind(CTCTranscriber, source, device)


def load_whisper(source: str | Path, device: str | torch.device = "cpu") -> Transcriber:
    """Whisper from a local folder; raises as `load_transcriber`."""
    return _of_kind(WhisperTranscriber, source, device)


def _of_kind(kind: type[_LocalModel], source: str | Path, device: str | torch.device) -> Transcriber:
    found = load_transcriber(source, device)
    if not isinstance(found, kind):
        raise XcodecLMError(f"{source} holds another kind of recogniser: {found.name}", "give it under its own name")
    return found


class _LocalModel:
    """What the two kinds from transformers share.

    Args:
        folder: with the model and its processor.
        device: where it computes.
    """

    auto_class = ""
    sample_rate = SAMPLE_RATE

    def __init__(self, folder: Path, device: str | torch.device = "cpu"):
        import transformers

        try:
            with quiet_transformers():
                self.processor: Any = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
                loader = getattr(transformers, self.auto_class)
                self.model: Any = loader.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise XcodecLMError(
                f"{folder} cannot be loaded as a recogniser: {str(error).splitlines()[0]}",
                "the folder needs the weights and the files of its tokenizer and feature extractor",
            ) from None
        self.model.eval().requires_grad_(False).to(device)
        self.name = folder.resolve().name
        self.ancestry: dict[str, Any] = {"model_type": self.model.config.model_type, "folder": self.name}

    @cached_property
    def fingerprint(self) -> str:
        """See `PlugIn`."""
        return module_fingerprint(self.model, {"model_type": self.model.config.model_type})

    @torch.inference_mode()
    def transcribe(self, wavs: Sequence[np.ndarray]) -> list[str]:
        """The words of clips, see `Transcriber.transcribe`."""
        texts = []
        for wav in check_clips(wavs):
            wav = torch.nn.functional.pad(wav, (0, max(0, SHORTEST_SAMPLES - len(wav))))
            texts.append("" if is_silent(wav) else self._hear(wav).strip())
        return texts

    def _hear(self, wav: Tensor) -> str:
        raise TypeError("one of the two kinds is meant")


class CTCTranscriber(_LocalModel):
    """A transformers model for CTC, decoded greedily."""

    auto_class = "AutoModelForCTC"

    def _hear(self, wav: Tensor) -> str:
        values = self.processor(wav.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values
        outputs = self.model(values.to(self.model.device)).logits.argmax(dim=2)
        return self.processor.batch_decode(outputs.cpu())[0]


class WhisperTranscriber(_LocalModel):
    """Whisper, decoded greedily, in pieces of at most 30 s that end at quiet places."""

    auto_class = "AutoModelForSpeechSeq2Seq"

    def _hear(self, wav: Tensor) -> str:
        texts = []
        for piece in quiet_pieces(wav, round(WHISPER_S * SAMPLE_RATE), round(LOOK_BACK_S * SAMPLE_RATE)):
            values = self.processor(piece.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            with quiet_transformers():
                outputs = self.model.generate(values.to(self.model.device), do_sample=False, num_beams=1)
            texts += self.processor.batch_decode(outputs, skip_special_tokens=True)
        return " ".join(text.strip() for text in texts)


def quiet_pieces(wav: Tensor, longest: int, look_back: int) -> list[Tensor]:
    """(N,) in pieces of at most `longest` samples; each but the last ends at the quietest 100 ms of its end."""
    pieces, size = [], SAMPLE_RATE // 10
    while len(wav) > longest:
        tail = wav[longest - look_back : longest]
        power = tail[: len(tail) // size * size].view(-1, size).square().mean(dim=1)
        cut = longest - look_back + int(power.argmin()) * size + size // 2
        pieces.append(wav[:cut])
        wav = wav[cut:]
    return [*pieces, wav]
