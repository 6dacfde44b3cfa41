"""Decoding with a cache gives what decoding without one gives: in every layout, in any company, beyond the block."""

from typing import Any

import pytest
import torch

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import TokenError, UsageError, XcodecLMError
from xcodec_lm.configs.lm import DepthConfig, GPTConfig, LayoutConfig
from xcodec_lm.lm.engine import GREEDY, Engine, continue_codes
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.layouts import layout_from
from xcodec_lm.lm.requests import UNKNOWN, Request
from xcodec_lm.lm.sampling import Sampling, draw, row_noise

PLAIN = Sampling()
LAYOUTS: list[dict[str, Any]] = [
    {"name": "first"},
    {"name": "first", "specials": "none"},
    {"name": "flatten", "n_q": 3},
    {"name": "flatten", "n_q": 2, "ids": "shared", "specials": "none"},
    {"name": "coarse_first", "n_q": 2, "chunk": 3},
    {"name": "delay", "n_q": 3},
    {"name": "delay", "n_q": 3, "delays": (0, 0, 2)},
    {"name": "parallel", "n_q": 2},
    {"name": "depth", "n_q": 3},
    {"name": "grouped", "group": 2},
]
every_layout = pytest.mark.parametrize("options", LAYOUTS, ids=lambda options: "-".join(map(str, options.values())))


def make(block=200, arch: Any = "gpt2", std=0.6, prefix=0, **options: Any):
    config = LayoutConfig(**options)
    layout = layout_from(config, TokenSpec("toy", 16_000, 16_000, 320, (16, 12, 14, 16)))
    torch.manual_seed(1)
    sizes = GPTConfig(arch, layers=2, heads=2, dim=32, block=block, layout=config, depth=DepthConfig(2, 2, 16))
    model = GPT(sizes, layout.vocabulary.size, prefix).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model, layout


