"""ABX: the frame law, the warped distance, the averaging order, and the files that items come from."""

import json
import math
from collections import defaultdict
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xcodec_lm.codec.clips import Clip
from xcodec_lm.tasks.eval import warping
from xcodec_lm.tasks.eval.abx import abx
from xcodec_lm.tasks.eval.abx_items import Item, ItemError, cut, items_of_words, read_items
from xcodec_lm.tasks.eval.warping import pair_distances

DATA = Path(__file__).parent / "data"


def item_distances(first, second, blocks=None, distance="angular"):
    """Distances of pairs of stretches, each pair a block of its own unless told otherwise."""
    places = np.arange(len(first))
    pairs = np.stack([places, places + len(first)], axis=1)
    return pair_distances([*first, *second], pairs, places if blocks is None else np.array(blocks), distance)


# ------------------------------------------------------------------ a slow reference, written from the definition


def slow_frame_distance(x, y):
    nx, ny = math.sqrt(sum(v * v for v in x)), math.sqrt(sum(v * v for v in y))
    if nx == 0 or ny == 0:
        return float((nx == 0) != (ny == 0))
    return math.acos(max(-1.0, min(1.0, sum(a * b for a, b in zip(x, y, strict=True)) / nx / ny))) / math.pi


def slow_distance(x, y):
    """Fills the table cell by cell, then walks back."""
    cost = {}
    for i in range(len(x)):
        for j in range(len(y)):
            ways = [cost[p] for p in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if p in cost]
            cost[i, j] = slow_frame_distance(x[i], y[j]) + (min(ways) if ways else 0)
    i, j, length = len(x) - 1, len(y) - 1, 1
    while i or j:
        across, left, up = (cost.get(p, math.inf) for p in ((i - 1, j - 1), (i, j - 1), (i - 1, j)))
        if across <= left and across <= up:
            i, j = i - 1, j - 1
        elif left <= up:
            j -= 1
        else:
            i -= 1
        length += 1
    return cost[len(x) - 1, len(y) - 1] / length


def slow_abx(items, vectors, mode):
    lists = [v.tolist() for v in vectors]
    by_pair = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for i, a in enumerate(items):
        for j, b in enumerate(items):
            for k, x in enumerate(items):
                context = len({(item.before, item.after) for item in (a, b, x)}) == 1
                if not (context and a.speaker == b.speaker and a.label == x.label != b.label) or i == k:
                    continue
                if (x.speaker == a.speaker) != (mode == "within"):
                    continue
                to_a, to_b = slow_distance(lists[i], lists[k]), slow_distance(lists[j], lists[k])
                wrong = 0.5 if abs(to_a - to_b) < 1e-9 else float(to_a > to_b)
                by_pair[a.label, b.label][a.speaker][a.before, a.after, x.speaker].append(wrong)
    pairs = [
        np.mean([np.mean([np.mean(cell) for cell in cells.values()]) for cells in speakers.values()])
        for speakers in by_pair.values()
    ]
    return 100 * float(np.mean(pairs)) if pairs else math.nan


def made(seed, speakers=3, labels=3, contexts=2, takes=3, dim=4, spread=1.0, separation=0.0):
    """Items of unequal lengths and numbers, whose vectors scatter around a direction of their label's own."""
    rng = np.random.default_rng(seed)
    centres = separation * rng.standard_normal((labels, dim))
    items, vectors = [], []
    for label in range(labels):
        for context in range(contexts):
            for speaker in range(speakers):
                for _ in range(rng.integers(0, takes + 1)):
                    items.append(Item("clip", f"p{label}", f"s{speaker}", f"c{context}", "e"))
                    frames = centres[label] + spread * rng.standard_normal((rng.integers(1, 6), dim))
                    vectors.append(torch.from_numpy(frames))
    return items, vectors


