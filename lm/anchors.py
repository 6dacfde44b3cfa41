"""What a language model of tokens must beat, and the bits per token that they are compared by.

All systems code the same tokens: every code of every recording once, no special ids. `bits` is -log2 of the probability
given to each id among the ids that its position allows, which is the distribution that decoding draws from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.codec.runtime.order import derive_seed, generator
from xcodec_lm.configs.errors import TokenError
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.layouts import Layout


class UnigramModel:
    """How often each code of each codebook occurs, with `alpha` added to every count so that none is impossible.

    Args:
        layout: of the ids; every position of a frame has counts of its own.
        alpha: added to every count. The default of one half is Krichevsky and Trofimov's.
    """

    def __init__(self, layout: Layout, alpha: float = 0.5):
        self.layout, self.alpha = layout, alpha
        self.ranges = [layout.logit_range(position) for position in range(layout.ids_per_frame)]
        self.probs = [np.full(high - low, 1 / (high - low)) for low, high in self.ranges]

    def fit(self, documents: Iterable[Tensor]) -> UnigramModel:
        """Counts the ids (L,) of each document; returns itself."""
        counts = [np.zeros(high - low) for low, high in self.ranges]
        for ids in documents:
            numbers = _numbers(ids)
            for position, (low, high) in enumerate(self.ranges):
                counts[position] += np.bincount(numbers[position :: len(self.ranges)] - low, minlength=high - low)
        self.probs = [(count + self.alpha) / (count.sum() + self.alpha * len(count)) for count in counts]
        return self

    def bits(self, ids: Tensor) -> np.ndarray:
        """(L,) bits of each id of a document."""
        numbers = _numbers(ids)
        probs = np.empty(len(numbers))
        for position, (low, _) in enumerate(self.ranges):
            probs[position :: len(self.ranges)] = self.probs[position][numbers[position :: len(self.ranges)] - low]
        return -np.log2(probs)

    def sample(self, prompt_ids: Tensor, frames: int, seed: int = 0) -> Tensor:
        """Ids (frames * ids_per_frame,) after a prompt (L,), which this model does not look at."""
        rng = np.random.default_rng(derive_seed(seed, "unigram"))
        columns = [
            low + rng.choice(high - low, frames, p=p) for (low, high), p in zip(self.ranges, self.probs, strict=True)
        ]
        return torch.from_numpy(np.stack(columns, axis=1).reshape(-1))


class BigramModel:
    """Each id given an id before it, interpolated with the unigram so that unseen pairs have a fair share.

    Absolute discounting: p(w | v) = max(c(v, w) - d, 0) / c(v) + d * n(v) / c(v) * p_unigram(w), where c counts pairs,
    n(v) is the number of different successors of v, and d = n1 / (n1 + 2 n2) from the numbers of pairs seen once and
    twice, kept within 0.1..0.95. The result is mixed with the unigram once more, at each position of a frame by the
    weight that codes every tenth training document best when the others are counted: few tokens otherwise make a
    bigram worse than its unigram. A predecessor never seen, and the first ids of a document, take the unigram.
    Source: Ney, Essen, Kneser 1994, "On structuring probabilistic dependences in stochastic language modelling".

    Args:
        layout: of the ids; the pairs of each position of a frame are counted apart.
        lag: how many ids before the predecessor stands: 1 is the ordinary bigram, `layout.ids_per_frame` the same
            codebook one frame before, which knows more where a frame has several codes.
        alpha: of the unigram.
    """

    def __init__(self, layout: Layout, lag: int = 1, alpha: float = 0.5):
        self.layout, self.lag, self.unigram, self.discount = layout, lag, UnigramModel(layout, alpha), 0.5
        self.weights = np.ones(layout.ids_per_frame)
        self._pairs = self._pair_counts = self._heads = self._head_counts = self._successors = np.zeros(0, np.int64)

    def fit(self, documents: Iterable[Tensor]) -> BigramModel:
        """Counts the pairs of ids of each document (L,); returns itself."""
        documents = [torch.as_tensor(ids) for ids in documents]
        held_out = documents[::10]
        if len(documents) > len(held_out):
            self._count([ids for index, ids in enumerate(documents) if index % 10])
            self._choose_weights(held_out)
        self._count(documents)
        return self

    def _count(self, documents: list[Tensor]) -> None:
        self.unigram.fit(documents)
        keys = [self._keys(_numbers(ids))[1] for ids in documents]
        self._pairs, self._pair_counts = np.unique(np.concatenate([np.zeros(0, np.int64), *keys]), return_counts=True)
        heads = self._pairs // self.layout.vocabulary.size  # sorted, as the pairs are
        self._heads, first = np.unique(heads, return_index=True)
        if len(self._heads):
            self._head_counts = np.add.reduceat(self._pair_counts, first)
            self._successors = np.diff(np.append(first, len(self._pairs)))
            once, twice = (self._pair_counts == 1).sum(), (self._pair_counts == 2).sum()
            self.discount = float(np.clip(once / max(1, once + 2 * twice), 0.1, 0.95))

    def _choose_weights(self, documents: list[Tensor]) -> None:
        per_frame = self.layout.ids_per_frame
        for position in range(per_frame):
            pairs = [np.stack(self._probs(_numbers(ids)))[:, position::per_frame] for ids in documents]
            unigram, bigram = np.concatenate(pairs, axis=1)
            options = np.linspace(0, 0.99, 34)
            costs = [-np.log(weight * bigram + (1 - weight) * unigram).sum() for weight in options]
            self.weights[position] = options[int(np.argmin(costs))]

    def _keys(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sortable numbers of (position in frame, predecessor) and of (position in frame, predecessor, id)."""
        size = self.layout.vocabulary.size
        positions = np.arange(self.lag, len(numbers)) % self.layout.ids_per_frame
        heads = positions * size + numbers[: len(positions)]
        return heads, heads * size + numbers[self.lag :]

    def _probs(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probability of each id under the unigram and under the discounted bigram."""
        unigram = 2.0 ** -self.unigram.bits(torch.from_numpy(numbers))
        bigram = unigram.copy()
        heads, pairs = self._keys(numbers)
        totals = _look_up(self._heads, self._head_counts, heads)
        seen = _look_up(self._pairs, self._pair_counts, pairs)
        successors = _look_up(self._heads, self._successors, heads)
        mass = np.maximum(seen - self.discount, 0) + self.discount * successors * unigram[self.lag :]
        known = totals > 0
        bigram[self.lag :][known] = mass[known] / totals[known]
        return unigram, bigram

    def bits(self, ids: Tensor) -> np.ndarray:
        """(L,) bits of each id of a document."""
        unigram, bigram = self._probs(_numbers(ids))
        weights = np.resize(self.weights, len(unigram))
        return -np.log2(weights * bigram + (1 - weights) * unigram)

    def sample(self, prompt_ids: Tensor, frames: int, seed: int = 0) -> Tensor:
        """Ids (frames * ids_per_frame,) after a prompt (L,) of whole frames."""
        rng = np.random.default_rng(derive_seed(seed, "bigram"))
        vocabulary, per_frame = self.layout.vocabulary.size, self.layout.ids_per_frame
        numbers = _numbers(prompt_ids).tolist()
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
        return torch.tensor(numbers[start:], dtype=torch.int64)


def repeat_last_frame(layout: Layout, prompt_ids: Tensor, frames: int) -> Tensor:
    """The last frame of a prompt (L,), over and over: ids (frames * ids_per_frame,).

    Raises:
        TokenError: the prompt has no frame.
    """
    if prompt_ids.shape[-1] < layout.ids_per_frame:
        raise TokenError("the prompt has no frame to repeat")
    return prompt_ids[-layout.ids_per_frame :].repeat(frames)


def shuffled(layout: Layout, ids: Tensor, seed: int = 0) -> Tensor:
    """The ids (L,) of a recording with the codes of each codebook in random order of time.

    Every codebook keeps exactly its codes; what goes with what, and what follows what, is lost.
    """
    frames = ids.reshape(-1, layout.ids_per_frame)  # (T, n_q)
    orders = [torch.randperm(len(frames), generator=generator(seed, "shuffle", q)) for q in range(frames.shape[1])]
    return torch.stack([frames[order, q] for q, order in enumerate(orders)], dim=1).reshape(-1)


def windows(length: int, layout: Layout, block: int) -> Iterator[int]:
    """Starts of the windows of whole frames that cover a document of `length` ids side by side."""
    return iter(range(0, length, block // layout.ids_per_frame * layout.ids_per_frame))


@torch.inference_mode()
def window_bits(model: GPT, layout: Layout, inputs: Tensor, targets: Tensor) -> Tensor:
    """Bits of every target of a batch of windows.

    Args:
        model: in eval mode.
        layout: of the ids.
        inputs: (B, L) as `Layout.batch` gives them.
        targets: (B, L); those that are `IGNORED` or no codes (eos) give 0.

    Returns:
        (B, L) float32.
    """
    logits = model(inputs.to(model.device)).float()  # (B, L, V)
    targets = targets.to(model.device)
    # The target of position i of the inputs is code i - lead + 1 of the window, and windows begin with a frame.
    places = torch.arange(1 - layout.lead, targets.shape[1] + 1 - layout.lead, device=targets.device)
    allowed = layout.allowed().to(targets.device)[places % layout.ids_per_frame]  # (L, V)
    log_probs = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
    is_code = (targets >= 0) & (targets < layout.vocabulary.codes)
    taken = log_probs.gather(-1, targets.where(is_code, 0)[..., None])[..., 0]  # (B, L)
    return torch.where(is_code, taken, 0) / -np.log(2)


def document_bits(model: GPT, layout: Layout, ids: Tensor, batch: int = 4) -> np.ndarray:
    """Bits of every id of a document under a model, each predicted exactly once.

    The document is cut into windows of the block, side by side. The first code of a window is predicted by the last
    position of the window before it; the document's very first code is predicted from bos, and is NaN in a vocabulary
    without bos, where nothing comes before it.

    Args:
        model: in eval mode.
        layout: of the ids.
        ids: (L,).
        batch: windows read at once.

    Returns:
        (L,) bits.
    """
    starts = list(windows(len(ids), layout, model.config.block))
    length = starts[1] if len(starts) > 1 else len(ids)
    result = np.full(len(ids), np.nan)
    for group in range(0, len(starts), batch):
        chosen = starts[group : group + batch]
        inputs, targets = layout.batch([layout.example(ids, start, length) for start in chosen])
        bits = window_bits(model, layout, inputs, targets).cpu().double().numpy()
        for row, start in enumerate(chosen):
            skip = layout.lead if start else 0  # bos sees nothing, the window before saw the same code with context
            first = start + 1 - layout.lead + skip
            stop = min(start + length + 1, len(ids))
            result[first:stop] = bits[row, skip : skip + stop - first]
    return result


def model_bits(
    model: GPT, layout: Layout, codes_list: Iterable[Tensor], unigram: UnigramModel, batch: int = 4
) -> float:
    """Mean bits per token of a model over recordings, comparable with `mean_bits` of the anchors.

    Args:
        model: in eval mode.
        layout: of its ids.
        codes_list: codes (Q, T) of each recording, Q >= layout.n_q.
        unigram: of the training tokens; codes a recording's first token in a vocabulary without bos.
        batch: windows read at once.

    Raises:
        TokenError: there is no recording.
    """
    all_bits = []
    for codes in codes_list:
        ids = layout.pack(codes)
        bits = document_bits(model, layout, ids, batch)
        all_bits.append(np.where(np.isnan(bits), unigram.bits(ids), bits))
    return _mean(all_bits)


def mean_bits(anchor: UnigramModel | BigramModel, codes_list: Iterable[Tensor]) -> float:
    """Mean bits per token of an anchor over recordings, codes (Q, T) each."""
    return _mean([anchor.bits(anchor.layout.pack(codes)) for codes in codes_list])


def _mean(bits: list[np.ndarray]) -> float:
    if not bits:
        raise TokenError("there is no recording to measure bits per token on", "choose a split that has recordings")
    return float(np.concatenate(bits).mean())


def _numbers(ids: Tensor) -> np.ndarray:
    return torch.as_tensor(ids).cpu().numpy().astype(np.int64)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Values of sorted keys; 0 where there is no such key."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[index] == wanted, values[index], 0)