def prompt_of(frames, seed=3):
    return torch.randint(0, 12, (4, frames), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def reference(model, layout, prompt, frames, sampling=PLAIN, seed=0, may_end=False, given=None):
    """Decoding that reads the whole grid again at every step, one sequence, no cache."""
    vocabulary, given_frames = layout.vocabulary, prompt.shape[1]
    total = given_frames + frames
    codes = torch.full((len(layout.books), total), UNKNOWN)
    codes[:, :given_frames] = prompt[list(layout.books)]
    if given is not None:
        codes[:, given_frames:] = given[list(layout.books)]
    plan, ended, step = layout.plan(total, end=False), False, 0
    grid = torch.full((0, layout.width), 0)
    if layout.lead:
        grid = torch.full((1, layout.width), vocabulary.pad)
        grid[0, 0] = vocabulary.bos
    while step < plan.steps:
        row_ids = torch.full((layout.width,), vocabulary.pad or 0)
        for slot in range(layout.width):
            row, time = int(plan.rows[step, slot]), int(plan.times[step, slot])
            if row < 0:
                continue
            low, high = layout.vocabulary.id_range(int(layout.tables(plan)[step, slot]))
            if codes[row, time] == UNKNOWN:
                columns = list(range(low, high)) + ([vocabulary.eos] if may_end and row == 0 and not ended else [])
                hidden = model.hidden((grid[:, 0] if layout.flat else grid)[None])[:, -1:]
                if layout.inner == "depth":
                    logits = model.inner(hidden, row_ids[None, None])[0, 0, slot]
                else:
                    logits = model.logits(hidden)[0, 0]
                settings = sampling.for_book(layout.books[row])
                position = time * len(layout.books) + row
                before = codes[row, max(0, time - settings.history) : time]
                recent = torch.cat([torch.full((settings.history - len(before),), -1), before])[None]
                column = int(
                    draw(
                        logits[columns][None],
                        settings,
                        row_noise(seed, position, len(columns))[None],
                        recent,
                        row_noise(seed, position, len(columns), redraw=True)[None],
                    )
                )
                if column == high - low:
                    ended, codes = True, codes[:, :time]
                    plan = layout.plan(time, end=True)
                    row_ids[slot] = vocabulary.eos
                    continue
                codes[row, time] = column
            row_ids[slot] = low + codes[row, time]
        grid = torch.cat([grid, row_ids[None]])
        step += 1
    return codes, ended


@every_layout
@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("prompt_frames", [1, 6])
def test_equals_decoding_without_a_cache(options, arch, prompt_frames):
    model, layout = make(arch=arch, **options)
    requests = [Request(9, prompt_of(prompt_frames, seed), seed=seed) for seed in (3, 4)]
    made = Engine(model, layout, 2).decode(requests)
    for request, one in zip(requests, made, strict=True):
        expected, _ = reference(model, layout, request.prompt, 9, seed=request.seed)
        assert torch.equal(one.codes, expected) and one.prompt_frames == prompt_frames and not one.ended
        layout.unpack(layout.pack(_all_rows(layout, one.codes)))  # raises where a code is not one of its codebook
    assert made[0].codes.unique().numel() > 3  # equality would mean little if the model repeated one code


def _all_rows(layout, codes):
    full = torch.zeros(max(layout.books) + 1, codes.shape[1], dtype=torch.int64)
    full[list(layout.books)] = codes
    return full


@every_layout
def test_company_changes_nothing(options):
    """Requests of several lengths that come and go give what each gives alone."""
    model, layout = make(**options)
    may_end = layout.vocabulary.eos is not None
    requests = [
        Request(
            frames,
            prompt_of(length, seed),
            Sampling(temperature=0.9, top_k=9),
            seed,
            may_end=may_end,
            min_frames=2 if may_end else 0,
        )
        for seed, (length, frames) in enumerate([(2, 12), (7, 3), (1, 20), (4, 0), (3, 9), (5, 14), (2, 6)])
    ]
    together = Engine(model, layout, 3).decode(requests)
    for request, one in zip(requests, together, strict=True):
        (alone,) = Engine(model, layout).decode([request])
        assert torch.equal(one.codes, alone.codes) and one.ended == alone.ended
        expected, ended = reference(
            model, layout, request.prompt, request.frames, request.sampling, request.seed
        ) if not may_end else (alone.codes, alone.ended)  # fmt: skip
        assert torch.equal(one.codes, expected) and one.ended == ended


@every_layout
def test_the_end_is_drawn_where_it_may_be_and_leaves_whole_frames(options):
    model, layout = make(std=0.2, **options)
    if layout.vocabulary.eos is None:
        with pytest.raises(UsageError, match="no eos"):
            raise Engine(model, layout).decode([Request(5, prompt_of(2), may_end=True)])[0].error
        return
    with torch.no_grad():
        model.wte.weight[layout.vocabulary.eos] = model.wte.weight[: layout.vocabulary.codes].mean(0)
    lengths = set()
    for seed in range(12):
        request = Request(40, prompt_of(2, seed), seed=seed, may_end=True)
        (made,) = Engine(model, layout).decode([request])
        codes, ended = reference(model, layout, request.prompt, 40, seed=seed, may_end=True)
        assert torch.equal(made.codes, codes) and made.ended == ended
        assert (made.codes >= 0).all() and made.codes.shape[1] <= 42
        lengths.add(made.codes.shape[1])
        later = Engine(model, layout).decode([Request(40, prompt_of(2, seed), seed=seed, may_end=True, min_frames=30)])
        assert later[0].codes.shape[1] >= 32
    assert len(lengths) > 1 or layout.name == "coarse_first"


@every_layout
def test_frames_are_handed_on_as_soon_as_they_are_complete(options):
    model, layout = make(**options)
    request = Request(10, prompt_of(3), seed=5)
    events = list(Engine(model, layout).run([request]))
    pieces = [event.codes for event in events if event.codes is not None]
    assert torch.equal(torch.cat(pieces, dim=1), events[-1].made.codes[:, 3:])
    assert [event.made is not None for event in events] == [False] * (len(events) - 1) + [True]
    most = {"coarse_first": 3, "grouped": 2}.get(layout.name, 1)
    assert max(piece.shape[1] for piece in pieces[:-1]) <= most


@every_layout
def test_goes_on_beyond_the_block(options):
    model, layout = make(block=24, **options)
    prompt, frames = prompt_of(2), 60
    (made,) = Engine(model, layout).decode([Request(frames, prompt, seed=6)])
    assert made.error is None and made.refills >= 1 and made.codes.shape == (len(layout.books), 62)
    assert (made.codes >= 0).all()
    # Until the context is full nothing differs from a model with room for all.
    wide, _ = make(block=400, **options)
    if wide.wpe is not None and model.wpe is not None:
        with torch.no_grad():
            for (name, large), (_, small) in zip(wide.named_parameters(), model.named_parameters(), strict=True):
                target = large[: len(small)] if name == "wpe.weight" else large
                target.copy_(small)
    (free,) = Engine(wide, layout).decode([Request(frames, prompt, seed=6)])
    same = layout.frames_in(24) - (layout.chunk or 1)
    assert torch.equal(made.codes[:, :same], free.codes[:, :same])
    assert not torch.equal(made.codes, free.codes)


def test_a_prompt_longer_than_the_block_is_cut_to_its_last_half():
    model, layout = make(block=20, name="first")
    long = prompt_of(100)
    (made,) = Engine(model, layout).decode([Request(5, long, seed=1)])
    (short,) = Engine(model, layout).decode([Request(5, long[:, -9:], seed=1)])
    assert made.refills == 1 and torch.equal(made.codes[:, :100], long[:1])
    greedy = [
        Engine(model, layout).decode([Request(5, part, GREEDY)])[0].codes[:, -5:] for part in (long, long[:, -9:])
    ]
    assert torch.equal(*greedy) and short.codes.shape == (1, 14)


def test_known_codes_are_kept_and_the_others_drawn():
    for options in ({"name": "flatten", "n_q": 3}, {"name": "delay", "n_q": 3}, {"name": "depth", "n_q": 3}):
        model, layout = make(**options)
        given = torch.full((4, 8), UNKNOWN)
        given[0] = prompt_of(8, 9)[0]
        request = Request(8, prompt_of(2), seed=2, given=given)
        (made,) = Engine(model, layout).decode([request])
        assert torch.equal(made.codes[0, 2:], given[0])
        assert torch.equal(made.codes, reference(model, layout, request.prompt, 8, seed=2, given=given)[0])


def test_repetition_aware_sampling_and_settings_of_a_book_reach_the_draws():
    model, layout = make(name="flatten", n_q=2)
    sampling = Sampling(top_p=0.5, ras_window=6, ras_threshold=0.2, books=((1, "temperature", 0),))
    request = Request(20, prompt_of(3), sampling, seed=8)
    (made,) = Engine(model, layout).decode([request])
    assert torch.equal(made.codes, reference(model, layout, request.prompt, 20, sampling, 8)[0])
    (plain,) = Engine(model, layout).decode([Request(20, prompt_of(3), Sampling(top_p=0.5), seed=8)])
    assert not torch.equal(made.codes, plain.codes)


def test_guidance_takes_two_lanes_and_scale_one_takes_one():
    model, layout = make(name="first", prefix=2)
    vectors = torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(0))
    prompt = prompt_of(4)

    def guided(scale, lanes):
        request = Request(
            10, prompt, Sampling(0, cfg_scale=scale), prefix=vectors[0], negative=vectors[1] if scale != 1 else None
        )
        (made,) = Engine(model, layout, lanes).decode([request])
        if made.error is not None:
            raise made.error
        return made.codes

    codes = prompt[:1]
    for _ in range(10):  # by hand
        ids = torch.cat([torch.tensor([[layout.vocabulary.bos]]), codes], 1)
        with torch.no_grad():
            logits = [model(ids, prefix=vectors[i : i + 1], last_only=True)[0, 0, :16] for i in (0, 1)]
        codes = torch.cat([codes, (logits[1] + 3 * (logits[0] - logits[1])).argmax()[None, None]], 1)
    assert torch.equal(guided(3.0, 2), codes)
    assert not torch.equal(guided(1.0, 1), codes)
    with pytest.raises(UsageError, match="two lanes"):
        guided(3.0, 1)


