"""Drawing the next id from logits: temperature, top-k, top-p, within the ids that a position allows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xcodec_lm.configs.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How ids are drawn. The filters act in this order: temperature, top-k, top-p.

    Attributes:
        temperature: divides the logits; 0 takes the most likely id.
        top_k: keep the k most likely ids; 0 keeps all. Ids as likely as the k-th stay too.
        top_p: keep the fewest most likely ids whose probabilities sum to at least this; 1 keeps all.

    Raises:
        UsageError: a value outside its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(
                f"temperature must be a number from 0, got {self.temperature}", "0 takes the most likely id"
            )
        if self.top_k < 0 or self.top_k != int(self.top_k):
            raise UsageError(f"top-k must be a whole number from 0, got {self.top_k}", "0 keeps all ids")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p must lie in (0, 1], got {self.top_p}", "1 keeps all ids")


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (B, K) of ids from logits (B, K) of the allowed ones, at a temperature above 0."""
    logits = logits.float()
    logits = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature  # the maximum first: no overflow
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < least, -torch.inf)
    probs = logits.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = probs.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # what more likely ids sum to; 0 for the first, which always stays
        probs = torch.zeros_like(probs).scatter(-1, order, ordered.masked_fill(before >= sampling.top_p, 0))
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def draw(logits: Tensor, allowed: tuple[int, int], sampling: Sampling, generators: list[torch.Generator]) -> Tensor:
    """One id for each row.

    An exponential race, argmax p / e with e ~ Exp(1), draws from p. The noise comes from one CPU generator a row, so a
    row's draw depends neither on the rows beside it nor on the device.

    Args:
        logits: (B, V).
        allowed: ids (low, high), high exclusive, of which one is drawn.
        sampling: how.
        generators: B generators on the CPU; each advances by one draw.

    Returns:
        (B,) int64.
    """
    low, high = allowed
    logits = logits[:, low:high]  # (B, K)
    if sampling.temperature == 0:
        return logits.argmax(-1) + low
    noise = torch.empty(logits.shape[0], high - low)
    for row, generator in enumerate(generators):
        noise[row].exponential_(generator=generator)
    return (probabilities(logits, sampling) / noise.to(logits.device)).argmax(-1) + low
