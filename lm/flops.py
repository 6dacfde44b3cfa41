"""Floating-point operations of training, and the share of a device's peak that they reach (MFU).

MFU counts what the model needs, not what was done: work repeated by gradient checkpointing, the optimizer, and padding
if it is not counted among the positions, all lower it.

Source: Chowdhery et al. 2022, "PaLM", appendix B, arXiv 2204.02311.
"""

from __future__ import annotations

import re
import time

import torch
from torch import Tensor, nn

_PEAKS: dict[str, float] = {
    "B200": 2250e12,  # https://www.nvidia.com/en-us/data-center/hgx/
    "H200": 989e12,  # https://www.nvidia.com/en-us/data-center/h200/
    "H100 PCIe": 756e12,  # https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet
    "H100": 989e12,
    "A100": 312e12,  # https://www.nvidia.com/en-us/data-center/a100/
    "L40S": 362e12,  # https://www.nvidia.com/en-us/data-center/l40s/
    "L4": 121e12,  # https://www.nvidia.com/en-us/data-center/l4/
    # The next three with sums in fp32, as training has them:
    "RTX 4090": 165e12,  # https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf
    "RTX 3090": 71e12,  # https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf
    "RTX A6000": 155e12,
    # Both fp16; they have no bf16:
    "V100": 125e12,  # https://images.nvidia.com/content/volta-architecture/pdf/volta-architecture-whitepaper.pdf
    "T4": 65e12,  # https://www.nvidia.com/en-us/data-center/tesla-t4/
}
"""What `torch.cuda.get_device_name` holds -> dense 16-bit peak in FLOP/s; the more specific of two names is first.

Data sheets print twice as much where they count sparse matrices.
"""
_RELATIVE = re.compile(r"\b(laptop|max-q|mig|nvl|ti|d)\b|v100s|v100-(pcie|fhhl)", re.IGNORECASE)
"""In the name of a part of such a GPU, or of a relative with another peak."""


def flops_per_position(parameters: int, layers: int, dim: int, length: float) -> float:
    """Operations of a training step (forward and backward) for each position of a sequence.

    6 N + 12 L D T: two for each weight in the forward pass and four in the backward pass; and those of attention,
    without the half that a causal mask could save.

    Args:
        parameters: weights that a position is multiplied with, of `matmul_parameters`: no embeddings, but the head.
        layers: attention layers.
        dim: width of queries over all heads.
        length: positions of a sequence; of packed documents, their mean weighted by length, sum(l^2) / sum(l).
    """
    return 6.0 * parameters + 12.0 * layers * dim * length


def matmul_parameters(model: nn.Module, *outputs: Tensor) -> int:
    """Weights that every position is multiplied with: those of the linear layers.

    Args:
        model: the model, whose layers all act once on a position.
        outputs: matrices of no linear layer that are multiplied with too, such as a tied embedding, `model.wte.weight`.
    """
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    return sum({id(weight): weight.numel() for weight in (*linear, *outputs)}.values())


def mfu(flops: float, seconds: float, peak: float) -> float:
    """Model FLOPs utilisation, from 0 to 1.

    Args:
        flops: operations of a step, over all devices.
        seconds: that the step took.
        peak: FLOP/s of all devices together.
    """
    return flops / seconds / peak


def find_peak(device: torch.device | str, dtype: torch.dtype = torch.bfloat16) -> tuple[float, str]:
    """Peak of one device in FLOP/s, and where it is from: `looked up`, or else `measured` in under half a second."""
    known = peak_flops(device, dtype)
    return (known, "looked up") if known else (measure_peak(device, dtype), "measured")


def peak_flops(device: torch.device | str, dtype: torch.dtype = torch.bfloat16) -> float | None:
    """The maker's dense peak of a GPU in FLOP/s; None for CPUs, unknown GPUs and 32-bit types."""
    if torch.device(device).type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    return peak_by_name(torch.cuda.get_device_name(device))


def peak_by_name(name: str) -> float | None:
    """The maker's dense 16-bit peak in FLOP/s of a GPU by the name that its driver gives; None if it is not known."""
    if _RELATIVE.search(name):
        return None
    return next((peak for known, peak in _PEAKS.items() if re.search(rf"\b{known}\b", name)), None)


def measure_peak(device: torch.device | str, dtype: torch.dtype = torch.bfloat16, seconds: float = 0.3) -> float:
    """The most FLOP/s that products of square matrices reach on a device, with the threads that PyTorch has now.

    Sizes grow while the time lasts, so that a slow device is not kept longer than a fast one. The result lies below
    what a maker would print, so MFU against it looks better.

    Args:
        device: the device.
        dtype: of the matrices; products in a type that a device lacks are slow, and their rate is the answer.
        seconds: about how long it may take.
    """
    device = torch.device(device)
    until, best, size = time.perf_counter() + seconds, 0.0, 128
    while size <= 4096:
        a = torch.ones(size, size, device=device, dtype=dtype)  # random numbers would move the global generator on
        _timed_product(a)  # libraries choose and load their kernels at the first call
        taken = min(_timed_product(a), _timed_product(a))
        best = max(best, 2 * size**3 / taken)
        size *= 2
        if time.perf_counter() + 3 * 8 * taken > until:
            break
    return best


def _timed_product(a: Tensor) -> float:
    """Seconds of one product."""
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
    start = time.perf_counter()
    _ = a @ a
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - start
