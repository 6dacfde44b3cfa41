"""Settings of what stands in front of a sequence: vectors or class labels as a prefix of the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xcodec_lm.configs.errors import ConfigError


@dataclass(frozen=True)
class ConditionConfig:
    """A condition as prefix, and how often training leaves it out."""

    kind: Literal["vector", "label"] = "vector"
    """`vector`: embeddings of texts or sounds, by a linear layer; `label`: one of several classes, by a table."""
    size: int = 0
    """Width of the vectors, or number of labels; 0 takes what the data has."""
    tokens: int = 1
    """Positions in front of the codes that a condition becomes."""
    drop: float = 0.1
    """Share of training examples whose condition is replaced by a learned one that says nothing. Classifier-free
    guidance (arXiv 2207.12598) needs it above 0."""

    def __post_init__(self):
        if self.size < 0 or self.tokens < 1:
            raise ConfigError("condition.size must be at least 0, condition.tokens at least 1")
        if not 0 <= self.drop < 1:
            raise ConfigError(f"condition.drop must lie in [0, 1), got {self.drop}")
