"""The data of oracle.json, from seeds: what torchmetrics was given, and what the tests give to our own."""

import numpy as np

FRECHET = ((0, 200, 8), (1, 40, 40), (2, 30, 64), (3, 500, 3))
"""Seed, rows and dimensions; one of them with fewer rows than dimensions."""
KL, SI_SDR = (6, 7), (8, 9)
TEXTS = (
    ["the dog sat on", "hello", "one two three", "a b c"],
    ["the cat sat", "hello world", "one two three", "a x c d"],
)
"""Hypotheses and references."""


def sets(seed: int, rows: int, dims: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((dims, dims))
    return rng.standard_normal((rows, dims)), rng.standard_normal((rows + 5, dims)) @ mixing + 0.5


def logits(seed: int, rows: int = 60, classes: int = 12) -> np.ndarray:
    return 2 * np.random.default_rng(seed).standard_normal((rows, classes))


def signals(seed: int, samples: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Estimate and target."""
    rng = np.random.default_rng(seed)
    target = rng.standard_normal(samples) + 0.3
    return 0.4 * target + 0.1 * seed * rng.standard_normal(samples) - 0.2, target