@pytest.mark.parametrize("mode", ["within", "across"])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_a_slow_reference(mode, seed):
    items, vectors = made(seed, separation=0.7)
    result = abx(items, vectors, mode)
    assert result.error == pytest.approx(slow_abx(items, vectors, mode), abs=1e-6)
    assert 0 < result.error < 50


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), pairs=st.integers(1, 6), dim=st.integers(1, 5))
def test_distances_agree_with_a_slow_reference_and_do_not_depend_on_the_batch(seed, pairs, dim):
    rng = np.random.default_rng(seed)
    first, second = (
        [torch.from_numpy(rng.integers(-1, 2, (rng.integers(1, 7), dim)).astype(float)) for _ in range(pairs)]
        for _ in range(2)
    )  # few different values, so that paths tie and some frames are zero
    got = item_distances(first, second)
    alone = [item_distances([x], [y])[0] for x, y in zip(first, second, strict=True)]
    assert np.array_equal(got, alone)
    assert ((got >= 0) & (got <= 1)).all()
    assert np.allclose([item_distances([x], [x])[0] for x in first], 0, atol=1e-12)
    # the cost of the cheapest path is beyond dispute; its length is where sums of rounded numbers tie in the reference
    exact = [slow_distance(x.tolist(), y.tolist()) for x, y in zip(first, second, strict=True)]
    if dim == 1:  # angles are 0 or pi, so the reference is exact too
        assert np.allclose(got, exact, atol=1e-7)


def test_distances_agree_with_a_slow_reference_on_vectors_without_ties():
    rng = np.random.default_rng(0)
    first, second = ([torch.from_numpy(rng.standard_normal((rng.integers(1, 9), 3))) for _ in range(40)] for _ in "ab")
    exact = [slow_distance(x.tolist(), y.tolist()) for x, y in zip(first, second, strict=True)]
    assert np.allclose(item_distances(first, second), exact, atol=1e-6)


def test_a_distance_worked_out_by_hand():
    # angles to (1, 0): 0, 90 and 180 degrees; table of distances 0 .5 / .5 0 / 1 .5, cheapest path 0 + 0 + .5
    x = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])
    y = torch.tensor([[2.0, 0], [0, 3]])
    assert item_distances([x], [y])[0] == pytest.approx(0.5 / 3, abs=1e-7)


def test_long_batches_are_cut_without_changing_anything(monkeypatch):
    items, vectors = made(5)
    whole = abx(items, vectors, "across")
    monkeypatch.setattr(warping, "TABLE_AT_ONCE", 60)
    monkeypatch.setattr(warping, "CELLS_AT_ONCE", 40)
    assert abx(items, vectors, "across") == whole


def test_long_stretches_are_padded_without_changing_anything():
    rng = np.random.default_rng(1)
    first, second = (
        [torch.from_numpy(rng.standard_normal((rng.integers(10, 70), 3))) for _ in range(12)] for _ in "ab"
    )
    exact = [slow_distance(x.tolist(), y.tolist()) for x, y in zip(first, second, strict=True)]
    assert np.allclose(item_distances(first, second, [0] * 12), exact, atol=1e-6)


def test_codes_are_at_the_share_that_differs():
    x, y = torch.tensor([[1, 5], [2, 5]]), torch.tensor([[1, 5], [3, 5], [3, 6]])
    # table 0 .5 1 / .5 .5 1: diagonally to (1, 1), then along the second to (1, 2): 0 + .5 + 1
    assert item_distances([x], [y], distance="identical")[0] == pytest.approx(0.5)
    assert item_distances([x], [x], distance="identical")[0] == 0


def test_a_stretch_too_long_for_the_arithmetic_is_refused():
    with pytest.raises(ValueError, match="too long to be warped"):
        item_distances([torch.zeros(40_000, 1)], [torch.zeros(1, 1)])


# ------------------------------------------------------------------ other implementations

EXPECTED = json.loads((DATA / "abx.json").read_text())


@pytest.mark.parametrize(("peer", "case"), [(peer, case) for peer, scores in EXPECTED.items() for case in scores])
def test_agrees_with_other_implementations(peer, case):
    """Scores that `make_abx.py` got from fastabx and from Libri-light's code."""
    kind, mode, rule = case.split()
    items, arrays = read_items(DATA / "abx.item"), np.load(DATA / "abx.npz")
    features = {name.split("/")[1]: torch.from_numpy(value) for name, value in arrays.items() if name.startswith(kind)}
    stretches = cut(items, features, Fraction(50), rule)
    assert (stretches.empty, stretches.clipped) == (0, 0)
    result = abx(items, stretches.vectors, mode, distance="angular" if kind == "features" else "identical")
    assert result.error / 100 == pytest.approx(EXPECTED[peer][case] / 100, abs=1e-6)


