"""Conditions as a prefix: what a sequence is to be of, as vectors in front of its codes.

A condition is a vector - the embedding of a text, or of a sound - or the number of a class. It becomes `tokens` vectors
of the model's width, read in front of bos. A learned prefix that says nothing stands for no condition; trained on it
now and then, a model can be guided: the engine reads both prefixes into two lanes of one cache.

    front = model.prefix_of(vectors)                                     # (N, P, D)
    Request(500, prefix=front[0], negative=model.null_prefix(), sampling=Sampling(cfg_scale=3))

Sources: X-Codec, arXiv 2408.17175, section 4.3 (a CLAP vector by a linear layer); guidance: arXiv 2207.12598.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from xcodec_lm import configs
from xcodec_lm.codec.runtime.order import generator
from xcodec_lm.configs.conditioning import ConditionConfig
from xcodec_lm.configs.errors import ConfigError, TokenError
from xcodec_lm.configs.lm import GPTConfig
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.model_files import fill_model, read_model_config

# ------------------------------------------------------------------ the data


@dataclass(frozen=True)
class Pool:
    """Conditions of one kind, and which of them each recording has.

    Attributes:
        values: (V, dim) float32 vectors, or (V,) int64 numbers of classes.
        members: (M,) int64 places in `values`, those of a recording beside each other.
        starts: (R + 1,) int64 where each recording's members begin.
    """

    values: Tensor
    members: np.ndarray
    starts: np.ndarray

    @staticmethod
    def of(values: Tensor, places: Sequence[Sequence[int]]) -> Pool:
        """A pool of values, with the places of each recording's own in them; a recording may have none."""
        starts = np.cumsum([0, *map(len, places)])
        return Pool(values, np.array([place for own in places for place in own], dtype=np.int64), starts)

    def count(self, recording: int) -> int:
        """How many a recording has."""
        return int(self.starts[recording + 1] - self.starts[recording])

    def get(self, recording: int, number: int) -> Tensor:
        """The condition of a recording with this number, counted from 0: (dim,), or () of a class."""
        return self.values[self.members[self.starts[recording] + number]]


class Conditions:
    """What each recording of a store may be conditioned on, and what training draws of it.

    Args:
        pools: by name, such as text and audio; the first that a recording has is what validation takes.
        shares: how often training draws from each. A recording that lacks one draws from the others; a pool of share 0
            is never drawn from.
        drop: share of draws that are left out for the prefix that says nothing.
        seed: of the draws, which are a function of it and of the position in the endless sequence of examples.

    Raises:
        ConfigError: no pool has a share above 0.
    """

    def __init__(self, pools: Mapping[str, Pool], shares: Mapping[str, float], drop: float, seed: int):
        self.pools = {name: pool for name, pool in pools.items() if shares[name] > 0}
        if not self.pools:
            raise ConfigError("no kind of condition has a share above 0")
        self.shares, self.drop, self.seed = {name: shares[name] for name in self.pools}, drop, seed

    def has(self, recording: int) -> bool:
        """Whether there is anything to condition this recording on."""
        return any(pool.count(recording) for pool in self.pools.values())

    def draw(self, recording: int, position: int) -> tuple[Tensor, bool]:
        """The condition of a recording at a position of the sequence, and whether it is left out there."""
        left_out, kind, number = torch.rand(3, generator=generator(self.seed, "condition", position)).tolist()
        held = [name for name, pool in self.pools.items() if pool.count(recording)]
        bounds = np.cumsum([self.shares[name] for name in held])
        pool = self.pools[held[min(int((kind * bounds[-1] >= bounds).sum()), len(held) - 1)]]
        count = pool.count(recording)
        return pool.get(recording, min(int(number * count), count - 1)), left_out < self.drop

    def fixed(self, recording: int) -> Tensor:
        """The condition of a recording for validation: the first of the first pool that has one."""
        return next(pool for pool in self.pools.values() if pool.count(recording)).get(recording, 0)

    def digest(self) -> str:
        """Hash of all that is drawn from and how, so that a run can tell whether it goes on with the same."""
        digest = hashlib.sha256(repr((self.shares, self.drop, self.seed)).encode())
        for pool in self.pools.values():
            for array in (pool.values.numpy(), pool.members, pool.starts):
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


# ------------------------------------------------------------------ the model


