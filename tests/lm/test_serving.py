"""Serving with other engines: only legal ids, eos at frame borders, repetition, and vLLM's hooks."""

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import TokenError, UsageError
from xcodec_lm.configs.lm import LayoutConfig
from xcodec_lm.lm import serving
from xcodec_lm.lm.layouts import layout_from
from xcodec_lm.lm.sampling import NO_ID, Sampling, mixture
from xcodec_lm.lm.serving import CodeLogitsProcessor, IdRules, constrain, mix, ras_mask, recent_ids

SPEC = TokenSpec("toy", 16_000, 16_000, 320, (5, 7, 4), fingerprint="f" * 64)
RULES = IdRules(((0, 5), (5, 12), (12, 16)), bos=16, eos=17, pad=18)
SIZE = 64


def layout(specials="standard", ids="offset", n_q=3):
    return layout_from(LayoutConfig("first" if n_q == 1 else "flatten", n_q, ids, specials), SPEC)


def allowed(logits):
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


def test_rules_are_those_of_the_layout_and_survive_json():
    assert IdRules.of(layout()) == RULES
    assert IdRules.of(layout("none", "shared")) == IdRules(((0, 5), (0, 7), (0, 4)))
    assert IdRules.from_dict(RULES.to_dict()) == RULES
    for broken in (None, {}, {"id_ranges": 3}, {"id_ranges": [[1]]}):
        with pytest.raises(TokenError, match="no section 'xcodec_lm'"):
            IdRules.from_dict(broken)


def test_an_id_is_the_low_end_of_its_range_plus_the_code():
    codes = torch.tensor([[4, 0, 2], [6, 1, 3], [3, 3, 0]])  # (Q, T)
    for one in (layout(), layout(ids="shared")):
        lows = [low for low, _ in IdRules.of(one).ranges]
        assert [int(codes[q, t]) + lows[q] for t in range(3) for q in range(3)] == one.pack(codes)[:, 0].tolist()


def test_layouts_that_are_not_flat_are_refused():
    for name in ("delay", "depth", "parallel", "ar_nar"):
        with pytest.raises(TokenError, match=f"layout {name} is not one sequence"):
            IdRules.of(replace(layout(), name=name))


def test_only_ids_of_the_next_position_stay_and_eos_at_borders_after_the_minimum():
    logits = torch.randn(5, SIZE)
    generated = [[], [1], [1, 6], [1, 6, 12], [1, 6, 12, 0, 5, 13]]
    assert allowed(constrain(logits, generated, RULES)) == [
        [*range(5), 17], list(range(5, 12)), list(range(12, 16)), [*range(5), 17], [*range(5), 17],
    ]  # fmt: skip
    ends = [17 in ids for ids in allowed(constrain(logits, generated, RULES, min_frames=2))]
    assert ends == [False, False, False, False, True]
    kept = constrain(logits, generated, RULES)
    assert torch.equal(kept[kept.isfinite()], logits[kept.isfinite()])
    assert bool(logits.isfinite().all())  # the engine's own tensor is left alone
    assert not any(17 in ids for ids in allowed(constrain(logits, generated, replace(RULES, eos=None))))


def test_the_ids_allowed_are_those_that_the_layout_names():
    for one in (layout(), layout("none", "shared"), layout("none", n_q=1)):
        rules = IdRules.of(one)
        for length in range(7):
            row = constrain(torch.zeros(1, one.vocabulary.size), [[0] * length], rules, min_frames=99)
            assert row[0].isfinite().nonzero()[:, 0].tolist() == list(range(*one.logit_range(length)))


def test_streams_hold_the_ids_of_the_same_codebook():
    generated = [[0, 5, 12, 1, 6, 13, 2], [], [3, 7, 14]]
    assert recent_ids(generated, 3, 2).tolist() == [[5, 6], [NO_ID, NO_ID], [NO_ID, 3]]
    assert recent_ids(generated, 3, 0).shape == (3, 0)


def test_the_mask_bans_ids_whose_share_exceeds_the_threshold():
    generated = [[3, 5, 12] * 2 + [1, 5, 12], [3, 5, 12] * 2 + [1, 5, 12, 0], []]
    logits = constrain(torch.randn(3, SIZE), generated, RULES)
    masked = ras_mask(logits, generated, RULES, 10, 0.1)
    assert allowed(masked) == [[0, 1, 2, 4, 17], [6, 7, 8, 9, 10, 11], [*range(5), 17]]
    assert torch.equal(ras_mask(logits, generated, RULES, 10, 0.3), logits)  # three of ten do not exceed 0.3
    assert torch.equal(ras_mask(logits, generated, RULES, 0, 0.0), logits)