# ------------------------------------------------------------------ what errors mean


@pytest.mark.parametrize("mode", ["within", "across"])
def test_separate_labels_have_no_errors_and_like_ones_are_at_chance(mode):
    items, vectors = made(1, separation=50, dim=8)
    assert abx(items, vectors, mode).error == 0
    items, vectors = made(2, speakers=5, labels=4, takes=8, dim=8)
    assert abx(items, vectors, mode).error == pytest.approx(50, abs=5)


def test_identical_vectors_tie_and_cost_half():
    items = [Item("c", label, "s") for label in "aabb"]
    assert abx(items, [torch.ones(3, 2)] * 4, "within").error == 50


def test_a_case_worked_out_by_hand():
    # x is never a itself: (a1, x=a2) and (a2, x=a1) are at 40 degrees; b lies at 30 from a1 and 70 from a2
    def at(degrees):
        return torch.tensor([[math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]])

    items = [Item("c", "a", "s"), Item("c", "a", "s"), Item("c", "b", "s")]
    vectors = [at(0), at(40), at(-30)]
    result = abx(items, vectors, "within")
    assert result.errors == {("a", "b"): {"s": 50.0}}  # x = a1 is nearer to b, x = a2 to a; b has no second take
    assert result.cells == 1


def test_averages_over_contexts_then_speakers_then_pairs():
    def at(degrees):
        return torch.tensor([[math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]])

    items, vectors = [], []
    for speaker, context, wrong in (("s", "1", 0), ("s", "2", 1), ("t", "1", 1)):
        items += [Item("c", label, speaker, context) for label in "aab"]
        # with wrong, both takes of a are nearer to b than to each other
        vectors += [at(-40), at(40), at(0)] if wrong else [at(-10), at(10), at(90)]
    result = abx(items, vectors, "within")
    assert result.errors == {("a", "b"): {"s": 50.0, "t": 100.0}} and result.error == 75.0


def test_samples_are_seeded_and_only_drawn_when_needed():
    items, vectors = made(3, takes=9, contexts=1)
    assert len(abx(items, vectors, "across").by_seed) == 1
    one, again = (abx(items, vectors, "across", most_distances=10, most_items=3, most_x_speakers=1) for _ in range(2))
    assert one == again and len(one.by_seed) == 3 and len(set(one.by_seed)) > 1
    assert one.error == pytest.approx(np.mean(one.by_seed), abs=5)
    assert one.distances < 3 * abx(items, vectors, "across").distances


def test_one_speaker_has_no_across_error_and_no_interval():
    items, vectors = made(1, speakers=1)
    assert math.isnan(abx(items, vectors, "across").error)
    estimate = abx(items, vectors, "within").estimate()
    assert math.isnan(estimate.low) and estimate.verdict(True) == "not decidable"


def test_differences_are_paired_by_speaker():
    items, vectors = made(7, speakers=12, takes=4, contexts=1, separation=1.0)
    near = abx(items, vectors, "within")
    far = abx(
        items, [v + 3 * torch.randn(v.shape, generator=torch.Generator().manual_seed(0)) for v in vectors], "within"
    )
    assert near.minus(near).value == near.minus(near).low == near.minus(near).high == 0
    difference = near.minus(far)
    assert difference.value == pytest.approx(near.error - far.error) and difference.high < 0
    assert difference.verdict(lower_is_better=True) == "better"
    assert far.minus(near).verdict(lower_is_better=True) == "worse"


# ------------------------------------------------------------------ items


@pytest.mark.parametrize(
    ("onset", "offset", "frames"),
    [
        ("0", "0.02", (0, 1)),
        ("0.01", "0.03", (0, 2)),  # both ends lie on moments of frames, 0.01 and 0.03
        ("0.0101", "0.0299", (1, 1)),  # no moment lies inside
        ("0.0100001", "0.05", (1, 3)),
        ("0.1", "9", (5, 10)),  # ten frames are all there is
        ("8", "9", (400, 10)),
    ],
)
def test_frames_of_an_item_at_50_a_second(onset, offset, frames):
    item = Item("c", "a", "s", onset_s=Decimal(onset), offset_s=Decimal(offset))
    assert item.frames(Fraction(50), 10) == frames


