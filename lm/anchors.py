"""What a language model of tokens must beat, and the bits per token that they are compared by.

All systems code the same tokens: every code of every recording once, no special ids. `bits` is -log2 of the probability
given to each code among those of its codebook. The anchors read codes frame by frame: t0q0, t0q1, ..., t1q0, ...
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.codec.runtime.order import derive_seed, generator
from xcodec_lm.configs.errors import TokenError
from xcodec_lm.lm.examples import recording_bits
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.layouts import Layout

Sizes = tuple[int, ...]
"""Codes in each codebook."""


class UnigramModel:
    """How often each code of each codebook occurs, with `alpha` added to every count so that none is impossible.

    Args:
        sizes: codes in each codebook; every codebook has counts of its own.
        alpha: added to every count. The default of one half is Krichevsky and Trofimov's.
    """

    def __init__(self, sizes: Sizes, alpha: float = 0.5):
        self.sizes, self.alpha = sizes, alpha
        self.ranges = [(sum(sizes[:book]), sum(sizes[: book + 1])) for book in range(len(sizes))]
        self.probs = [np.full(high - low, 1 / (high - low)) for low, high in self.ranges]

    def fit(self, recordings: Iterable[Tensor]) -> UnigramModel:
        """Counts the codes (Q, T) of each recording; returns itself."""
        counts = [np.zeros(size) for size in self.sizes]
        for codes in recordings:
            for count, row in zip(counts, torch.as_tensor(codes).numpy(), strict=False):
                count += np.bincount(row.astype(np.int64), minlength=len(count))
        self.probs = [(count + self.alpha) / (count.sum() + self.alpha * len(count)) for count in counts]
        return self

    def bits(self, codes: Tensor) -> np.ndarray:
        """(Q, T) bits of each code of a recording (Q, T)."""
        return -np.log2(_columns(self._probs(_numbers(codes, self.sizes)), len(self.sizes)))

    def _probs(self, numbers: np.ndarray) -> np.ndarray:
        probs = np.empty(len(numbers))
        for position, (low, _) in enumerate(self.ranges):
            probs[position :: len(self.ranges)] = self.probs[position][numbers[position :: len(self.ranges)] - low]
        return probs

    def sample(self, prompt: Tensor, frames: int, seed: int = 0) -> Tensor:
        """Codes (Q, frames) after a prompt (Q, T0), which this model does not look at."""
        rng = np.random.default_rng(derive_seed(seed, "unigram"))
        return torch.from_numpy(np.stack([rng.choice(len(p), frames, p=p) for p in self.probs]))


class BigramModel:
    """Each id given an id before it, interpolated with the unigram so that unseen pairs have a fair share.

    Absolute discounting: p(w | v) = max(c(v, w) - d, 0) / c(v) + d * n(v) / c(v) * p_unigram(w), where c counts pairs,
    n(v) is the number of different successors of v, and d = n1 / (n1 + 2 n2) from the numbers of pairs seen once and
    twice, kept within 0.1..0.95. The result is mixed with the unigram once more, at each position of a frame by the
    weight that codes every tenth training document best when the others are counted: few tokens otherwise make a
    bigram worse than its unigram. A predecessor never seen, and the first ids of a document, take the unigram.
    Source: Ney, Essen, Kneser 1994, "On structuring probabilistic dependences in stochastic language modelling".

    Args:
        sizes: codes in each codebook; the pairs of each are counted apart.
        lag: how many codes before the predecessor stands: 1 is the ordinary bigram, `len(sizes)` the same codebook one
            frame before, which knows more where a frame has several codes.
        alpha: of the unigram.
    """

    def __init__(self, sizes: Sizes, lag: int = 1, alpha: float = 0.5):
        self.sizes, self.lag, self.unigram, self.discount = sizes, lag, UnigramModel(sizes, alpha), 0.5
        self.weights = np.ones(len(sizes))
        self._pairs = self._pair_counts = self._heads = self._head_counts = self._successors = np.zeros(0, np.int64)

    def fit(self, documents: Iterable[Tensor]) -> BigramModel:
        """Counts the pairs of codes of each recording (Q, T); returns itself."""
        documents = [torch.as_tensor(codes) for codes in documents]
        held_out = documents[::10]
        if len(documents) > len(held_out):
            self._count([ids for index, ids in enumerate(documents) if index % 10])
            self._choose_weights(held_out)
        self._count(documents)
        return self

    def _count(self, documents: list[Tensor]) -> None:
        self.unigram.fit(documents)
        keys = [self._keys(_numbers(codes, self.sizes))[1] for codes in documents]
        self._pairs, self._pair_counts = np.unique(np.concatenate([np.zeros(0, np.int64), *keys]), return_counts=True)
        heads = self._pairs // sum(self.sizes)  # sorted, as the pairs are
        self._heads, first = np.unique(heads, return_index=True)
        if len(self._heads):
            self._head_counts = np.add.reduceat(self._pair_counts, first)
            self._successors = np.diff(np.append(first, len(self._pairs)))
            once, twice = (self._pair_counts == 1).sum(), (self._pair_counts == 2).sum()
            self.discount = float(np.clip(once / max(1, once + 2 * twice), 0.1, 0.95))

    def _choose_weights(self, documents: list[Tensor]) -> None:
        per_frame = len(self.sizes)
        for position in range(per_frame):
            pairs = [np.stack(self._probs(_numbers(codes, self.sizes)))[:, position::per_frame] for codes in documents]
            unigram, bigram = np.concatenate(pairs, axis=1)
            options = np.linspace(0, 0.99, 34)
            costs = [-np.log(weight * bigram + (1 - weight) * unigram).sum() for weight in options]
            self.weights[position] = options[int(np.argmin(costs))]

    def _keys(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sortable numbers of (position in frame, predecessor) and of (position in frame, predecessor, id)."""
        size = sum(self.sizes)
        positions = np.arange(self.lag, len(numbers)) % len(self.sizes)
        heads = positions * size + numbers[: len(positions)]
        return heads, heads * size + numbers[self.lag :]

    def _probs(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probability of each id under the unigram and under the discounted bigram."""
        unigram = self.unigram._probs(numbers)
        bigram = unigram.copy()
        heads, pairs = self._keys(numbers)
        totals = _look_up(self._heads, self._head_counts, heads)
        seen = _look_up(self._pairs, self._pair_counts, pairs)
        successors = _look_up(self._heads, self._successors, heads)
        mass = np.maximum(seen - self.discount, 0) + self.discount * successors * unigram[self.lag :]
        known = totals > 0
        bigram[self.lag :][known] = mass[known] / totals[known]
        return unigram, bigram

    def bits(self, codes: Tensor) -> np.ndarray:
        """(Q, T) bits of each code of a recording (Q, T)."""
        unigram, bigram = self._probs(_numbers(codes, self.sizes))
        weights = np.resize(self.weights, len(unigram))
        return -np.log2(_columns(weights * bigram + (1 - weights) * unigram, len(self.sizes)))

    def sample(self, prompt: Tensor, frames: int, seed: int = 0) -> Tensor:
        """Codes (Q, frames) after a prompt (Q, T0)."""
        rng = np.random.default_rng(derive_seed(seed, "bigram"))
        vocabulary, per_frame = sum(self.sizes), len(self.sizes)
        numbers = _numbers(prompt, self.sizes).tolist()
        start = len(numbers)
        for step in range(frames * per_frame):
            position = step % per_frame
            low, high = self.unigram.ranges[position]
            probs = self.unigram.probs[position]
            head = position * vocabulary + numbers[-self.lag] if len(numbers) >= self.lag else -1
            index = int(np.searchsorted(self._heads, head))
            if index < len(self._heads) and self._heads[index] == head:
                first, last = np.searchsorted(self._pairs, (head * vocabulary, (head + 1) * vocabulary))
                mass = self.discount * self._successors[index] * probs
                followers = self._pairs[first:last] - head * vocabulary - low
                mass[followers] += np.maximum(self._pair_counts[first:last] - self.discount, 0)
                weight = self.weights[position]
                probs = weight * mass / mass.sum() + (1 - weight) * probs
            numbers.append(low + int(rng.choice(high - low, p=probs)))
        made = np.array(numbers[start:], dtype=np.int64).reshape(-1, per_frame).T  # (Q, frames)
        return torch.from_numpy(made - np.array([low for low, _ in self.unigram.ranges])[:, None])


def repeat_last_frame(prompt: Tensor, frames: int) -> Tensor:
    """The last frame of a prompt (Q, T0), over and over: codes (Q, frames).

    Raises:
        TokenError: the prompt has no frame.
    """
    if not prompt.shape[1]:
        raise TokenError("the prompt has no frame to repeat")
    return prompt[:, -1:].repeat(1, frames)


def shuffled(codes: Tensor, seed: int = 0) -> Tensor:
    """The codes (Q, T) of a recording with those of each codebook in random order of time.

    Every codebook keeps exactly its codes; what goes with what, and what follows what, is lost.
    """
    orders = [torch.randperm(codes.shape[1], generator=generator(seed, "shuffle", q)) for q in range(len(codes))]
    return torch.stack([row[order] for row, order in zip(codes, orders, strict=True)])


def model_bits(
    model: GPT, layout: Layout, recordings: Iterable[Tensor], unigram: UnigramModel, batch: int = 4
) -> np.ndarray:
    """Mean bits per code of each codebook (R,), comparable with `mean_bits` of the anchors.

    Args:
        model: in eval mode.
        layout: of its ids.
        recordings: codes (MQ, T) of each recording.
        unigram: of the training codes, with the codebooks that the layout carries; codes a recording's first code in a
            vocabulary without bos.
        batch: windows read at once.

    Raises:
        TokenError: there is no recording.
    """
    found = []
    for codes in recordings:
        bits = recording_bits(model, layout, codes, batch)
        found.append(np.where(np.isnan(bits), unigram.bits(codes[list(layout.books)]), bits))
    return _mean(found)


def mean_bits(anchor: UnigramModel | BigramModel, recordings: Iterable[Tensor]) -> np.ndarray:
    """Mean bits per code of each codebook (Q,) of an anchor over recordings, codes (Q, T) each."""
    return _mean([anchor.bits(codes[: len(anchor.sizes)]) for codes in recordings])


def _mean(bits: list[np.ndarray]) -> np.ndarray:
    if not bits:
        raise TokenError("there is no recording to measure bits per token on", "choose a split that has recordings")
    return np.concatenate(bits, axis=1).mean(axis=1)


def _numbers(codes: Tensor, sizes: Sizes) -> np.ndarray:
    """Codes (Q, T) frame by frame, each codebook with numbers of its own."""
    bases = np.cumsum([0, *sizes[:-1]])
    return (torch.as_tensor(codes).cpu().numpy().astype(np.int64)[: len(sizes)] + bases[:, None]).T.reshape(-1)


def _columns(values: np.ndarray, books: int) -> np.ndarray:
    """Values frame by frame as (Q, T)."""
    return values.reshape(-1, books).T


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Values of sorted keys; 0 where there is no such key."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[index] == wanted, values[index], 0)
