"""DNSMOS: predicted opinions of speech in noise, by the networks that come inside the package speechmos.

`ovrl`, `sig` and `bak` are P.835's overall quality, quality of the speech and absence of noise, `p808` is P.808's one
score; each is the mean over windows of 9.01 s that begin a second apart. A shorter clip is doubled until it fills a
window, one beyond full scale is clipped. Silence scores like anything else (`bak` well above the others), so figures
are read beside the number of silent clips.

The package itself is not imported: it needs librosa and runs a window at a time. Here windows of a clip pass its
networks together.

Sources: Reddy et al. 2022 (arXiv 2110.01763) and 2021 (arXiv 2010.15258);
https://github.com/microsoft/DNS-Challenge/tree/master/DNSMOS for windows and calibration.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.eval.backbones.mel import slaney_filters
from xcodec_lm.tasks.eval.backbones.weights import need_package, package_folder
from xcodec_lm.tasks.eval.judge_audio import SAMPLE_RATE, check_clips

INSTALL = "pip install speechmos onnxruntime"
P835, P808 = "sig_bak_ovr.onnx", "model_v8.onnx"
WINDOW = 144_160
"""Samples of 9.01 s."""
HEARD = 144_000
"""Samples of a window that P.808's spectrum is of."""
BANDS, TRANSFORM, HOP = 120, 321, 160
BATCH = 8
SCORES = ("ovrl", "sig", "bak", "p808")
CALIBRATION = {
    "sig": (-0.08397278, 1.22083953, 0.0052439),
    "bak": (-0.13166888, 1.60915514, -0.39604546),
    "ovrl": (-0.06766283, 1.11546468, 0.04602535),
}
"""Quadratic, linear and constant terms, by which raw outputs become scores."""


class DNSMOS:
    """The two networks as a plug-in.

    Args:
        p835: file of the network for `sig`, `bak` and `ovrl`.
        p808: file of the one for `p808`.
        threads: of each network.
    """

    name, sample_rate, scores = "dnsmos", SAMPLE_RATE, SCORES

    def __init__(self, p835: Path, p808: Path, threads: int = 1):
        runtime = need_package("onnxruntime", INSTALL)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        try:
            self._p835, self._p808 = (
                runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
                for path in (p835, p808)
            )
        except Exception as error:  # the runtime raises many kinds
            raise XcodecLMError(f"{p835.parent}: not DNSMOS' networks: {str(error).splitlines()[0]}", INSTALL) from None
        digest = hashlib.sha256(p835.read_bytes())
        digest.update(p808.read_bytes())
        self.fingerprint = digest.hexdigest()
        self.ancestry: dict[str, Any] = {"weights_from": f"{P835} and {P808} of speechmos", "base": "DNSMOS"}

    def predict(self, wavs: Sequence[np.ndarray]) -> list[dict[str, float]]:
        """`SCORES` of each clip, see `plugins.MosPredictor`."""
        return [self._judge(clip.clamp(-1, 1)) for clip in check_clips(wavs)]

    def _judge(self, wav: Tensor) -> dict[str, float]:
        raw, p808 = [], []
        for part in windows(wav).split(BATCH):
            raw.append(self._p835.run(None, {"input_1": part.numpy()})[0])  # (n, 3): sig, bak, ovrl
            p808.append(self._p808.run(None, {"input_1": p808_features(part).numpy()})[0])  # (n, 1)
        columns = dict(zip(("sig", "bak", "ovrl"), np.concatenate(raw).astype(np.float64).T, strict=True))
        found = {name: float(np.polyval(CALIBRATION[name], column).mean()) for name, column in columns.items()}
        found["p808"] = float(np.concatenate(p808).astype(np.float64).mean())
        return {name: found[name] for name in SCORES}


def windows(wav: Tensor) -> Tensor:
    """(N,) at 16 kHz -> (W, 144160), W at least 1, a second apart; what is left at the end is not heard."""
    while len(wav) < WINDOW:
        wav = wav.repeat(2)
    # As published: only whole seconds count, so that 10 s have one window, 11 s two.
    count = max(1, int(len(wav) // SAMPLE_RATE - WINDOW / SAMPLE_RATE) + 1)
    return wav.unfold(0, WINDOW, SAMPLE_RATE)[:count].contiguous()


def p808_features(parts: Tensor) -> Tensor:
    """(W, 144160) -> (W, 900, 120): log-mel power relative to each window's own maximum, scaled to about [-1, 1]."""
    spectrum = torch.stft(
        parts[:, :HEARD].double(), TRANSFORM, HOP, window=torch.hann_window(TRANSFORM, dtype=torch.float64),
        pad_mode="constant", return_complex=True,
    ).abs().square()  # fmt: skip
    power = (spectrum.transpose(1, 2) @ _mel_filters()).clamp_min(1e-10)  # (W, frames, bands)
    loudest = power.amax(dim=(1, 2), keepdim=True)
    decibels = (10 * (power / loudest).log10()).clamp_min(-80)
    return ((decibels + 40) / 40).float()


@functools.cache
def _mel_filters() -> Tensor:
    return slaney_filters(np.fft.rfftfreq(TRANSFORM, 1 / SAMPLE_RATE), BANDS, 0, SAMPLE_RATE / 2)


def load(source: str | Path | None = None, device: str | torch.device = "cpu") -> DNSMOS:
    """DNSMOS from the package speechmos, or from a folder with its two files; it computes on the CPU.

    Args:
        source: a folder with `sig_bak_ovr.onnx` and `model_v8.onnx`; None finds those of the package.
        device: not used.

    Raises:
        XcodecLMError: a package or file is missing, or a file is damaged.
    """
    folder = Path(source) if source is not None else package_folder("speechmos", INSTALL) / "dnsmos_models"
    for name in (P835, P808):
        if not (folder / name).is_file():
            raise XcodecLMError(f"{folder} has no {name}", f"give the folder of DNSMOS' files, or: {INSTALL}")
    return DNSMOS(folder / P835, folder / P808)