class Conditioner(nn.Module):
    """Conditions as vectors of a model's width.

    A vector of unit length gives prefixes of the size of a GPT-2's embeddings, so that no norm is needed.

    Args:
        config: with its `size` set.
        dim: width of the model, D.
    """

    def __init__(self, config: ConditionConfig, dim: int):
        super().__init__()
        if config.size < 1:
            raise ConfigError("condition.size is 0", "give the width of the vectors, or the number of labels")
        self.config = config
        width = config.tokens * dim
        self.read = nn.Linear(config.size, width) if config.kind == "vector" else nn.Embedding(config.size, width)
        self.null = nn.Parameter(torch.zeros(config.tokens, dim).normal_(std=0.02))

    def forward(self, values: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Prefixes.

        Args:
            values: (N, size) float, or (N,) int64 numbers of classes.
            dropped: (N,) bool, which get the prefix that says nothing; None for none.

        Returns:
            (N, P, D).

        Raises:
            TokenError: vectors of another width, or a class that is none.
        """
        self._check(values)
        if self.config.kind == "vector":
            values = values.to(self.null.dtype)
        prefix = self.read(values).unflatten(-1, self.null.shape)  # (N, P, D)
        return prefix if dropped is None else torch.where(dropped[:, None, None], self.null.to(prefix.dtype), prefix)

    def _check(self, values: Tensor) -> None:
        size = self.config.size
        if self.config.kind == "vector" and (values.dim() != 2 or values.shape[1] != size):
            raise TokenError(
                f"the model is conditioned on vectors (N, {size}), got {tuple(values.shape)}",
                "embed with what it was trained with",
            )
        # On a GPU, asking for the values would make every step wait.
        if self.config.kind == "label" and values.device.type == "cpu" and len(values):
            low, high = int(values.min()), int(values.max())
            if low < 0 or high >= size:
                raise TokenError(f"class {low if low < 0 else high} is outside 0..{size - 1}")


class ConditionedGPT(GPT):
    """A decoder over ids behind a condition.

    Args:
        config: sizes.
        vocab_size: number of ids, `Layout.vocabulary.size`.
        condition: with its `size` set; its `tokens` are positions beside those of the block.
    """

    kind = "xcodec_lm_conditioned_gpt"

    def __init__(self, config: GPTConfig, vocab_size: int, condition: ConditionConfig):
        super().__init__(config, vocab_size, condition.tokens)
        self.condition = Conditioner(condition, config.dim)
        self.condition.apply(self._init)

    def prefix_of(self, values: Tensor) -> Tensor:
        """Conditions as the engine and `hidden` take them: (N, size) or (N,) classes -> (N, P, D).

        Raises:
            TokenError: they are none of this model's.
        """
        return self.condition(values.to(self.device))

    def null_prefix(self) -> Tensor:
        """(P, D), which says nothing.

        Raises:
            ConfigError: the model was never trained on it.
        """
        if not self.condition.config.drop:
            raise ConfigError(
                "this model always had a condition in training (condition.drop: 0), so guidance has nothing to "
                "compare with",
                "decode with guidance 1, or train with condition.drop 0.1",
            )
        return self.condition.null

    def read_rows(
        self,
        ids: Tensor,
        where: Tensor,
        values: Tensor,
        dropped: Tensor,
        places: Tensor | None = None,
        mask: Any = None,
    ) -> Tensor:
        """What the output matrix gets for rows that hold one or several documents, each behind its condition.

        Args:
            ids: (B, L, W) int64; where there is a prefix they are not read.
            where: (B, L) int64, the place of a position among the prefixes of all N conditions, (N * P); -1 for ids.
            values: (N, size) or (N,) conditions.
            dropped: (N,) bool, which of them are left out.
            places: (B, L), see `GPT.forward`.
            mask: see `GPT.forward`.

        Returns:
            (B, L, D).
        """
        fronts = self.condition(values, dropped).flatten(0, 1)  # (N * P, D)
        x = self.wte(ids).sum(dim=2)  # (B, L, D)
        x = torch.where((where >= 0)[..., None], fronts[where.clamp(min=0)].to(x.dtype), x)
        # The whole row goes in as what stands in front of no ids.
        return super().hidden(ids[:, :0, 0], prefix=x, places=places, mask=mask)

    def save_pretrained(self, folder: str | Path, extra: dict[str, Any] | None = None, half: bool = False) -> None:
        """See `GPT.save_pretrained`; config.json also has the `condition`."""
        super().save_pretrained(folder, {"condition": configs.to_dict(self.condition.config), **(extra or {})}, half)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str = "cpu") -> Self:
        """See `GPT.from_pretrained`."""
        folder = Path(folder)
        header, where = read_model_config(folder, cls.kind), f"{folder / 'config.json'}"
        config = configs.from_dict(header["model"], GPTConfig, where)
        condition = configs.from_dict(header["condition"], ConditionConfig, where)
        with torch.device("meta"):
            model = cls(config, int(header["vocab_size"]), condition)
        fill_model(model, folder)
        return model.to(device).order_for_decoding().eval()

    def like(self) -> Self:
        """A model of the same shape without weights, on the meta device."""
        with torch.device("meta"):
            return type(self)(self.config, self.vocab_size, self.condition.config)
