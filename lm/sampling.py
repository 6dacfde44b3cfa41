"""Drawing the next id from logits: filters, repetition-aware sampling, guidance, and noise that each request owns.

Every function here sees only the ids that may come next: the caller slices the logits to the range of the position
and, where a sequence may end, appends the logit of eos as one more column. So a draw is a column, 0 to K - 1, and no
filter can let an id of another codebook through.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from xcodec_lm.codec.runtime.order import generator
from xcodec_lm.configs.errors import UsageError

NO_ID = -1
"""Fills `recent` where a stream has fewer ids than the window."""


@dataclass(frozen=True)
class Sampling:
    """How ids are drawn. The filters act in this order: repetition penalty, temperature, top-k, top-p, min-p.

    Attributes:
        temperature: divides the logits; 0 takes the most likely id.
        top_k: keep the k most likely ids; 0 keeps all. Ids as likely as the k-th stay too.
        top_p: keep the fewest most likely ids whose probabilities sum to at least this; 1 keeps all.
        min_p: keep ids at least this many times as likely as the most likely one; 0 keeps all.
        ras_window: repetition-aware sampling looks at so many ids before this one; 0 is off. An id whose share of them
            exceeds `ras_threshold` is drawn anew, without top-k, top-p and min-p (VALL-E 2, arXiv 2406.05370,
            section 3.2.2, which uses 10).
        ras_threshold: that share; 0.1 allows one of ten.
        repetition_penalty: divides the positive logits, and multiplies the negative ones, of ids among the last
            `repetition_window`; 1 is off (CTRL, arXiv 1909.05858, section 4.1).
        repetition_window: how many ids the penalty looks back.
        cfg_scale: classifier-free guidance, for `guide`; 1 is off.
        books: settings of single codebooks, as (book, name, value): `[[0, temperature, 0.7], [3, top_k, 20]]`.

    Raises:
        UsageError: a value outside its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    ras_window: int = 0
    ras_threshold: float = 0.1
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    cfg_scale: float = 1.0
    books: tuple[tuple[int, str, float], ...] = ()

    def __post_init__(self):
        _check("temperature", self.temperature, 0 <= self.temperature < float("inf"), "a number from 0",
               "0 takes the most likely id")  # fmt: skip
        _check_whole("top-k", self.top_k, 0, "0 keeps all ids")
        _check("top-p", self.top_p, 0 < self.top_p <= 1, "in (0, 1]", "1 keeps all ids")
        _check("min-p", self.min_p, 0 <= self.min_p <= 1, "in [0, 1]", "0 keeps all ids")
        _check_whole("ras-window", self.ras_window, 0, "0 turns repetition-aware sampling off")
        _check("ras-threshold", self.ras_threshold, 0 <= self.ras_threshold <= 1, "in [0, 1]", "0.1 allows one of ten")
        penalty = self.repetition_penalty
        _check("repetition-penalty", penalty, 0 < penalty < float("inf"), "a number above 0", "1 turns it off")
        _check_whole("repetition-window", self.repetition_window, 1, "repetition-penalty 1 turns the penalty off")
        _check("cfg-scale", self.cfg_scale, 0 <= self.cfg_scale < float("inf"), "a number from 0", "1 turns it off")
        for entry in self.books:
            if len(entry) != 3 or entry[0] < 0 or entry[0] % 1:
                raise UsageError(f"books must hold (book, name, value), got {entry!r}", "books count from 0")
            if entry[1] not in _BOOK_SETTINGS:
                raise UsageError(
                    f"books: {entry[1]!r} is no setting of a codebook", f"settings: {', '.join(_BOOK_SETTINGS)}"
                )
            self.for_book(entry[0])  # raises where a value is out of its range

    @property
    def history(self) -> int:
        """How many of the last ids of a stream `draw` needs as `recent`, over all codebooks."""
        needed = self.ras_window
        if self.repetition_penalty != 1:
            needed = max(needed, self.repetition_window)
        return max([needed, *(self.for_book(book).history for book, _, _ in self.books)])

    def for_book(self, book: int) -> Sampling:
        """The settings of one codebook: these, with those that `books` gives for it."""
        if not self.books:
            return self
        own = {name: value for index, name, value in self.books if index == book}
        return replace(self, books=(), **{name: _as_kind(name, value) for name, value in own.items()})