@every_layout
def test_fixed_shapes_give_the_same(options):
    model, layout = make(**options)
    requests = [Request(8, prompt_of(length, length), seed=length) for length in (2, 5, 3)]
    plain = Engine(model, layout, 2).decode(requests)
    fixed = Engine(model, layout, 2, graph=True).decode(requests)
    assert all(torch.equal(one.codes, other.codes) for one, other in zip(plain, fixed, strict=True))


def test_one_prompt_for_many_is_read_once(monkeypatch):
    model, layout = make(name="first")
    prompt, lengths = prompt_of(30), []
    hidden = model.hidden

    def counted(ids, *rest, **more):
        lengths.append(ids.shape[1])
        return hidden(ids, *rest, **more)

    monkeypatch.setattr(model, "hidden", counted)
    requests = [Request(6, prompt, seed=seed) for seed in range(4)]
    made = Engine(model, layout, 4).decode(requests)
    assert sum(length > 1 for length in lengths) == 1
    for request, one in zip(requests, made, strict=True):
        assert torch.equal(one.codes, Engine(model, layout).decode([request])[0].codes)
    assert len({tuple(one.codes[0].tolist()) for one in made}) == 4


def test_a_request_that_fails_leaves_the_others():
    model, layout = make(name="flatten", n_q=2, prefix=1)
    good = Request(6, prompt_of(3), seed=1)
    bad = [
        Request(-1, prompt_of(3)),
        Request(5, torch.full((4, 3), 99)),
        Request(5, prompt_of(3)[:1]),
        Request(5, prompt_of(3), min_frames=9),
        Request(5, prompt_of(3), prefix=torch.full((1, 32), torch.nan)),
    ]
    made = Engine(model, layout, 2).decode([good, *bad, good])
    assert [one.error is None for one in made] == [True, *[False] * 5, True]
    for one, said in zip(made[1:6], ["negative", "outside 0..15", "Q >= 2", "min_frames", "not finite"], strict=True):
        assert isinstance(one.error, XcodecLMError) and said in str(one.error)
    assert torch.equal(made[0].codes, made[-1].codes)


