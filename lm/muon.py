"""Muon: steps for hidden matrices whose singular values are all about equal.

PyTorch's Muon iterates in bfloat16, which a CPU without instructions for it computes several times slower than fp32: in
`tts/tiny` two thirds of a step went there. This one iterates in fp32 on CPUs and takes matrices of one shape together.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; the scale of the step is that of Liu et al.
2025, "Muon is scalable for LLM training", section 2.2, arXiv 2502.16982.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration, from the source: steepest at zero rather than convergent to one."""
ITERATIONS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """Matrices with the singular vectors of those given and singular values near 1, between about 0.7 and 1.2.

    Args:
        matrices: (n, out, in), on a CPU in fp32.

    Returns:
        (n, out, in) fp32 on a CPU, bfloat16 elsewhere.
    """
    x = matrices.float() if matrices.device.type == "cpu" else matrices.bfloat16()
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value is above 1
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class Muon(Optimizer):
    """Nesterov momentum, made orthogonal, with the RMS of an AdamW step; decay of weights stands apart.

    Args:
        matrices: parameters (out, in).
        lr: learning rate, as for AdamW.
        weight_decay: share of a weight that a step takes off, times `lr`.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float):
        super().__init__([{"params": list(matrices)}], {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[torch.Size, torch.device], list[nn.Parameter]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    alike.setdefault((weight.shape, weight.device), []).append(weight)
            for (shape, _), weights in alike.items():
                updates = orthogonalize(torch.stack([self._momentum(weight) for weight in weights]))
                scale = group["lr"] * 0.2 * math.sqrt(max(shape))
                for weight, update in zip(weights, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)
        return loss

    def _momentum(self, weight: nn.Parameter) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        assert weight.grad is not None
        average = state["momentum_buffer"].lerp_(weight.grad, 1 - MOMENTUM)
        return weight.grad.lerp(average, MOMENTUM)
