"""Decoding with a cache gives what decoding without one gives, at any length, and only codes of their place."""

from typing import Any

import pytest
import torch

from xcodec_lm.codec.runtime.order import generator
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import TokenError, UsageError
from xcodec_lm.configs.lm import GPTConfig, LayoutConfig
from xcodec_lm.lm.engine import GREEDY, context_start, generate
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.layouts import layout_from
from xcodec_lm.lm.sampling import Sampling, draw

SPEC = TokenSpec("toy", 16_000, 16_000, 320, (16, 16, 16, 16))


def make(specials, n_q=2, ids: Any = "offset", block=24):
    config = LayoutConfig("first" if n_q == 1 else "flatten", n_q, ids, specials)
    layout = layout_from(config, SPEC)
    torch.manual_seed(1)
    model = GPT(GPTConfig(layers=2, heads=2, dim=32, block=block, layout=config), layout.vocabulary.size).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model, layout


def prompts(layout, rows=2, frames=4):
    codes = torch.randint(0, 16, (rows, layout.n_q, frames), generator=torch.Generator().manual_seed(3))
    return layout.pack(codes)


@torch.no_grad()
def slow(model, layout, ids, frames, seeds):
    """Decoding that reads the whole context again at every step."""
    first, start, generators = 0, ids.shape[1], [generator(seed, "sample") for seed in seeds]
    for position in range(start, start + frames * layout.ids_per_frame):
        if position - first > model.config.block:
            first = context_start(position, model.config.block, layout.ids_per_frame)
        context = ids[:, first:]
        if layout.lead:
            context = torch.cat([torch.full((len(ids), 1), layout.vocabulary.bos), context], 1)
        new = draw(model(context)[:, -1], layout.logit_range(position), Sampling(), generators)
        ids = torch.cat([ids, new[:, None]], 1)
    return ids[:, start:]


@pytest.mark.parametrize("specials", ["none", "standard"])
@pytest.mark.parametrize(
    ("n_q", "ids", "block"), [(1, "offset", 24), (2, "shared", 24), (4, "offset", 23), (2, "offset", 3)]
)
@pytest.mark.parametrize("prompt_frames", [1, 6, 30])
def test_equals_decoding_without_a_cache_also_beyond_the_block(specials, n_q, ids, block, prompt_frames):
    model, layout = make(specials, n_q, ids, block)
    prompt = prompts(layout, frames=prompt_frames)
    made = generate(model, layout, prompt, 20, seed=[3, 4])
    assert made.shape == (2, 20 * n_q)
    assert made.unique().numel() > 3  # equality below would mean little if the model repeated one id
    assert torch.equal(made, slow(model, layout, prompt, 20, [3, 4]))
    layout.unpack(made)  # raises where an id is not one of its position


@pytest.mark.parametrize(("block", "frame"), [(24, 1), (24, 4), (23, 4), (10, 4), (5, 4), (4, 4), (1, 1)])
def test_a_new_context_is_at_most_half_a_block_and_begins_with_a_frame(block, frame):
    assert [context_start(position, block, frame) for position in (0, 1, block)] == [0, 0, 0]
    for position in range(block + 1, 4 * block + 9):
        first = context_start(position, block, frame)
        assert first % frame == 0 and 1 <= position - first <= max(block // 2, frame)
        assert position - first > block // 2 - frame


def test_the_same_seed_gives_the_same_ids_and_rows_do_not_depend_on_each_other():
    model, layout = make("standard")
    prompt = prompts(layout, rows=3)
    together = generate(model, layout, prompt, 15, seed=[7, 8, 7])
    assert torch.equal(together, generate(model, layout, prompt, 15, seed=[7, 8, 7]))
    for row, seed in enumerate([7, 8, 7]):
        assert torch.equal(together[row : row + 1], generate(model, layout, prompt[row : row + 1], 15, seed=seed))
    assert not torch.equal(together, generate(model, layout, prompt, 15, seed=[9, 9, 9]))
    equal_prompts = prompt[:1].expand(3, -1)
    from_one_seed = generate(model, layout, equal_prompts, 15, seed=7)
    assert torch.equal(from_one_seed[:1], together[:1])
    assert len({tuple(row) for row in from_one_seed.tolist()}) == 3


def test_starts_from_nothing_where_there_is_a_bos():
    model, layout = make("standard")
    nothing = torch.zeros(2, 0, dtype=torch.long)
    assert torch.equal(generate(model, layout, nothing, 5, seed=[1, 2]), slow(model, layout, nothing, 5, [1, 2]))
    model, layout = make("none")
    with pytest.raises(TokenError, match="no bos"):
        generate(model, layout, nothing, 5)


def test_reports_progress_in_frames():
    model, layout = make("none")
    seen = []
    generate(model, layout, prompts(layout), 3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_refuses_what_does_not_fit():
    model, layout = make("standard")
    with pytest.raises(TokenError, match="whole number of frames"):
        generate(model, layout, prompts(layout)[:, :3], 2)
    with pytest.raises(TokenError, match="at position 0"):
        generate(model, layout, prompts(layout).flip(1), 2)
    with pytest.raises(UsageError, match="2 prompts need 2 seeds"):
        generate(model, layout, prompts(layout), 2, seed=[1])
    with pytest.raises(UsageError, match="negative"):
        generate(model, layout, prompts(layout), -1)
    assert generate(model, layout, prompts(layout), 0).shape == (2, 0)


def test_filters_reach_the_draws():
    model, layout = make("none")
    assert torch.equal(
        generate(model, layout, prompts(layout), 8, Sampling(top_k=1), seed=4),
        generate(model, layout, prompts(layout), 8, GREEDY),
    )
