"""Exponential moving average of weights, for export."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WeightAverage:
    """A running average of a module's trainable parameters.

    Args:
        module: whose parameters are followed.
        decay: weight of the past in (0, 1).
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Moves the average towards the module's present parameters."""
        for name, parameter in module.named_parameters():
            if name in self.shadow:
                self.shadow[name].lerp_(parameter.detach(), 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, by parameter name."""
        return self.shadow

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` gave."""
        for name, value in state.items():
            self.shadow[name].copy_(value)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Writes the averages into a module of the same shape."""
        for name, parameter in module.named_parameters():
            if name in self.shadow:
                parameter.copy_(self.shadow[name])
