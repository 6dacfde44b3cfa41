"""VALL-E's second part: it refines speech, adding codebook after codebook, each over all frames at once.

Stage b predicts codebook b from the text and the sum of the embeddings of codebooks 0 to b - 1; everything sees
everything. Frames of an acoustic prompt show all their codebooks. The stage reaches the network through its norms
alone. A codebook that is predicted has as its head, in the `natural` tie, its own embedding.

Source: VALL-E, arXiv 2301.02111, section 4.2.2. The public code ties each head to the embedding one codebook too far
(`tie: repo`, which the X-Codec paper trained).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.configs.errors import ConfigError, TokenError, UsageError
from xcodec_lm.configs.valle import ValleConfig
from xcodec_lm.lm.sampling import Sampling, draw, row_noise
from xcodec_lm.lm.valle_blocks import init_weights, sinusoid
from xcodec_lm.lm.valle_model import ValleModel

POSITIONS_AT_ONCE = 16_384
"""Positions, padding included, that `refine` takes through the network together."""
EXPECTING = 0.7
"""Temperature of the expectation. A small model is less sure than it should be: measured, 0.7 comes nearer than 1."""


class ValleNAR(ValleModel):
    """The non-autoregressive model of all codebooks but the first.

    Args:
        config: sizes.

    Raises:
        ConfigError: there is nothing to refine.
    """

    kind = "xcodec_lm_valle_nar"

    def __init__(self, config: ValleConfig):
        super().__init__(config, adaptive=True)
        if config.n_q < 2:
            raise ConfigError("a NAR model needs model.n_q of at least 2", "train the AR model alone")
        self.tables = nn.ModuleList([nn.Embedding(config.codebook_size, config.dim) for _ in range(config.n_q)])
        self.stages = nn.Embedding(config.n_q - 1, config.dim)
        own = {"natural": 0, "repo": 1, "none": config.n_q - 1}[config.tie]
        self.heads = nn.ModuleList([nn.Linear(config.dim, config.codebook_size, bias=False) for _ in range(own)])
        init_weights(self, config.layers)

    def _head(self, stage: int) -> nn.Module:
        """The linear layer, or the table that serves as one, for codebook `stage`."""
        if self.config.tie == "none":
            return self.heads[stage - 1]
        if self.config.tie == "natural":
            return self.tables[stage]
        return self.tables[stage + 1] if stage + 1 < self.config.n_q else self.heads[0]

    def logits(self, hidden: Tensor, stage: Tensor) -> Tensor:
        """Logits of the codes that each position predicts.

        Args:
            hidden: (..., D) of `hidden_rows`; give only the positions that a loss or a draw needs.
            stage: (...) int64, the codebook of each, 1 to n_q - 1.

        Returns:
            (..., K).

        Raises:
            TokenError: a stage that there is none of.
        """
        flat, which = hidden.reshape(-1, hidden.shape[-1]), stage.reshape(-1)
        order = which.argsort(stable=True)
        counts = torch.bincount(which, minlength=self.config.n_q).tolist()
        if counts[0] or len(counts) > self.config.n_q:
            raise TokenError(f"stages must lie in 1..{self.config.n_q - 1}, got {int(which.min())}..{int(which.max())}")
        parts = []
        # Heads that no position needs take part as well, with no rows, so that every parameter has a gradient.
        for book, part in enumerate(flat[order].split(counts[1:]), start=1):
            head = self._head(book)
            parts.append(F.linear(part, head.weight) if isinstance(head, nn.Embedding) else head(part))
        found = torch.cat(parts)
        return found[order.argsort()].view(*stage.shape, -1)

    def embed_frames(self, codes: Tensor, shown: Tensor) -> Tensor:
        """Sums of the embeddings of codes (B, T, n_q) that are `shown` (B, T, n_q) bool: (B, T, D), no positions."""
        x = torch.zeros((), device=self.device, dtype=self.text.weight.dtype)
        for book, table in enumerate(self.tables):
            here = shown[..., book]
            rows = table(codes[..., book].masked_fill(~here, 0))
            x = x + rows * here[..., None]  # (B, T, D)
        return x * self.scale

    def hidden_rows(
        self,
        text_ids: Tensor,
        codes: Tensor,
        text: Tensor,
        places: Tensor,
        mask: Tensor,
        stage: Tensor,
        given: Tensor,
    ) -> Tensor:
        """What the heads get for packed rows of several documents, (B, L, D); see `read_rows`."""
        books = torch.arange(self.config.n_q, device=codes.device)
        shown = (given[..., None] | (books < stage[..., None])) & ~text[..., None]  # (B, L, n_q)
        at = sinusoid(places, self.config.dim).to(self.text.weight.dtype)
        words = self.embed_text(text_ids.masked_fill(~text, 0)) + at
        x = torch.where(text[..., None], words, self.drop(self.embed_frames(codes, shown) + at))
        return self.trunk(x, mask=mask, condition=(self.stages.weight, (stage - 1).clamp(min=0)))

    def read_rows(
        self,
        text_ids: Tensor,
        codes: Tensor,
        text: Tensor,
        places: Tensor,
        mask: Tensor,
        stage: Tensor,
        given: Tensor,
    ) -> Tensor:
        """Logits of packed rows of several documents, each a text and frames behind it.

        Args:
            text_ids: (B, L) int64, read where there is text.
            codes: (B, L, n_q) int64, read where there are frames and they are shown.
            text: (B, L) bool, whether a position holds text.
            places: (B, L) int64, counted from 0 in each text, and from 0 in each document's frames.
            mask: (B, 1, L, L) of `valle_blocks.full_mask`.
            stage: (B, L) int64, the codebook that each document predicts, 1 to n_q - 1; 0 in padding. (B, 1) where a
                row has one stage.
            given: (B, L) bool, frames of a prompt, which show all codebooks; the others show codebooks 0 to stage - 1.

        Returns:
            (B, L, K) of the codebook `stage`, also where there is nothing to predict.
        """
        hidden = self.hidden_rows(text_ids, codes, text, places, mask, stage, given)
        return self.logits(hidden, stage.clamp(min=1).expand(hidden.shape[:2]))


@torch.inference_mode()
def refine(
    model: ValleNAR,
    texts: Sequence[Tensor],
    prompts: Sequence[Tensor | None],
    firsts: Sequence[Tensor],
    sampling: Sampling | None = None,
    seed: int | Sequence[int] = 0,
    n_q: int | None = None,
    vectors: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Adds all other codebooks to speech of which the first is known; each utterance gets what it would get alone.

    Args:
        model: in eval mode.
        texts: (S,) ids of each utterance, of the prompt and of what is spoken behind it.
        prompts: (Q, P) codes of what is heard first, Q at least n_q; None where there is nothing.
        firsts: (P + T,) or (1, P + T) codes of the first codebook, prompt included, as the AR model made them.
        sampling: how codes are drawn; None takes the most likely ones. Settings for single codebooks count; what looks
            at the codes before has no meaning here.
        seed: one for all utterances, of which the first uses it itself and the others seeds derived from it, or one for
            each. The seed that the AR model drew with may be used again: the draws are others.
        n_q: codebooks to end with; None gives all.
        vectors: (K, V) what the codec's codes of each codebook but the first stand for. With them, and without
            `sampling`, a code is the one nearest to the mean vector that the model expects: of all codes it has the
            least expected squared error. Where a model is unsure, the likeliest code is far from most that it may be.

    Returns:
        (n_q, P + T) int64 codes of each utterance on the CPU, the prompt in front.

    Raises:
        TokenError: codes or ids that the model does not have, a prompt with fewer codebooks than the model, or not the
            one that `firsts` begins with.
        UsageError: as many texts, prompts, firsts and seeds were not given, `n_q` or a sampling setting does not fit.
    """
    count, n_q = len(texts), model.config.n_q if n_q is None else n_q
    if isinstance(seed, int):
        seeds = [seed if row == 0 else derive_seed(seed, "row", row) for row in range(count)]
    else:
        seeds = list(seed)
    if not count == len(prompts) == len(firsts) == len(seeds):
        raise UsageError(
            f"{count} texts need as many prompts, first codebooks and seeds, got {len(prompts)}, {len(firsts)} and "
            f"{len(seeds)}"
        )
    if not 1 <= n_q <= model.config.n_q:
        raise UsageError(f"n_q must lie in 1..{model.config.n_q}, the codebooks of the model, got {n_q}")
    if vectors is not None and sampling is None and len(vectors) < n_q - 1:
        raise UsageError(f"{n_q} codebooks need vectors of {n_q - 1}, got {len(vectors)}")
    nearest = None if sampling is not None or vectors is None else [part.to(model.device).float() for part in vectors]
    sampling = Sampling(temperature=0) if sampling is None else sampling
    if sampling.history or sampling.cfg_scale != 1:
        raise UsageError(
            "the other codebooks are drawn for all frames at once: repetition settings and guidance do not apply",
            "leave out ras_window, repetition_penalty and cfg_scale",
        )
    utterances = [
        _Utterance(model, text, prompt, first, derive_seed(own, "refine"))
        for text, prompt, first, own in zip(texts, prompts, firsts, seeds, strict=True)
    ]
    for group in _groups(utterances):
        _refine_group(model, group, sampling, n_q, nearest)
    return [one.codes[:n_q].clone() for one in utterances]


