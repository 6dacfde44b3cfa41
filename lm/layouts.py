"""How codes (Q, T) become one sequence of ids, and back.

`first` keeps the first codebook; `flatten` writes n_q codebooks frame by frame (t-major: t0q0, t0q1, ..., t1q0, ...),
as the X-Codec paper's appendix and YuE do. Both are one family: position p of a sequence holds codebook p mod n_q.
Positions count codes, so bos is not one of them.

Decoders ask a layout which ids may stand at a position (`logit_range`) and where a sequence may be cut or end
(`ids_per_frame`), and so never emit an id that is not a code of its place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import TokenError
from xcodec_lm.configs.lm import LayoutConfig

ROUND_TO = 64
"""Vocabularies with special ids grow to a multiple of this, which matrix kernels like."""
IGNORED = -100
"""Target that no loss counts; the default `ignore_index` of PyTorch's cross entropy."""


@dataclass(frozen=True)
class Vocabulary:
    """Ids of codes and of special tokens.

    Attributes:
        sizes: codes in each of the codebooks that the sequence holds.
        shared: whether all codebooks use the same ids, instead of each its own.
        specials: whether bos, eos and pad follow the codes.
    """

    sizes: tuple[int, ...]
    shared: bool = False
    specials: bool = True

    @property
    def codes(self) -> int:
        """Number of ids that stand for codes; they are 0 to this, exclusive."""
        return max(self.sizes) if self.shared else sum(self.sizes)

    @property
    def size(self) -> int:
        """Number of ids in all: with specials rounded up, the ids of the rounding mean nothing."""
        return -(-(self.codes + 3) // ROUND_TO) * ROUND_TO if self.specials else self.codes

    @property
    def bos(self) -> int | None:
        """Id before the first code, or None."""
        return self.codes if self.specials else None

    @property
    def eos(self) -> int | None:
        """Id after the last code of a recording, or None."""
        return self.codes + 1 if self.specials else None

    @property
    def pad(self) -> int | None:
        """Id that fills rows of a batch, or None; padding is masked in the loss either way."""
        return self.codes + 2 if self.specials else None

    def base(self, book: int) -> int:
        """Id of code 0 of a codebook."""
        return 0 if self.shared else sum(self.sizes[:book])

    def id_range(self, book: int) -> tuple[int, int]:
        """Ids of a codebook, (low, high), high exclusive."""
        return self.base(book), self.base(book) + self.sizes[book]


@dataclass(frozen=True)
class Layout:
    """A layout for one codec; made by `layout_from`.

    Attributes:
        name: `first` or `flatten`.
        vocabulary: ids of the codes and specials.
    """

    name: str
    vocabulary: Vocabulary

    @property
    def n_q(self) -> int:
        """Codebooks in the sequence."""
        return len(self.vocabulary.sizes)

    @property
    def ids_per_frame(self) -> int:
        """Ids that one frame takes; sequences are cut, and may end, at multiples of it."""
        return self.n_q

    @property
    def lead(self) -> int:
        """Special ids in front of the codes: 1 (bos) or 0."""
        return 1 if self.vocabulary.specials else 0

    def logit_range(self, position: int) -> tuple[int, int]:
        """Ids (low, high), high exclusive, that may stand at a position, counted in codes from the start."""
        return self.vocabulary.id_range(position % self.n_q)

    def may_end(self, position: int) -> bool:
        """Whether eos may stand at a position, counted in codes from the start."""
        return self.vocabulary.specials and position % self.ids_per_frame == 0

    def allowed(self) -> Tensor:
        """(ids_per_frame, V) bool: the ids of each position of a frame, `logit_range` as a table."""
        table = torch.zeros(self.ids_per_frame, self.vocabulary.size, dtype=torch.bool)
        for position in range(self.ids_per_frame):
            low, high = self.logit_range(position)
            table[position, low:high] = True
        return table

    def pack(self, codes: Tensor) -> Tensor:
        """Codes as ids.

        Args:
            codes: (Q, T) or (B, Q, T) integers with at least `n_q` codebooks; the first `n_q` are taken.

        Returns:
            (T * n_q,) or (B, T * n_q) int64.

        Raises:
            TokenError: too few codebooks, or a code outside its codebook.
        """
        if codes.dim() not in (2, 3) or codes.shape[-2] < self.n_q:
            raise TokenError(f"layout {self.name} takes codes (Q, T) with Q >= {self.n_q}, got {tuple(codes.shape)}")
        codes = codes[..., : self.n_q, :].long()
        sizes, bases = self._columns(codes.device)
        bad = (codes < 0) | (codes >= sizes[:, None])
        if bad.any():
            place = bad.nonzero()[0].tolist()
            book, frame = place[-2:]
            value, size = int(codes[tuple(place)]), int(sizes[book])
            raise TokenError(f"code {value} of quantizer {book}, frame {frame} is outside 0..{size - 1}")
        return (codes + bases[:, None]).transpose(-1, -2).flatten(-2)  # (..., T, n_q) -> (..., L)

    def unpack(self, ids: Tensor) -> Tensor:
        """Ids as codes; the inverse of `pack`.

        Args:
            ids: (L,) or (B, L) integers without specials, L a multiple of `ids_per_frame`.

        Returns:
            (n_q, T) or (B, n_q, T) int64.

        Raises:
            TokenError: the length is no whole number of frames, or an id is not one of its position.
        """
        if ids.shape[-1] % self.ids_per_frame:
            raise TokenError(f"{ids.shape[-1]} ids are no whole number of frames of {self.ids_per_frame} ids")
        sizes, bases = self._columns(ids.device)
        codes = ids.long().unflatten(-1, (-1, self.n_q)).transpose(-1, -2) - bases[:, None]  # (..., n_q, T)
        bad = (codes < 0) | (codes >= sizes[:, None])
        if bad.any():
            place = bad.nonzero()[0].tolist()
            book, frame = place[-2:]
            low, high = self.vocabulary.id_range(book)
            value, position = int(codes[tuple(place)]) + low, frame * self.n_q + book
            raise TokenError(
                f"id {value} at position {position} is outside {low}..{high - 1}, the ids of quantizer {book}"
            )
        return codes

    def _columns(self, device: torch.device) -> tuple[Tensor, Tensor]:
        sizes = torch.tensor(self.vocabulary.sizes, device=device)
        return sizes, torch.tensor([self.vocabulary.base(book) for book in range(self.n_q)], device=device)

    def pack_frames(self, frames: np.ndarray) -> Tensor:
        """Ids (L,) of stored codes (T, Q), as `TokenStore.codes` gives them."""
        columns = np.ascontiguousarray(frames[:, : self.n_q].T).astype(np.int64)
        return self.pack(torch.from_numpy(columns))

    def example(self, ids: Tensor, start: int, length: int) -> tuple[Tensor, Tensor]:
        """What a model reads and predicts in one window of a document.

        The model reads bos, if there is one, and the codes of the window. Every position predicts the id after it; the
        last one predicts the document's next code, or eos where the document ends, so that all positions are trained.

        Args:
            ids: (L,) ids of the document, or of as much of it as holds the window and the id after it.
            start: first id of the window within `ids`.
            length: ids in the window; fewer where the document is shorter.

        Returns:
            inputs and targets, both (lead + codes in the window,); a target that does not exist is `IGNORED`.
        """
        window = ids[start : start + length]
        after = ids[start + length : start + length + 1]
        if not len(after):
            after = ids.new_tensor([IGNORED if self.vocabulary.eos is None else self.vocabulary.eos])
        following = torch.cat([window, after])
        if self.vocabulary.bos is None:
            return window, following[1:]
        return torch.cat([ids.new_tensor([self.vocabulary.bos]), window]), following

    def batch(self, examples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Examples as right-padded inputs and targets (B, L); padding is never a target."""
        length = max(len(inputs) for inputs, _ in examples)
        inputs = torch.full((len(examples), length), self.vocabulary.pad or 0)
        targets = torch.full((len(examples), length), IGNORED)
        for row, (read, predicted) in enumerate(examples):
            inputs[row, : len(read)] = read
            targets[row, : len(predicted)] = predicted
        return inputs, targets


def layout_from(config: LayoutConfig, spec: TokenSpec) -> Layout:
    """The layout of a configuration for the tokens of a codec.

    Raises:
        TokenError: the codec has fewer quantizers, or several tracks.
    """
    if config.n_q > spec.n_q:
        raise TokenError(
            f"layout.n_q is {config.n_q}, but {spec.name} has {spec.n_q} quantizers",
            f"set model.layout.n_q to at most {spec.n_q}",
        )
    if len(spec.tracks) > 1:
        raise TokenError(
            f"layout {config.name} holds one track, but {spec.name} has {', '.join(spec.tracks)}",
            "tokenize a codec of one track",
        )
    sizes = spec.codebook_sizes[: config.n_q]
    return Layout(config.name, Vocabulary(sizes, shared=config.ids == "shared", specials=config.specials == "standard"))
