"""Decoding with a key-value cache: the prompt is read once, then every step reads one id.

When the block is full, the last half of the sequence, cut at a frame boundary, becomes the new context and is read
again. So a step costs the same however long the sequence, and a model continues beyond the length it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from xcodec_lm.codec.runtime.order import derive_seed, generator
from xcodec_lm.configs.errors import TokenError, UsageError
from xcodec_lm.lm.gpt import GPT, KVCache
from xcodec_lm.lm.layouts import Layout
from xcodec_lm.lm.sampling import Sampling, draw

GREEDY = Sampling(temperature=0)


@torch.inference_mode()
def generate(
    model: GPT,
    layout: Layout,
    prompt_ids: Tensor,
    frames: int,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    seed: int | Sequence[int] = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Continues prompts by a number of frames.

    Args:
        model: in eval mode.
        layout: what the ids mean; decides which of them may be drawn at each position.
        prompt_ids: (B, L) ids of whole frames, without specials; L may be 0 where the vocabulary has bos.
        frames: how many frames to add.
        sampling: how ids are drawn.
        seed: one for all rows, of which the first uses it itself and the others seeds derived from it, or one a row.
            A row's draws depend on its own seed alone.
        progress: called with frames done and frames in all.

    Returns:
        (B, frames * ids_per_frame) int64, the new ids alone.

    Raises:
        TokenError: the prompt is no whole number of frames, has an id out of place, or is empty without bos.
        UsageError: `frames` is negative, or there are not as many seeds as rows.
    """
    rows, given = prompt_ids.shape
    if frames < 0:
        raise UsageError(f"the number of frames must not be negative, got {frames}")
    if not given and layout.vocabulary.bos is None:
        raise TokenError("an empty prompt cannot be continued: this vocabulary has no bos", "give at least one frame")
    layout.unpack(prompt_ids)  # raises where an id is out of place
    generators = _generators(seed, rows)
    total = given + frames * layout.ids_per_frame
    # The prompt and all that comes after it live in one buffer: bos if there is one, then ids by position.
    lead, block = layout.lead, model.config.block
    ids = torch.empty(rows, lead + total, dtype=torch.int64, device=model.device)
    if layout.vocabulary.bos is not None:
        ids[:, 0] = layout.vocabulary.bos
    ids[:, lead : lead + given] = prompt_ids
    ranges = [layout.logit_range(position) for position in range(layout.ids_per_frame)]
    cache = KVCache(model, rows, lead + min(block, total))
    room = 0  # codes that may still be read before the context must be cut
    for position in range(given, total):
        if room == 0:
            first = context_start(position, block, layout.ids_per_frame)
            cache.reset()
            context = ids[:, : lead + position] if first == 0 else _behind_lead(ids, lead, first, position)
            logits = model(context, cache, last_only=True)  # (B, 1, V)
            room = block - (position - first)
        else:
            logits = model(ids[:, lead + position - 1 : lead + position], cache)
            room -= 1
        ids[:, lead + position] = draw(logits[:, -1], ranges[position % len(ranges)], sampling, generators)
        if progress is not None and (position + 1) % layout.ids_per_frame == 0:
            progress((position + 1 - given) // layout.ids_per_frame, frames)
    return ids[:, lead + given :].clone()


def context_start(position: int, block: int, ids_per_frame: int) -> int:
    """First position of the context that predicts `position`, when it has to be read anew.

    Everything, while that fits the block; else the last half of a block, a little less so that it begins with a frame.
    """
    if position <= block:
        return 0
    frame = ids_per_frame
    # At least one code must be read; a block shorter than two frames then keeps the part of the frame begun.
    return min(-(-(position - block // 2) // frame) * frame, (position - 1) // frame * frame)


def _behind_lead(ids: Tensor, lead: int, first: int, stop: int) -> Tensor:
    return torch.cat([ids[:, :lead], ids[:, lead + first : lead + stop]], dim=1)


def _generators(seed: int | Sequence[int], rows: int) -> list[torch.Generator]:
    if isinstance(seed, int):
        seeds = [seed if row == 0 else derive_seed(seed, "row", row) for row in range(rows)]
    else:
        seeds = list(seed)
    if len(seeds) != rows:
        raise UsageError(f"{rows} prompts need {rows} seeds, got {len(seeds)}")
    return [generator(one, "sample") for one in seeds]
