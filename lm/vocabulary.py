"""Ids of codes and of special tokens: which number stands for which code of which codebook.

Ids of codes begin at `base`, codebook after codebook (`offset`), or all codebooks use the same ones (`shared`). Special
ids follow and the total is rounded up, so that codes keep their numbers whatever is added. A `base` above 0 leaves the
ids of a text model in front: X-Codec 2's single codebook lies behind those of LLaSA, X-Codec's codebooks behind YuE's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xcodec_lm.configs.errors import ConfigError

ROUND_TO = 64
"""Vocabularies with special ids grow to a multiple of this, which matrix kernels like."""
SPECIALS = 3
"""bos, eos, pad."""


@dataclass(frozen=True)
class Vocabulary:
    """Ids of the codes of some tables, and special ids.

    Attributes:
        sizes: codes in each table; a table is a codebook, or, in the layout `grouped`, a place in the group.
        shared: whether all tables use the same ids, instead of each its own.
        specials: whether bos, eos and pad follow the codes.
        base: id of the first code of the first table; smaller ones belong to somebody else.
        total: ids in all where a model fixes them; 0 takes what is needed.

    Raises:
        ConfigError: `total` does not hold the codes and specials.
    """

    sizes: tuple[int, ...]
    shared: bool = False
    specials: bool = True
    base: int = 0
    total: int = 0

    def __post_init__(self):
        if self.total and self.total < self._needed:
            raise ConfigError(
                f"layout.vocabulary_size is {self.total}, but the ids in use are 0..{self._needed - 1}", "raise it"
            )

    @property
    def codes(self) -> int:
        """Number of ids that stand for codes."""
        return max(self.sizes) if self.shared else sum(self.sizes)

    @property
    def _needed(self) -> int:
        return self.base + self.codes + (SPECIALS if self.specials else 0)

    @property
    def size(self) -> int:
        """Number of ids in all: with specials rounded up, the ids of the rounding mean nothing."""
        return self.total or (-(-self._needed // ROUND_TO) * ROUND_TO if self.specials else self._needed)

    @property
    def bos(self) -> int | None:
        """Id before the first code, or None."""
        return self.base + self.codes if self.specials else None

    @property
    def eos(self) -> int | None:
        """Id after the last frame of a recording, or None."""
        return self.base + self.codes + 1 if self.specials else None

    @property
    def pad(self) -> int | None:
        """Id of cells that hold no code, or None."""
        return self.base + self.codes + 2 if self.specials else None

    @property
    def dtype(self) -> np.dtype:
        """Smallest type that stores the ids."""
        return np.dtype("<u2" if self.size <= 1 << 16 else "<i4")

    def first_id(self, table: int) -> int:
        """Id of code 0 of a table."""
        return self.base + (0 if self.shared else sum(self.sizes[:table]))

    def id_range(self, table: int) -> tuple[int, int]:
        """Ids of a table, (low, high), high exclusive."""
        return self.first_id(table), self.first_id(table) + self.sizes[table]
