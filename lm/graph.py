"""One step of decoding in shapes that never change, captured as a CUDA graph where there is a GPU.

A small model's step is some hundred short kernels, and starting them one by one takes longer than running them. A graph
starts all at once. It needs fixed shapes and addresses: attention sees the whole cache under a mask.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from xcodec_lm.lm.cache import KVCache
from xcodec_lm.lm.depth import DepthModel
from xcodec_lm.lm.valle_chain import GroupChain

WARM_UP = 3
"""Runs before the capture, in which libraries choose their kernels and take their memory."""


class Decoder(Protocol):
    """A model that can be decoded step by step: `GPT`, `ValleAR`."""

    @property
    def inner(self) -> DepthModel | GroupChain | None:
        """The model of the ids within a step, or None where they do not depend on each other."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    @property
    def positions(self) -> int:
        """Most positions of a row, what stands in front of the ids included."""
        ...

    def new_cache(self, batch: int, positions: int) -> KVCache:
        """An empty cache, see `GPT.new_cache`."""
        ...

    def hidden(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        prefix: Tensor | None = None,
        *,
        places: Tensor | None = None,
        mask: Any = None,
        graph: bool = False,
    ) -> Tensor:
        """What the output matrix gets, see `GPT.hidden`."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        ...


class GraphStep:
    """Reads one step of every lane.

    Args:
        model: in eval mode.
        cache: all its lanes are read at every call, those in use and the others.
        width: ids in a step.
    """

    def __init__(self, model: Decoder, cache: KVCache, width: int):
        self.model, self.cache, self.width = model, cache, width
        lanes = len(cache.lengths)
        self._ids = torch.zeros(lanes, 1, width, dtype=torch.int64, device=model.device)
        self._places = torch.zeros(lanes, 1, dtype=torch.int64, device=model.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._hidden: Tensor | None = None

    def _run(self) -> Tensor:
        ids = self._ids[..., 0] if self.width == 1 else self._ids
        return self.model.hidden(ids, self.cache, places=self._places, graph=True)[:, 0]

    def _capture(self) -> None:
        # Warming up writes where the lanes will write next anyway.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._run()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._hidden = self._run()

    def __call__(self, ids: Tensor) -> Tensor:
        """(lanes in use, D) of ids (lanes in use, 1, W); the cache's lengths of those lanes grow by one."""
        used, lengths = len(ids), self.cache.lengths
        places = torch.from_numpy(lengths).clamp(max=self.cache.capacity - 1)[:, None]
        self._ids[:used].copy_(ids)
        self._places.copy_(places)
        if self.model.device.type == "cuda":
            if self._graph is None:
                self._capture()
            assert self._graph is not None
            self._graph.replay()
            hidden = self._hidden
        else:
            hidden = self._run()
        assert hidden is not None
        lengths[:used] += 1
        return hidden[:used].clone()