class _Utterance:
    """One utterance of `refine`: its text, its codes as far as they are known, and the frames to predict."""

    def __init__(self, model: ValleNAR, text: Tensor, prompt: Tensor | None, first: Tensor, seed: int):
        n_q, size = model.config.n_q, model.config.codebook_size
        self.text, self.seed, first = text.cpu().long(), seed, first.cpu().long()
        model.check_text(self.text)
        if first.dim() not in (1, 2) or (first.dim() == 2 and len(first) != 1):
            raise TokenError(f"the first codebook must be codes (T,) or (1, T), got {tuple(first.shape)}")
        first = first.reshape(-1)
        known = torch.zeros(n_q, 0, dtype=torch.int64) if prompt is None else prompt.cpu().long()
        if known.dim() != 2 or len(known) < n_q:
            raise TokenError(
                f"a prompt must be codes (Q, P) with the {n_q} codebooks of the model, got {tuple(known.shape)}",
                f"encode it with n_q of {n_q} or more",
            )
        known = known[:n_q]
        for codes in (first, known):
            if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
                raise TokenError(f"codes must lie in 0..{size - 1}, got {int(codes.min())}..{int(codes.max())}")
        self.prompt_frames = known.shape[1]
        if not torch.equal(first[: self.prompt_frames], known[0]):
            raise TokenError(
                f"the first codebook must begin with that of the prompt, {self.prompt_frames} frames",
                "give what the AR model made, prompt included",
            )
        self.codes = torch.zeros(n_q, len(first), dtype=torch.int64)
        self.codes[0], self.codes[:, : self.prompt_frames] = first, known

    def __len__(self) -> int:
        return len(self.text) + self.codes.shape[1]


