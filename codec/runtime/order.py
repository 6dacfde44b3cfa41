"""Seeded order: every random draw is a pure function of (seed, what, step, item).

So a checkpoint holds no generator state, a resumed run draws what the uninterrupted one would have drawn, and the
number of processes does not change the order of the data.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *key: str | int) -> int:
    """A 63-bit seed for one purpose, such as `derive_seed(0, "crop", step, item)`."""
    text = "/".join(map(str, (seed, *key))).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def generator(seed: int, *key: str | int) -> torch.Generator:
    """A CPU generator for one purpose."""
    return torch.Generator().manual_seed(derive_seed(seed, *key))


class DataOrder:
    """An endless sequence of item indices: a new permutation every epoch.

    Args:
        items: how many items there are.
        seed: seed of the permutations.
    """

    def __init__(self, items: int, seed: int):
        if items < 1:
            raise ValueError("an order needs at least one item")
        self.items = items
        self.seed = seed
        # Two epochs: whoever reads ahead, as a packer does, goes to and fro between them at their border.
        self._permutations: dict[int, list[int]] = {}

    def __getitem__(self, position: int) -> int:
        """The item at a position of the endless sequence."""
        epoch, offset = divmod(position, self.items)
        if epoch not in self._permutations:
            permutation = torch.randperm(self.items, generator=generator(self.seed, "order", epoch)).tolist()
            kept = {number: old for number, old in self._permutations.items() if abs(number - epoch) == 1}
            self._permutations = {**kept, epoch: permutation}
        return self._permutations[epoch][offset]
