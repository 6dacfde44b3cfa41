"""English words by PocketSphinx, whose models come inside its package: an offline recogniser without a GPU.

A recogniser of its time: on wideband read speech about one word in four is wrong, on telephone-band digits most are.
Its word errors compare systems with each other and carry its name; they are far from those of today's recognisers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.eval.backbones.ssl_models import lengthen
from xcodec_lm.tasks.eval.backbones.weights import need_package
from xcodec_lm.tasks.eval.judge_audio import SAMPLE_RATE, check_clips, is_silent

INSTALL = "pip install 'pocketsphinx>=5'"
SHORTEST = SAMPLE_RATE // 10


class PocketSphinx:
    """The package's recogniser as a plug-in.

    Args:
        folder: with an acoustic model, a language model and a dictionary, called as the package calls them; None takes
            the package's own.

    Raises:
        XcodecLMError: the package or the models are missing.
    """

    name, sample_rate = "pocketsphinx", SAMPLE_RATE

    def __init__(self, folder: Path | None = None):
        package = need_package("pocketsphinx", INSTALL)
        self.folder = folder or Path(package.get_model_path()) / "en-us"
        acoustic, words, dictionary = (
            self.folder / name for name in ("en-us", "en-us.lm.bin", "cmudict-en-us.dict")
        )  # fmt: skip
        try:
            self._decoder = package.Decoder(
                hmm=str(acoustic), lm=str(words), dict=str(dictionary), samprate=SAMPLE_RATE, loglevel="FATAL",
                cmn="batch",  # by default the mean of one clip's cepstra goes over to the next
            )  # fmt: skip
        except (RuntimeError, ValueError, OSError) as error:
            raise XcodecLMError(
                f"{self.folder}: no models of PocketSphinx: {error}",
                "it should hold en-us/, en-us.lm.bin and a dictionary",
            ) from None
        self.ancestry: dict[str, Any] = {
            "weights_from": self.folder.name if folder else "the package pocketsphinx",
            "base": "en-us of CMU Sphinx",
        }

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the models' files, see `plugins.PlugIn`."""
        digest = hashlib.sha256(b"cmn=batch")
        for path in sorted(item for item in self.folder.rglob("*") if item.is_file()):
            digest.update(path.relative_to(self.folder).as_posix().encode())
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def transcribe(self, wavs: Sequence[np.ndarray]) -> list[str]:
        """Words in lower case, see `plugins.Transcriber`."""
        return ["" if is_silent(clip) else self._hear(lengthen(clip, SHORTEST)) for clip in check_clips(wavs)]

    def _hear(self, wav: Tensor) -> str:
        samples = (wav.clamp(-1, 1) * 32767).round().to(torch.int16).numpy()
        self._decoder.start_utt()
        self._decoder.process_raw(samples.tobytes(), no_search=False, full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr.strip() if found is not None else ""


def load(source: str | Path | None = None, device: str | torch.device = "cpu") -> PocketSphinx:
    """PocketSphinx with the models of its package or of a folder; it computes on the CPU.

    Raises:
        XcodecLMError: see `PocketSphinx`.
    """
    return PocketSphinx(None if source is None else Path(source))
