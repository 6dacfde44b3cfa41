"""The key-value cache: what attention has read, in memory taken once.

A cache says itself how a forward pass uses it. Rows of equal length share slices of it, which is the fastest; rows of
different lengths, or a pass that is captured as a CUDA graph, attend to the memory as a whole under a mask.

A row may begin with a prefix whose positions all see each other, a text: what comes behind it sees it and is causal.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.configs.errors import TokenError


class KVCache:
    """Keys and values of the positions that each row has read.

    Args:
        layers: attention layers.
        batch: rows.
        heads: of keys and values.
        positions: most positions that a row will read.
        head_dim: width of a head.
        like: a tensor on the device and of the type that the cache is to have.

    Attributes:
        lengths: (B,) positions read by each row.
        prefixes: (B,) int64 how many of them are a prefix, on the cache's device, where a captured pass reads it.
    """

    def __init__(self, layers: int, batch: int, heads: int, positions: int, head_dim: int, like: Tensor):
        # Zeros: memory that was never written is masked, but a NaN in it would still spread.
        self.keys = torch.zeros(layers, batch, heads, positions, head_dim, device=like.device, dtype=like.dtype)
        self.values = torch.zeros_like(self.keys)
        self.lengths = np.zeros(batch, dtype=np.int64)
        self.prefixes = torch.zeros(batch, dtype=torch.int64, device=like.device)
        self._even = True
        self._start = self._stop = 0
        self._places: Tensor | None = None
        self._mask: Tensor | None = None

    @property
    def capacity(self) -> int:
        """Most positions that fit."""
        return self.keys.shape[3]

    def rows(self, first: int, stop: int) -> KVCache:
        """A cache of some rows, in the same memory."""
        part = object.__new__(KVCache)
        part.keys, part.values = self.keys[:, first:stop], self.values[:, first:stop]
        part.lengths, part.prefixes = self.lengths[first:stop], self.prefixes[first:stop]
        part._even, part._start, part._stop, part._places, part._mask = True, 0, 0, None, None
        return part

    def move(self, source: int, target: int, count: int | None = None) -> None:
        """Copies the first `count` positions that a row has read to another row; None copies all."""
        count = int(self.lengths[source]) if count is None else count
        self.keys[:, target, :, :count] = self.keys[:, source, :, :count]
        self.values[:, target, :, :count] = self.values[:, source, :, :count]
        self.lengths[target] = count
        self.prefixes[target] = self.prefixes[source]

    def take_from(self, other: KVCache) -> None:
        """Copies all that a smaller cache holds."""
        count = other.capacity
        self.keys[:, :, :, :count], self.values[:, :, :, :count] = other.keys, other.values
        self.lengths[:] = other.lengths
        self.prefixes.copy_(other.prefixes)

    def reset(self) -> None:
        """Forgets what was read."""
        self.lengths[:] = 0
        self.prefixes.zero_()

    def begin(self, count: int, prefix: int = 0) -> Tensor:
        """Prepares a pass that reads `count` positions a row.

        Args:
            count: positions.
            prefix: so many of them, the first, are a prefix, whose positions all see each other.

        Returns:
            Their numbers, (count,) where the rows are equally long, else (B, count).

        Raises:
            TokenError: they do not fit, or a prefix would stand behind what was read.
        """
        longest = int(self.lengths.max()) + count
        if longest > self.capacity:
            raise TokenError(
                f"{longest} positions do not fit the {self.capacity} of the model or its cache",
                "give fewer ids at once",
            )
        if prefix and self.lengths.any():
            raise TokenError("a prefix stands in front, but rows of the cache have read something", "reset them first")
        self._even = bool((self.lengths == self.lengths[0]).all())
        self._start, self._stop = int(self.lengths[0]), longest
        device = self.keys.device
        if self._even:
            self._mask = None
            if self._start and count > 1:  # a causal mask that begins behind what was read
                self._mask = torch.ones(count, longest, dtype=torch.bool, device=device).tril(self._start)
            if prefix:
                self.prefixes.fill_(prefix)
                self._mask = prefix_causal(count, prefix, device)
            self.lengths += count
            return torch.arange(self._start, longest, device=device)
        steps = torch.arange(count, device=device)
        self._places = torch.from_numpy(self.lengths).to(device)[:, None] + steps  # (B, count)
        self._mask = (torch.arange(longest, device=device) <= self._places[:, :, None])[:, None]  # (B, 1, count, P)
        self.lengths += count
        return self._places

    def behind_prefix(self, positions: Tensor) -> Tensor:
        """Numbers of positions as `begin` and `begin_at` give them, counted from the end of each row's prefix: (B, L).

        Within the prefix they are 0, and so in lanes that hold nothing but are read along.
        """
        return (positions - self.prefixes[:, None]).clamp(min=0)

    def begin_at(self, places: Tensor) -> Tensor:
        """Prepares a pass whose shapes do not depend on the lengths, for CUDA graphs: one position a row.

        Args:
            places: (B, 1) int64 on the cache's device, the number of each row's position. `lengths` is left alone.
        """
        self._even, self._places, self._stop = False, places, self.capacity
        self._mask = (torch.arange(self.capacity, device=places.device) <= places[:, :, None])[:, None]
        return places

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Adds a layer's keys and values (B, heads, L, D); returns all that may be attended to, and the mask."""
        mine, yours = self.keys[layer], self.values[layer]
        if self._even:
            mine[:, :, self._start : self._stop], yours[:, :, self._start : self._stop] = keys, values
        else:
            assert self._places is not None
            index = self._places[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
            mine.scatter_(2, index, keys.to(mine.dtype))
            yours.scatter_(2, index, values.to(yours.dtype))
        return mine[:, :, : self._stop], yours[:, :, : self._stop], self._mask


def prefix_causal(count: int, prefix: int, device: torch.device) -> Tensor:
    """(count, count) bool: the first `prefix` positions see each other, all see those, and else only what is before."""
    mask = torch.ones(count, count, dtype=torch.bool, device=device).tril()
    mask[:, :prefix] = True
    return mask