_BOOK_SETTINGS = tuple(field.name for field in fields(Sampling) if field.name != "books")
_WHOLE = ("top_k", "ras_window", "repetition_window")


def _as_kind(name: str, value: float) -> float | int:
    return int(value) if name in _WHOLE and value == int(value) else value


def _check(name: str, value: float, fits: bool, what: str, hint: str) -> None:
    if not fits:
        raise UsageError(f"{name} must be {what}, got {value}", hint)


def _check_whole(name: str, value: float, least: int, hint: str) -> None:
    _check(name, value, value >= least and value % 1 == 0, f"a whole number from {least}", hint)


def row_noise(seed: int, position: int, count: int, redraw: bool = False) -> Tensor:
    """Exponential noise for one draw, a function of its arguments alone.

    So a request draws the same ids whatever shares its batch, whenever it joined, and on every device; where two
    columns are nearly tied, logits that differ by rounding can still decide otherwise. The first values do not depend
    on `count`: a column for eos changes no other.

    Args:
        seed: of the request.
        position: of the id in its sequence.
        count: columns, K.
        redraw: the second noise of the position, for repetition-aware sampling.

    Returns:
        (K,) float32 on the CPU, each ~ Exp(1) and above 0.
    """
    source = generator(seed, "redraw" if redraw else "draw", position)
    # In double precision: the coarse steps of 24 bits would let improbable ids among 65,536 win now and then.
    uniform = torch.rand(count, dtype=torch.float64, generator=source)
    return uniform.log_().neg_().float()  # rand gives no 1, so no noise is 0


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Logits moved away from the unconditional ones; 1 gives the conditional ones.

    Source: classifier-free guidance, Ho & Salimans 2022, arXiv 2207.12598, in the form that language models over audio
    use (MusicGen, arXiv 2306.05284, section 2.3).

    Args:
        conditional: (B, K).
        unconditional: (B, K).
        scale: `Sampling.cfg_scale`.

    Returns:
        (B, K) float32.
    """
    if scale == 1:
        return conditional.float()
    return unconditional.float() + scale * (conditional.float() - unconditional.float())


def penalise(logits: Tensor, sampling: Sampling, recent: Tensor | None) -> Tensor:
    """Logits (B, K) with the repetition penalty of `sampling` for the ids of `recent` (B, W)."""
    logits = logits.float()
    if sampling.repetition_penalty == 1 or recent is None or not recent.shape[1]:
        return logits
    window = recent[:, -sampling.repetition_window :].to(logits.device)
    # A column more takes the ids that stand for none, and those that have no column.
    count = logits.shape[1]
    places = torch.where((window >= 0) & (window < count), window, count)
    seen = torch.zeros(len(logits), count + 1, dtype=torch.bool, device=logits.device).scatter_(1, places, True)
    penalty = sampling.repetition_penalty
    return torch.where(seen[:, :count], torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def probabilities(logits: Tensor, sampling: Sampling, filtered: bool = True) -> Tensor:
    """What ids are drawn with, from their penalised logits.

    Args:
        logits: (B, K) of the allowed ids.
        sampling: with a temperature above 0.
        filtered: False leaves out top-k, top-p and min-p, as a redraw does.

    Returns:
        (B, K) float32, each row summing to 1.
    """
    logits = logits.float()
    logits = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature  # the maximum first: no overflow
    if not filtered:
        return logits.softmax(-1)
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < least, -torch.inf)
    probs = logits.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = probs.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # what more likely ids sum to; 0 for the first, which always stays
        probs = torch.zeros_like(probs).scatter(-1, order, ordered.masked_fill(before >= sampling.top_p, 0))
    if sampling.min_p > 0:
        probs = probs.masked_fill(probs < sampling.min_p * probs.amax(-1, keepdim=True), 0)
    return probs / probs.sum(-1, keepdim=True)


def is_repeated(ids: Tensor, recent: Tensor, sampling: Sampling) -> Tensor:
    """Whether repetition-aware sampling refuses ids: (B,) or (B, n) ids -> bool of the same shape.

    Args:
        ids: columns.
        recent: (B, W) columns of the ids before, the newest last.
        sampling: with `ras_window` above 0, by which counts are divided even where a stream is still shorter.
    """
    window = recent[:, -sampling.ras_window :].to(ids.device)
    counts = (ids[..., None] == (window if ids.dim() == 1 else window[:, None])).sum(-1)
    # Divided in double precision, a count that equals the threshold does not exceed it.
    return counts.double() / sampling.ras_window > sampling.ras_threshold


def draw(
    logits: Tensor,
    sampling: Sampling,
    noise: Tensor | None = None,
    recent: Tensor | None = None,
    redraw_noise: Tensor | None = None,
) -> Tensor:
    """One column for each row.

    An exponential race, argmax p / e with e ~ Exp(1), draws from p. Rows share their settings but not their noise, so
    a row's draw does not depend on the rows beside it.

    Args:
        logits: (B, K) of the allowed ids only; a column for eos may follow them.
        sampling: how; of the book that is drawn (`Sampling.for_book`).
        noise: (B, K), a row of `row_noise` for each; needed unless the temperature is 0.
        recent: (B, W) columns that were drawn last in the same stream (the same codebook), the newest last, `NO_ID`
            where there is none; at least `sampling.history` of them count.
        redraw_noise: (B, K), a row of `row_noise(..., redraw=True)` each; needed for repetition-aware sampling.

    Returns:
        (B,) int64 columns, on the device of `logits`. Temperature 0 takes the largest penalised logit, the first of
        equal ones, and never redraws.
    """
    logits = penalise(logits, sampling, recent)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    if noise is None:
        raise ValueError("a draw at a temperature above 0 needs noise")
    columns = (probabilities(logits, sampling) / noise.to(logits.device)).argmax(-1)  # (B,)
    if not sampling.ras_window or recent is None or not recent.shape[1]:
        return columns
    if redraw_noise is None:
        raise ValueError("repetition-aware sampling needs noise for a second draw")
    again = (probabilities(logits, sampling, filtered=False) / redraw_noise.to(logits.device)).argmax(-1)
    return torch.where(is_repeated(columns, recent, sampling), again, columns)  # both, without asking the device


def mixture(logits: Tensor, sampling: Sampling, recent: Tensor | None = None) -> Tensor:
    """The probabilities with which `draw` returns each column, repetition-aware sampling included.

    Redrawn mass goes to the unfiltered distribution: P(i) = f(i) [i not repeated] + (sum of f over repeated) p(i). An
    engine that samples by itself can be given their logarithm.

    Args:
        logits: (B, K) of the allowed ids.
        sampling: with a temperature above 0.
        recent: (B, W), as for `draw`.

    Returns:
        (B, K) float32, each row summing to 1.
    """
    logits = penalise(logits, sampling, recent)
    probs = probabilities(logits, sampling)
    if not sampling.ras_window or recent is None or not recent.shape[1]:
        return probs
    columns = torch.arange(logits.shape[1], device=logits.device).expand_as(probs)
    repeated = is_repeated(columns, recent, sampling)  # (B, K)
    refused = probs.masked_fill(~repeated, 0).sum(-1, keepdim=True)
    return probs.masked_fill(repeated, 0) + refused * probabilities(logits, sampling, filtered=False)
