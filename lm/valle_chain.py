"""The frames of a group one after the other: each sees those of the group before it.

VALL-E 2 draws all frames of a group at once, as if they did not depend on each other; neighbouring frames of speech do.
Here the id of the frame before, through a small layer, is added to what the network knows of the step. It costs
little beside a step of the network, which still reads a group at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcodec_lm.configs.valle import ValleConfig
from xcodec_lm.lm.cache import KVCache


def frame_rows(ids: Tensor, config: ValleConfig) -> Tensor:
    """Rows of the table of audio for ids of groups: a code's is the same in all places; specials stand behind."""
    group, size = config.group, config.codebook_size
    return torch.where(ids < group * size, ids % size, ids - (group - 1) * size)


class GroupChain(nn.Module):
    """Output head of an AR whose groups are drawn frame by frame; the engine drives it as it does an inner model.

    Args:
        audio: the network's own table of audio, read here as well.
        config: sizes.
    """

    def __init__(self, audio: nn.Embedding, config: ValleConfig):
        super().__init__()
        dim, vocab_size = config.dim, config.layout.vocabulary_size
        self.config, self.table = config, [audio]  # in a list: its weights are the network's, not this module's
        self.before = nn.Linear(dim, dim, bias=False)
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.fc, self.proj = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.head = nn.Linear(dim, vocab_size, bias=False)
        self.scale = dim**0.5  # embeddings are kept small, see `valle_blocks`

    def forward(self, hidden: Tensor, steps: Tensor) -> Tensor:
        """Logits (B, L, W, V) of all frames of the groups.

        Args:
            hidden: (B, L, D) of the network.
            steps: (B, L, W) ids of the steps; the last frame's are not read.
        """
        before = F.pad(self._read(steps[..., :-1]), (0, 0, 1, 0))  # (B, L, W, D)
        return self._logits(hidden[:, :, None], before)

    def join(self, hidden: Tensor) -> Tensor:
        """(B, D) of the network, as `step` takes it."""
        return hidden

    def new_cache(self, batch: int) -> KVCache:
        """A cache that holds nothing: a frame depends on the one before alone."""
        return KVCache(0, batch, 1, 1, 1, self.before.weight)

    def step(self, joined: Tensor, ids: Tensor | None, cache: KVCache) -> Tensor:
        """Logits (B, V) of the next frame of the group.

        Args:
            joined: (B, D) of the network.
            ids: (B,) drawn for the frame before; None for the first.
            cache: not read.
        """
        return self._logits(joined, joined.new_zeros(1) if ids is None else self._read(ids))

    def _read(self, ids: Tensor) -> Tensor:
        return self.before(F.embedding(frame_rows(ids, self.config), self.table[0].weight) * self.scale)

    def _logits(self, hidden: Tensor, before: Tensor) -> Tensor:
        x = hidden + before
        return self.head(x + self.proj(F.relu(self.fc(self.norm(x)))))