def test_libri_lights_rule_leaves_out_the_last_frame():
    item = Item("c", "a", "s", onset_s=Decimal("0.0101"), offset_s=Decimal("0.07"))
    assert item.frames(Fraction(50), 10) == (1, 4) and item.frames(Fraction(50), 10, "libri-light") == (1, 3)
    one = Item("c", "a", "s", onset_s=Decimal("0.01"), offset_s=Decimal("0.02"))
    assert cut([one], {"c": torch.zeros(9, 1)}, Fraction(50), "libri-light").empty == 1


def test_frame_law_is_exact_for_rates_that_are_not_whole():
    item = Item("c", "a", "s", onset_s=Decimal("0.04"), offset_s=Decimal("0.12"))
    assert item.frames(Fraction(25, 2), 100) == (0, 2)  # moments 0.04 and 0.12 are both inside


def test_cutting_counts_what_is_empty_or_clipped():
    def item(onset, offset):
        return Item("c", "a", "s", onset_s=Decimal(onset), offset_s=Decimal(offset))

    features = torch.arange(10.0)[:, None]
    result = cut(
        [item("0", "0.05"), item("0.1", "5"), item("7", "8"), Item("c", "a", "s")], {"c": features}, Fraction(50)
    )
    assert [None if v is None else v[:, 0].tolist() for v in result.vectors] == [
        [0, 1, 2], [5, 6, 7, 8, 9], None, list(range(10))
    ]  # fmt: skip
    assert (result.clipped, result.empty) == (2, 1)
    with pytest.raises(ItemError, match="no recording called 'd'"):
        cut([Item("d", "a", "s")], {"c": features}, Fraction(50))


def test_reads_item_files(tmp_path):
    path = tmp_path / "a.item"
    path.write_text(
        "#file onset offset #phone prev-phone next-phone speaker\n61-1 0.1 0.25 AH B K 61\n\n61-2 1 2 B AH T 61\n"
    )
    first, second = read_items(path)
    assert first == Item("61-1", "AH", "61", "B", "K", Decimal("0.1"), Decimal("0.25")) and second.label == "B"


def test_reads_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"file": "x", "phone": "AH", "speaker": "1", "onset": 0.1, "offset": 0.25, "prev": "B", "next": "K"},
        {"file": "y", "word": "one", "speaker": "2"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_items(path) == [
        Item("x", "AH", "1", "B", "K", Decimal("0.1"), Decimal("0.25")), Item("y", "one", "2")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.item", "#file onset\nx 0 1 AH B K", "line 2: 6 columns instead of 7"),
        ("a.item", "x 0 one AH B K 61", "line 1: onset '0' or offset 'one' is not a number"),
        ("a.item", "x 1 0.5 AH B K 61", "onset 1 and offset 0.5 do not lie in the order"),
        ("a.item", "x 0 inf AH B K 61", "do not lie in the order"),
        ("a.item", "#file onset offset #phone prev-phone next-phone speaker\n", "has no items"),
        ("a.jsonl", "{", "line 1: not JSON"),
        ("a.jsonl", "[1]", "not a JSON object"),
        ("a.jsonl", '{"file": "x", "speaker": "1"}', "no `phone or word`"),
        ("a.jsonl", '{"file": "x", "phone": "a", "speaker": "1", "onset": 1}', "an `onset` without an `offset`"),
    ],
)
def test_item_files_with_mistakes_are_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ItemError) as error:
        read_items(path)
    assert message in error.value.message and str(path) in error.value.message and error.value.hint


def test_missing_item_file_is_refused(tmp_path):
    with pytest.raises(ItemError, match="file not found"):
        read_items(tmp_path / "none.item")


def test_recordings_of_one_word_are_items():
    def clip(name, **row):
        return Clip(name, Path(name), 1.0, "test", row)

    clips = [
        clip("1", text="zero", speaker="s"),
        clip("2", text="two words", speaker="s"),
        clip("3", text="zero", speaker=None),
        clip("4", caption="rain"),
    ]
    assert items_of_words(clips) == [Item("1", "zero", "s")]
