"""Decoding in less than single precision: faster where reading weights takes the time, at a price in bits per code.

Measured prices stand in docs/performance.md; `code_bits` on a model of either precision measures one's own.
"""

from __future__ import annotations

import copy
import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from xcodec_lm.configs.errors import UsageError
from xcodec_lm.lm.gpt import GPT

Precision = Literal["fp32", "bf16", "int8"]
_PRODUCT = torch.ops.quantized.linear_dynamic.default


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights, a scale for each output, and activations rounded with a scale for each call.

    The same product as in torch.ao's `quantize_dynamic`, without the latter's Python around it, which took a sixth of
    the time of one row. Activations use 7 bits: with 8 the products of CPUs without VNNI run over.

    Args:
        linear: in fp32 on a CPU.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight, bias = linear.weight.detach(), linear.bias
        scales = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny).double()  # (out,)
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the removal of quantized tensors from some later PyTorch
            quantized = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(quantized, None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return _PRODUCT(x, self.packed, True)


def in_precision(model: GPT, precision: Precision) -> GPT:
    """A model for decoding.

    Args:
        model: in fp32.
        precision: `fp32` gives the model itself; `bf16` a copy with all weights and the cache in bf16; `int8` a copy
            whose linear layers hold 8-bit weights, with a scale for each output, and round activations to 7 bits with a
            scale for each call (CPU only). Embedding, norms and cache stay in fp32.

    Raises:
        UsageError: another word, or int8 on a GPU.
    """
    if precision == "fp32":
        return model
    if precision == "bf16":
        return copy.deepcopy(model).to(torch.bfloat16).order_for_decoding()
    if precision != "int8":
        raise UsageError(f"precision must be fp32, bf16 or int8, got {precision!r}")
    if model.device.type != "cpu":
        raise UsageError("int8 decodes on a CPU alone", "take bf16 on a GPU")
    smaller = copy.deepcopy(model)
    for module in list(smaller.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
    return smaller
