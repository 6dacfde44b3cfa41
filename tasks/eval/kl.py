"""KL of what a classifier hears in made clips from what it hears in their references, pair by pair.

Two conventions are in use, and both start from a tagger's logits; the reference is the first argument of the
divergence. With softmax it is a divergence, 0 at its least. With sigmoid the terms of absent classes are left out, so
it is none: its sign means nothing and it is shown only to stand beside published figures.

Source: Iashin and Rahtu 2021 (arXiv 2110.08791), whose form, epsilon included, later work copied.
"""

from __future__ import annotations

import numpy as np

from xcodec_lm.tasks.eval.inception import log_softmax

EPSILON = 1e-6
"""Added to the made clip's probabilities."""


def kl_softmax(made: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """KL(reference || made) of classes that exclude each other.

    Args:
        made: (N, K) logits.
        reference: (N, K) logits of the clips that they are compared with, row by row.

    Returns:
        (N,) in nats; 0 for equal rows, but for EPSILON.

    Raises:
        ValueError: shapes differ.
    """
    _check(made, reference)
    log_q = log_softmax(reference)
    return (np.exp(log_q) * (log_q - np.log(np.exp(log_softmax(made)) + EPSILON))).sum(axis=1)


def kl_sigmoid(made: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The same with independent classes, over the classes' presence alone; may be negative.

    Args:
        made: (N, K) logits.
        reference: (N, K) logits.

    Returns:
        (N,) in nats.

    Raises:
        ValueError: shapes differ.
    """
    _check(made, reference)
    log_q = -np.logaddexp(0, -np.asarray(reference, dtype=np.float64))
    p = np.exp(-np.logaddexp(0, -np.asarray(made, dtype=np.float64)))
    return (np.exp(log_q) * (log_q - np.log(p + EPSILON))).sum(axis=1)


def _check(made: np.ndarray, reference: np.ndarray) -> None:
    if np.ndim(made) != 2 or np.shape(made) != np.shape(reference):
        raise ValueError(f"need logits (N, K) for the same clips, got {np.shape(made)} and {np.shape(reference)}")
