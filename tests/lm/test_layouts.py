"""The laws that every layout keeps, on random lengths, codebooks, delays and prompts; and each layout by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from xcodec_lm import configs
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import ConfigError, TokenError
from xcodec_lm.configs.lm import LayoutConfig
from xcodec_lm.lm.layouts import END, FILLER, layout_from

FLAT = ["first", "single", "flatten", "coarse_first", "dual_track"]
WIDE = ["delay", "parallel", "depth", "grouped", "ar_nar"]


def spec_of(sizes, tracks=("mix",)):
    return TokenSpec("toy", 16_000, 16_000, 320, tuple(sizes), tracks)


def make(name="flatten", n_q=4, sizes=(1024,) * 8, tracks=("mix",), **options: Any):
    count = 1 if name in ("first", "single", "grouped") else n_q
    return layout_from(LayoutConfig(name, count, **options), spec_of(sizes, tracks))


@st.composite
def layouts(draw, names=(*FLAT, *WIDE), specials=("standard", "none")):
    name = draw(st.sampled_from(list(names)))
    count = 1 if name == "single" else draw(st.integers(1, 5))
    sizes = draw(st.lists(st.integers(2, 40), min_size=count, max_size=count))
    n_q = 1 if name in ("first", "single", "grouped") else draw(st.integers(1, count))
    options: dict[str, Any] = {"first_id": draw(st.sampled_from([0, 100]))}
    if name == "delay" and draw(st.booleans()):
        options["delays"] = (0, *draw(st.lists(st.integers(0, 4), min_size=n_q - 1, max_size=n_q - 1)))
    if name == "coarse_first":
        options["chunk"] = draw(st.integers(0, 4))
    if name == "grouped":
        options["group"] = draw(st.integers(1, 4))
    wide = (name == "grouped" and options["group"] > 1) or (name in WIDE and name != "grouped" and n_q > 1)
    if not wide:
        options |= {"ids": draw(st.sampled_from(["offset", "shared"])), "specials": draw(st.sampled_from(specials))}
    tracks = ("vocal", "accompaniment") if name == "dual_track" else ("mix",)
    return layout_from(LayoutConfig(name, n_q, **options), spec_of(sizes, tracks))


def random_codes(layout, frames, seed=0, rows=()):
    """(..., MQ, T) random codes for every row that the layout may take, rows between them filled too."""
    sizes = dict(zip(layout.books, layout._row_sizes(), strict=True))
    generator = torch.Generator().manual_seed(seed)
    highs = [sizes.get(row, 2) for row in range(max(sizes) + 1)]
    return torch.stack([torch.randint(0, high, (*rows, frames), generator=generator) for high in highs], dim=-2)


laws = settings(deadline=None, max_examples=150)


@laws
@given(layouts(), st.integers(0, 12), st.booleans())
def test_law_1_every_code_stands_once_and_eos_once(layout, frames, end):
    plan = layout.plan(frames, end)
    pairs = zip(plan.rows.ravel().tolist(), plan.times.ravel().tolist(), strict=True)
    cells = [(row, time) for row, time in pairs if row >= 0]
    assert sorted(cells) == [(row, time) for row in range(len(layout.books)) for time in range(frames)]
    assert (plan.rows == END).sum() == int(end and layout.vocabulary.specials)
    assert (plan.times[plan.rows == END] == frames).all() and (plan.times[plan.rows == FILLER] == -1).all()


@laws
@given(layouts(), st.integers(0, 12), st.booleans(), st.sampled_from([(), (1,), (3,)]), st.integers(0, 99))
def test_law_2_unpack_inverts_pack(layout, frames, end, rows, seed):
    codes = random_codes(layout, frames, seed, rows)
    ids = layout.pack(codes, end)
    assert ids.shape == (*rows, layout.plan(frames, end).steps, layout.width)
    expected = codes[..., list(layout.books), :]
    assert torch.equal(layout.unpack(ids, frames), expected)
    if (end and layout.vocabulary.specials) or layout.name not in ("first",):
        assume(not (end and not layout.vocabulary.specials))
        found = layout.unpack(ids)  # the number of frames from the ids alone
        assert torch.equal(found, expected)


@laws
@given(layouts(), st.integers(1, 12))
def test_law_3_frames_of_a_codebook_come_in_order(layout, frames):
    plan = layout.plan(frames)
    for row in range(len(layout.books)):
        steps, slots = (plan.rows == row).nonzero()
        order = np.argsort(steps * layout.width + slots)
        assert (np.diff(plan.times[steps, slots][order]) > 0).all()


@laws
@given(layouts(), st.integers(1, 12), st.data())
def test_law_4_frames_are_ready_when_their_steps_are_done(layout, frames, data):
    plan = layout.plan(frames)
    assert (np.diff(plan.ready) >= 0).all()
    done = data.draw(st.integers(0, plan.steps))
    ready = plan.frames_ready(done)
    if layout.inner == "nar":
        assert ready == (frames if done == plan.steps else 0)
        return
    for time in range(ready):
        assert ((plan.times == time) & (plan.rows >= 0))[:done].sum() == len(layout.books)
    if ready < frames:
        assert ((plan.times == ready) & (plan.rows >= 0))[:done].sum() < len(layout.books)


@laws
@given(layouts(), st.integers(0, 8), st.integers(1, 8), st.integers(0, 99))
def test_law_5_a_prompt_stands_as_in_the_whole(layout, given_frames, more, seed):
    assume(not (layout.name == "coarse_first" and not layout.chunk))  # one chunk depends on the whole length
    more += -(given_frames + more) % (layout.chunk or 1)  # as a last chunk that is not full does
    codes = random_codes(layout, given_frames + more, seed)
    whole, plan = layout.pack(codes), layout.plan(given_frames + more, end=False)
    ids, known, following = layout.resume(codes[:, :given_frames])
    within = ids[: len(whole)]
    assert torch.equal(within[known[: len(whole)]], whole[: len(ids)][known[: len(whole)]])
    taken = known.numpy() & (plan.rows[: len(ids)] >= 0) if len(ids) <= plan.steps else None
    if taken is not None:
        assert taken.sum() == given_frames * len(layout.books)
    first_open = ((plan.rows >= 0) & (plan.times >= given_frames)).any(axis=1).nonzero()[0][0]
    assert following == first_open


@laws
@given(layouts(), st.integers(1, 8), st.integers(0, 99))
def test_forced_cells_are_those_of_the_whole_grid(layout, frames, seed):
    codes = random_codes(layout, frames, seed)[list(layout.books)]
    whole = layout.forced(codes)
    full = torch.zeros(max(layout.books) + 1, frames, dtype=torch.int64)
    full[list(layout.books)] = codes
    assert torch.equal(whole, layout.pack(full))
    hidden = codes.masked_fill(torch.rand(codes.shape, generator=torch.Generator().manual_seed(seed)) < 0.5, -1)
    ids = layout.forced(hidden)
    assert (ids < 0).sum() == (hidden < 0).sum() and torch.equal(ids[ids >= 0], whole[ids >= 0])


@laws
@given(layouts(specials=("standard",)), st.integers(0, 12))
def test_law_5b_eos_cuts_the_grid_of_a_longer_plan(layout, frames):
    assume(not (layout.name == "coarse_first" and not layout.chunk))
    chunk = layout.chunk or 1
    ended, longer = layout.plan(frames), layout.plan((frames // chunk + 2) * chunk + layout.width, end=False)
    step, slot = (part[0] for part in (ended.rows == END).nonzero())
    assert (longer.rows[step, slot], longer.times[step, slot]) == (0, frames)
    before = ended.rows[:step]
    assert np.array_equal(before, longer.rows[:step]) or layout.name == "coarse_first"
    assert np.array_equal(ended.times[:step], longer.times[:step])


@laws
@given(layouts(), st.integers(0, 12))
def test_law_6_all_layouts_predict_as_many_codes(layout, frames):
    plan = layout.plan(frames)
    predicted = (plan.rows != FILLER).sum()
    assert predicted == frames * len(layout.books) + int(layout.vocabulary.specials)


@laws
@given(layouts(), st.integers(0, 12), st.integers(0, 99))
def test_law_7_and_8_ids_lie_in_their_ranges_and_eos_where_it_may(layout, frames, seed):
    assume(not (layout.name == "coarse_first" and not layout.chunk))
    frames = frames // (layout.chunk or 1) * (layout.chunk or 1)  # a last chunk that is short has its own places
    plan, ids = layout.plan(frames), layout.pack(random_codes(layout, frames, seed), end=True)
    vocabulary = layout.vocabulary
    specials = {vocabulary.bos, vocabulary.eos, vocabulary.pad} - {None}
    assert not specials or min(specials) >= vocabulary.base + vocabulary.codes
    for step in range(plan.steps):
        for slot in range(layout.width):
            value, row = int(ids[step, slot]), plan.rows[step, slot]
            low, high = layout.logit_range(step, slot)
            if row >= 0:
                assert low <= value < high and value in layout.slot_ids(slot)
            elif row == END:
                assert value == vocabulary.eos and layout.may_end(step, slot) and value in layout.slot_ids(slot)
            else:
                assert value == vocabulary.pad
            assert layout.may_end(step, slot) <= (layout.name == "grouped" or plan.rows[step, slot] in (0, END, FILLER))


@laws
@given(layouts(), st.integers(1, 200))
def test_law_9_cost_and_capacity(layout, steps):
    frames = layout.frames_in(steps)
    assert layout.steps_for(frames) <= steps < layout.steps_for(frames + 1)
    cost = layout.cost(frames)
    assert cost["steps"] == cost["cache_positions"] == layout.lead + layout.plan(frames).steps
    assert cost["attention_pairs"] >= cost["steps"] * (cost["steps"] + 1) // 2


def test_flatten_is_frame_by_frame():
    codes = torch.tensor([[1, 2], [3, 4]])
    assert make(n_q=2).pack(codes)[:, 0].tolist() == [1, 1024 + 3, 2, 1024 + 4]
    assert make(n_q=2, ids="shared").pack(codes)[:, 0].tolist() == [1, 3, 2, 4]
    assert make("first").pack(codes)[:, 0].tolist() == [1, 2]


def test_coarse_first_finishes_a_codebook_before_the_next():
    codes = torch.tensor([[1, 2, 3], [5, 6, 7]])
    layout = make("coarse_first", 2, (10, 10), chunk=2)
    eos = layout.vocabulary.eos
    assert layout.pack(codes, end=True)[:, 0].tolist() == [1, 2, 15, 16, 3, eos, 17]
    assert make("coarse_first", 2, (10, 10)).pack(codes, end=True)[:, 0].tolist() == [1, 2, 3, eos, 15, 16, 17]


def test_delay_by_hand():
    layout = make("delay", 3, (10, 10, 10), delays=(0, 1, 3))
    eos, pad = layout.vocabulary.eos, layout.vocabulary.pad
    ids = layout.pack(torch.tensor([[1, 2], [3, 4], [5, 6]]), end=True)
    assert ids.tolist() == [[1, pad, pad], [2, 13, pad], [eos, 14, pad], [pad, pad, 25], [pad, pad, 26]]
    assert layout.plan(2).ready.tolist() == [4, 5]


def test_parallel_and_depth_end_with_a_step_of_eos_alone():
    for name in ("parallel", "depth", "ar_nar"):
        layout = make(name, 2, (10, 10))
        assert layout.pack(torch.tensor([[1], [2]]), end=True).tolist() == [
            [1, 12], [layout.vocabulary.eos, layout.vocabulary.pad]
        ]  # fmt: skip


def test_grouped_keeps_the_length():
    layout = make("grouped", sizes=(10,), group=3)
    eos, pad = layout.vocabulary.eos, layout.vocabulary.pad
    assert layout.pack(torch.tensor([[1, 2, 3, 4]]), end=True).tolist() == [[1, 12, 23], [4, eos, pad]]
    assert layout.pack(torch.tensor([[1, 2, 3]]), end=True).tolist() == [[1, 12, 23], [eos, pad, pad]]


def test_dual_track_takes_turns():
    codes = torch.tensor([[1, 2], [9, 9], [3, 4], [9, 9]])  # (vocal q0, vocal q1, accompaniment q0, accompaniment q1)
    layout = make("dual_track", 1, (10, 10), ("vocal", "accompaniment"))
    assert layout.pack(codes)[:, 0].tolist() == [1, 13, 2, 14]
    assert layout.unpack(layout.pack(codes)).tolist() == [[1, 2], [3, 4]]


def test_ids_of_llasa():
    layout = layout_from(configs.load("layout/llasa", LayoutConfig), spec_of((65_536,)))
    ids = torch.tensor([128_264, 128_265, 193_799])[:, None]  # <|s_0|>, <|s_1|>, <|s_65535|>
    assert layout.unpack(ids).tolist() == [[0, 1, 65_535]]
    assert torch.equal(layout.pack(torch.tensor([[0, 1, 65_535]])), ids)
    assert layout.vocabulary.size == 193_800 and layout.vocabulary.dtype == np.dtype("<i4")


def test_ids_of_yue():
    spec = spec_of((1024,) * 8, ("vocal", "accompaniment"))
    first = layout_from(configs.load("layout/yue-stage1", LayoutConfig), spec)
    codes = torch.zeros(16, 2, dtype=torch.int64)
    codes[0], codes[8] = torch.tensor([0, 1023]), torch.tensor([7, 8])
    assert first.pack(codes)[:, 0].tolist() == [45_334, 45_341, 46_357, 45_342]
    second = layout_from(configs.load("layout/yue-stage2", LayoutConfig), spec_of((1024,) * 8))
    codes = torch.arange(8)[:, None]
    ids = second.pack(codes)
    assert ids[:, 0].tolist() == [45_334 + 1024 * k + k for k in range(8)]
    assert torch.equal(second.unpack(ids), codes)
    assert first.vocabulary.size == second.vocabulary.size == 83_734


def test_vocabularies():
    bare = make("first", specials="none").vocabulary
    assert (bare.size, bare.bos, bare.eos, bare.pad) == (1024, None, None, None)
    assert make(ids="shared", specials="none").vocabulary.size == 1024
    assert make(specials="none").vocabulary.size == 4096
    full = make().vocabulary
    assert (full.size, full.bos, full.eos, full.pad) == (4160, 4096, 4097, 4098)
    assert full.dtype == np.dtype("<u2")
    assert make("first", sizes=(61,)).vocabulary.size == 64
    assert make("first", sizes=(62,)).vocabulary.size == 128


@pytest.mark.parametrize("name", ["flatten", "delay", "depth", "coarse_first"])
@pytest.mark.parametrize("code", [-1, 1024])
def test_pack_refuses_codes_outside_their_codebook(name, code):
    codes = torch.zeros(1, 4, 3, dtype=torch.long)
    codes[0, 2, 1] = code
    with pytest.raises(TokenError, match=f"code {code} of quantizer 2, frame 1"):
        make(name).pack(codes)
    codes[0, 2, 1] = 1023
    make(name).pack(codes)


def test_unpack_refuses_ids_out_of_place():
    layout = make(n_q=2)
    with pytest.raises(TokenError, match="id 5 at step 3"):
        layout.unpack(torch.tensor([1, 1025, 2, 5])[:, None])
    with pytest.raises(TokenError, match="id 2048 at step 0"):
        layout.unpack(torch.tensor([2048, 1025])[:, None])
    with pytest.raises(TokenError, match="3 steps of layout flatten hold no whole number of frames"):
        layout.unpack(torch.tensor([1, 1025, 2])[:, None])
    with pytest.raises(TokenError, match=r"takes ids \(S, 1\)"):
        layout.unpack(torch.tensor([1, 1025]))
    with pytest.raises(TokenError, match="id 3 at step 0, slot 1 stands where no code belongs"):
        make("delay", 2).unpack(torch.tensor([[1, 3], [2, 1030], [2049, 1031]]))


def test_refuses_a_codec_that_does_not_fit():
    with pytest.raises(TokenError, match="has 2 quantizers"):
        make(sizes=(8, 8))
    with pytest.raises(TokenError, match="one track"):
        make("first", tracks=("vocal", "accompaniment"))
    with pytest.raises(TokenError, match="several tracks"):
        make("dual_track", 1)
    with pytest.raises(TokenError, match="codecs of one codebook"):
        make("single")
    with pytest.raises(TokenError, match="Q >= 4"):
        make().pack(torch.zeros(2, 5, dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "first", "n_q": 2}, "use flatten"),
        ({"name": "delay", "n_q": 2, "delays": (0, 1, 2)}, "must be 2 numbers"),
        ({"name": "delay", "n_q": 2, "delays": (1, 0)}, "the first of them 0"),
        ({"name": "flatten", "n_q": 2, "delays": (0, 1)}, "is for layout.name: delay"),
        ({"name": "flatten", "chunk": 2}, "is for layout.name: coarse_first"),
        ({"name": "first", "group": 2}, "is for layout.name: grouped"),
        ({"name": "grouped", "group": 0}, "at least 1"),
        ({"name": "delay", "n_q": 2, "ids": "shared"}, "needs one id a step"),
        ({"name": "parallel", "n_q": 2, "specials": "none"}, "no id for the empty cells"),
    ],
)
def test_contradictions_are_refused(options, said):
    with pytest.raises(ConfigError) as error:
        LayoutConfig(**options)
    assert said in f"{error.value} {error.value.hint}"


def test_a_vocabulary_too_small_for_its_codes():
    with pytest.raises(ConfigError, match=r"the ids in use are 0\.\.1026"):
        make("first", vocabulary_size=1026).vocabulary  # noqa: B018