def test_starts_from_nothing_where_there_is_a_bos():
    model, layout = make(name="flatten", n_q=2)
    made = continue_codes(model, layout, torch.zeros(2, 2, 0, dtype=torch.long), 5, seed=[1, 2])
    for row, seed in enumerate([1, 2]):
        assert torch.equal(made[row], reference(model, layout, torch.zeros(2, 0, dtype=torch.long), 5, seed=seed)[0])
    model, layout = make(name="first", specials="none")
    with pytest.raises(TokenError, match="no bos"):
        continue_codes(model, layout, torch.zeros(1, 1, 0, dtype=torch.long), 5)


def test_rows_have_seeds_of_their_own():
    model, layout = make(name="first")
    prompt = prompt_of(4)[None].expand(3, -1, -1)
    from_one = continue_codes(model, layout, prompt, 15, seed=7)
    assert len({tuple(row.flatten().tolist()) for row in from_one}) == 3
    assert torch.equal(from_one[:1], continue_codes(model, layout, prompt[:1], 15, seed=7))
    assert torch.equal(continue_codes(model, layout, prompt, 15, seed=[7, 8, 7])[::2], from_one[:1].expand(2, -1, -1))
    with pytest.raises(UsageError, match="3 prompts need 3 seeds"):
        continue_codes(model, layout, prompt, 2, seed=[1])
    with pytest.raises(UsageError, match="negative"):
        continue_codes(model, layout, prompt, -1)
    assert continue_codes(model, layout, prompt, 0).shape == (3, 1, 0)


def test_reports_progress_in_frames():
    model, layout = make(name="flatten", n_q=2)
    seen = []
    continue_codes(model, layout, prompt_of(2)[None], 3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_refuses_what_it_does_not_decode():
    model, layout = make(name="first")
    with pytest.raises(UsageError, match="at least one lane"):
        Engine(model, layout, 0)
    model, layout = make(name="ar_nar", n_q=2)
    with pytest.raises(UsageError, match="not decoded step by step"):
        Engine(model, layout)
    model, layout = make(block=20, name="coarse_first", n_q=2)
    (made,) = Engine(model, layout).decode([Request(30, prompt_of(2))])
    assert "in one chunk take 64 steps" in str(made.error)
