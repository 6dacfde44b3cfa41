"""Statistics and stability of codes against cases that are known."""

import math

import numpy as np
import pytest
import torch

from xcodec_lm.codec.clips import read_manifest
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.tasks.eval.code_robustness import code_robustness
from xcodec_lm.tasks.eval.code_statistics import code_statistics, entropy_bits

SPEC = TokenSpec("t", 1000, 1000, 10, (16, 16))  # 100 frames a second


def draw(frames, seed, high=16):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, high, (2, frames), generator=rng)


def test_uniform_codes_cost_their_whole_capacity():
    found = code_statistics(SPEC, [draw(4000, s) for s in range(4)], [draw(2000, 9)])
    for book in found["books"]:
        assert book["capacity"] == 400 and book["used"] == 16 and book["dead"] == 0
        assert book["entropy"] == pytest.approx(400, abs=1) and book["unigram"] == pytest.approx(400, abs=1)
        assert book["bigram_before"] >= 399 and book["perplexity"] == pytest.approx(16, rel=0.01)
    assert found["totals"]["entropy"] == pytest.approx(800, abs=2) and found["frames"] == 2000
    assert found["chance"] == pytest.approx([1 / 16, 1 / 16], rel=0.05)


def test_one_code_costs_nothing():
    one = torch.full((2, 500), 3)
    (book, _) = code_statistics(SPEC, [one] * 3, [one])["books"]
    assert book["entropy"] == 0 and book["used"] == 1 and book["dead"] == 15 and book["top"] == 1
    assert book["unigram"] < 5


def test_bigrams_find_what_follows_in_time_and_within_a_frame():
    cycle = torch.arange(800) % 16
    copies = [torch.stack([cycle.roll(shift), draw(800, shift)[0]]) for shift in range(6)]  # the second is random
    first, second = code_statistics(SPEC, copies[:5], copies[5:])["books"]
    assert first["bigram_before"] < 20 < 390 < first["unigram"] and second["bigram_before"] > 380
    twins = [torch.stack([draw(800, shift)[0]] * 2) for shift in range(6)]  # the second is the first
    first, second = code_statistics(SPEC, twins[:5], twins[5:])["books"]
    assert second["bigram_above"] < 20 and first["bigram_above"] > 380 and second["bigram_before"] > 380


def test_entropy_is_corrected_for_few_counts():
    assert entropy_bits(np.array([5, 5])) == 1.0  # never more than the codebook can say
    plain = 2 * -(0.3 * math.log2(0.3)) - 0.4 * math.log2(0.4)
    assert entropy_bits(np.array([3, 3, 4, 0])) == pytest.approx(plain + 2 / (20 * math.log(2)))
    assert entropy_bits(np.zeros(4)) == 0


def test_codes_survive_whole_frames_and_not_phases(digits, words):
    clips = [clip for clip in read_manifest(words) if clip.split == "test"]
    found = code_robustness(digits(), clips)
    rows = {row["change"]: row for row in found["rows"]}
    whole = rows["32 samples later, a whole frame"]
    assert [figure["value"] for figure in (*whole["books"], whole["all"])] == [100, 100, 100]
    assert whole["books"][0]["units"] == 6 and found["clips"] == 24
    half = rows["16 samples later"]
    assert half["books"][1]["value"] < half["books"][0]["value"] < 90
    assert half["all"]["value"] <= half["books"][1]["value"] + 1e-9
    loud, soft = rows["noise at -20 dB"], rows["noise at -40 dB"]
    assert loud["books"][0]["value"] < soft["books"][0]["value"] <= 100
    assert loud["books"][1]["value"] < soft["books"][1]["value"] < soft["books"][0]["value"]
    assert code_robustness(digits(), clips) == found


def test_clips_too_short_to_shift_are_passed_over(digits, words):
    assert code_robustness(digits(), read_manifest(words)[:2], clip_s=0.005) == {"rows": [], "clips": 0}