def test_the_mask_never_leaves_a_row_without_a_code():
    rules = IdRules(((0, 2),), eos=2)
    generated = [[0, 1, 0, 1]]
    logits = constrain(torch.randn(1, 4), generated, rules)
    assert torch.equal(ras_mask(logits, generated, rules, 4, 0.1), logits)


def test_the_mixture_is_what_our_engine_draws_with():
    sampling = Sampling(0.8, top_k=3, ras_window=4, ras_threshold=0.2, books=((1, "top_k", 2),))
    generated = [[3, 5, 12] * 3, [3, 5, 12, 0], [1, 6, 12, 2, 7]]
    logits = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(1))
    probs = mix(logits, generated, RULES, sampling, min_frames=3).exp()
    torch.testing.assert_close(probs.sum(1), torch.ones(3))
    columns = [[*range(5), 17], list(range(5, 12)), list(range(12, 16))]
    recents = [[3, 3, 3], [5], [12]]
    for row, (ids, recent) in enumerate(zip(columns, recents, strict=True)):
        recent = torch.tensor([[ids.index(one) for one in recent]])
        wanted = mixture(logits[row, ids][None], sampling.for_book(row), recent)[0]
        torch.testing.assert_close(probs[row, ids], wanted)
        assert set(allowed(probs[row : row + 1].log())[0]) <= set(ids)
    with pytest.raises(UsageError, match="temperature above 0"):
        mix(logits, generated, RULES, Sampling(0))


def test_the_processor_counts_from_the_end_of_the_prompt():
    prompt = torch.tensor([[16, 0, 5, 12]])
    ids = torch.cat([prompt, torch.tensor([[1, 6]])], 1)
    logits = torch.randn(1, SIZE)
    assert torch.equal(CodeLogitsProcessor(RULES, 4)(ids, logits), constrain(logits, [[1, 6]], RULES))
    sampling = Sampling(0.5, top_k=2)
    assert torch.equal(
        CodeLogitsProcessor(RULES, 4, 1, sampling)(prompt, logits), mix(logits, [[]], RULES, sampling, 1)
    )


@pytest.fixture
def vllm_class(monkeypatch):
    """The class over a stand-in for vLLM's adapter, which keeps one function of (ids, logits) for each row."""

    class Adapter:
        def __init__(self, vllm_config, device, is_pin_memory):
            self.requests = {}

        def add(self, row, params, output_ids):
            self.requests[row] = (self.new_req_logits_processor(params), output_ids)

        def apply(self, logits):
            for row, (process, output_ids) in self.requests.items():
                logits[row] = process(output_ids, logits[row])
            return logits

    module = ModuleType("vllm.v1.sample.logits_processor")
    module.__dict__["AdapterLogitsProcessor"] = Adapter
    for name in ("vllm", "vllm.v1", "vllm.v1.sample"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield serving.VLLMCodeLogitsProcessor
    serving.__dict__.pop("VLLMCodeLogitsProcessor")


def engine(section):
    return SimpleNamespace(model_config=SimpleNamespace(hf_config=SimpleNamespace(xcodec_lm=section)))


def test_vllm_requests_get_rules_of_their_own(vllm_class):
    processor = vllm_class(engine(RULES.to_dict()), torch.device("cpu"), False)
    assert processor.is_argmax_invariant() is False
    grows = []
    processor.add(0, SimpleNamespace(extra_args=None), grows)
    repeats = {"min_frames": 9, "ras_window": 3, "ras_threshold": 0.4, "of_another_plugin": "x"}
    processor.add(2, SimpleNamespace(extra_args=repeats), [2, 5, 12] * 3)
    for length, wanted in ((0, [*range(5), 17]), (1, list(range(5, 12)))):
        assert len(grows) == length
        logits = processor.apply(torch.zeros(3, SIZE))
        assert allowed(logits) == [wanted, list(range(SIZE)), [0, 1, 3, 4]]
        grows.append(4)


def test_vllm_refuses_what_does_not_fit(vllm_class):
    with pytest.raises(TokenError, match="xcodec_lm"):
        vllm_class(engine(None), torch.device("cpu"), False)
    vllm_class.validate_params(SimpleNamespace(extra_args={"ras_window": 10}))
    for broken in ({"min_frames": -1}, {"ras_window": -2}, {"ras_threshold": 3}, {"min_frames": "many"}):
        with pytest.raises(ValueError, match="must be"):
            vllm_class.validate_params(SimpleNamespace(extra_args=broken))


def test_without_vllm_the_rest_works():
    with pytest.raises(ImportError, match="vllm"):
        _ = serving.VLLMCodeLogitsProcessor
    with pytest.raises(AttributeError, match="no attribute"):
        _ = serving.NothingOfThisName