def _groups(utterances: list[_Utterance]) -> Iterator[list[_Utterance]]:
    """Utterances of about the same length, as many as fit the network at once; those with nothing to do left out."""
    group: list[_Utterance] = []
    for one in sorted(utterances, key=len):
        if one.codes.shape[1] == one.prompt_frames:
            continue
        if group and (len(group) + 1) * len(one) > POSITIONS_AT_ONCE:
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def nearest_to_expected(logits: Tensor, vectors: Tensor) -> Tensor:
    """The codes (F,) whose vectors are nearest to the mean vectors that logits (F, K) expect.

    Args:
        logits: of K codes.
        vectors: (K, V) of the codes.
    """
    expected = (logits.float() / EXPECTING).softmax(-1) @ vectors  # (F, V)
    return torch.cdist(expected, vectors).argmin(-1)


def _refine_group(
    model: ValleNAR, group: list[_Utterance], sampling: Sampling, n_q: int, nearest: Sequence[Tensor] | None
) -> None:
    """Fills the codes of some utterances, codebook after codebook."""
    device = model.device
    length = max(map(len, group))
    position = torch.arange(length, device=device)
    spoken = torch.tensor([len(one.text) for one in group], device=device)[:, None]  # (B, 1) where audio begins
    fixed = spoken + torch.tensor([one.prompt_frames for one in group], device=device)[:, None]
    ends = torch.tensor([len(one) for one in group], device=device)[:, None]
    text, given = position < spoken, (position >= spoken) & (position < fixed)  # (B, L)
    wanted = (position >= fixed) & (position < ends)
    places = torch.where(text, position, position - spoken)
    ids = pad_sequence([one.text for one in group], batch_first=True)
    ids = F.pad(ids, (0, length - ids.shape[1])).to(device)
    rows = [F.pad(one.codes.T, (0, 0, len(one.text), 0)) for one in group]  # (S + P + T, n_q) each
    codes = pad_sequence(rows, batch_first=True).to(device)  # (B, L, n_q)
    mask = (position < ends)[:, None, None]  # (B, 1, 1, L): padding is not seen
    counts = wanted.sum(1).tolist()
    for book in range(1, n_q):
        stage = torch.full((1, 1), book, device=device)
        hidden = model.hidden_rows(ids, codes, text, places, mask, stage, given)[wanted]  # (frames to predict, D)
        logits = model.logits(hidden, stage[0].expand(len(hidden)))
        if nearest is not None:
            codes[wanted, book] = nearest_to_expected(logits, nearest[book - 1])
            continue
        settings, noise = sampling.for_book(book), None
        if settings.temperature > 0:
            size = model.config.codebook_size
            noise = torch.cat([
                row_noise(one.seed, book, size * count).view(count, size)
                for one, count in zip(group, counts, strict=True)
            ])  # fmt: skip
        codes[wanted, book] = draw(logits, settings, noise)
    for one, row in zip(group, codes.cpu(), strict=True):
        one.codes[:] = row[len(one.text) : len(one)].T
