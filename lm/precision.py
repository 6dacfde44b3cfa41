"""Decoding in less than single precision: faster where reading weights takes the time, at a price in bits per code.

Measured prices stand in docs/performance.md; `code_bits` on a model of either precision measures one's own.
"""

from __future__ import annotations

import copy
import warnings
from typing import Literal

import torch
from torch import nn

from xcodec_lm.configs.errors import UsageError
from xcodec_lm.lm.gpt import GPT

Precision = Literal["fp32", "bf16", "int8"]


def in_precision(model: GPT, precision: Precision) -> GPT:
    """A model for decoding.

    Args:
        model: in fp32.
        precision: `fp32` gives the model itself; `bf16` a copy with all weights and the cache in bf16; `int8` a copy
            whose linear layers hold 8-bit weights, with a scale for each output, and take activations in 8 bits with a
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the move of this function to another package
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

        return quantize_dynamic(copy.deepcopy(model), {nn.Linear: per_channel_dynamic_qconfig})
