"""The AR model: the published layers, a text that all audio sees, the same packed, alone and in the engine."""

from typing import Any

import pytest
import torch
from torch import nn

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import ConfigError, TokenError
from xcodec_lm.configs.valle import ValleConfig
from xcodec_lm.lm.engine import GREEDY, Engine
from xcodec_lm.lm.examples import cell_nats, known_steps, make_example
from xcodec_lm.lm.layouts import END, Layout
from xcodec_lm.lm.precision import in_precision
from xcodec_lm.lm.requests import Request
from xcodec_lm.lm.sampling import Sampling, draw, row_noise
from xcodec_lm.lm.speech import text_places
from xcodec_lm.lm.valle_ar import ValleAR, ar_layout
from xcodec_lm.lm.valle_blocks import prefix_mask

SPEC = TokenSpec("toy", 16_000, 16_000, 320, (16, 16, 16))
groups = pytest.mark.parametrize("group", [1, 2, 3])


def make(group=1, std=0.6, **options) -> tuple[Any, Layout]:
    """A model whose weights are large enough that a mistake shows, and its layout."""
    sizes: dict[str, Any] = {
        "layers": 2,
        "heads": 2,
        "dim": 32,
        "mlp_dim": 48,
        "text_size": 20,
        "n_q": 3,
        "codebook_size": 16,
    }
    config = ValleConfig(**{**sizes, "block": 120, "group": group, **options})
    torch.manual_seed(1)
    model = ValleAR(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    for positions in (model.text_positions, model.audio_positions):
        nn.init.constant_(positions.alpha, 10 * std)  # as loud as what stands there
    return model, ar_layout(config, SPEC)


def text_of(length, seed=0):
    return torch.randint(0, 20, (length,), generator=torch.Generator().manual_seed(100 + seed))


def codes_of(frames, seed=3):
    return torch.randint(0, 16, (3, frames), generator=torch.Generator().manual_seed(seed))


def inputs_of(layout, codes, end=False):
    """(L, W) ids of codes with bos in front."""
    return make_example(layout, codes, end).inputs


def flat(layout, ids):
    return ids[..., 0] if layout.flat else ids


@torch.no_grad()
@groups
def test_equals_torchs_own_layers(group):
    """The published model: pre-norm encoder layers with ReLU under a float mask, sinusoidal positions, final norm."""
    pace = 0.5 + group / 2
    model, layout = make(group, std=0.3, text_pace=pace)
    words, ids = text_of(7), inputs_of(layout, codes_of(12))
    length = len(ids)

    def position(count, pace=1.0):
        table = torch.zeros(count, 32)
        for place in range(count):
            for pair in range(16):
                angle = place * pace / 10_000 ** (2 * pair / 32)
                table[place, 2 * pair], table[place, 2 * pair + 1] = (
                    torch.tensor([angle, angle]).double().sin()[0],
                    (torch.tensor(angle).double().cos()),
                )
        return table

    table = model.audio.weight * 32**0.5
    if group == 1:
        sounds = table[ids[:, 0]]
    else:
        rows = torch.tensor(
            [[16 + i - 16 * group if i >= 16 * group else i % 16 for i in step] for step in ids.tolist()]
        )
        sounds = torch.cat([table[rows[:, slot]] for slot in range(group)], dim=1) @ model.join.weight.T
    x = torch.cat([
        model.text.weight[words] * 32**0.5 + model.text_positions.alpha * position(7, pace),
        sounds + model.audio_positions.alpha * position(length),
    ])[None]  # fmt: skip
    mask = torch.zeros(7 + length, 7 + length)
    for query in range(7 + length):
        mask[query, max(7, query + 1) :] = -torch.inf
    for block in model.trunk.blocks:
        theirs = nn.TransformerEncoderLayer(32, 2, 48, 0.0, "relu", 1e-5, batch_first=True, norm_first=True).eval()
        theirs.load_state_dict({
            "self_attn.in_proj_weight": block.attn.qkv.weight, "self_attn.in_proj_bias": block.attn.qkv.bias,
            "self_attn.out_proj.weight": block.attn.proj.weight, "self_attn.out_proj.bias": block.attn.proj.bias,
            "linear1.weight": block.fc.weight, "linear1.bias": block.fc.bias,
            "linear2.weight": block.proj.weight, "linear2.bias": block.proj.bias,
            "norm1.weight": block.norm_1.weight, "norm1.bias": block.norm_1.bias,
            "norm2.weight": block.norm_2.weight, "norm2.bias": block.norm_2.bias,
        })  # fmt: skip
        x = theirs(x, src_mask=mask)
    expected = nn.functional.layer_norm(x, (32,), model.trunk.norm.weight, model.trunk.norm.bias) @ model.head.weight.T
    hidden = model.hidden(flat(layout, ids)[None], prefix=model.text_prefix(words[None]))
    torch.testing.assert_close(model.logits(hidden), expected, atol=2e-4, rtol=1e-4)


def pack(layout, documents, length):
    """One row of documents (text, codes) as `read_rows` takes it; what is behind them is padding."""
    ids = torch.full((1, length, layout.width), layout.vocabulary.pad)
    text, document = torch.zeros(1, length, dtype=torch.bool), torch.full((1, length), -1)
    places, start, spans = torch.zeros(1, length, dtype=torch.int64), 0, []
    for number, (words, codes) in enumerate(documents):
        audio = inputs_of(layout, codes, end=True)
        middle, stop = start + len(words), start + len(words) + len(audio)
        ids[0, start:middle, 0], ids[0, middle:stop] = words, audio
        text[0, start:middle], document[0, start:stop] = True, number
        places[0, start:middle], places[0, middle:stop] = torch.arange(len(words)), torch.arange(len(audio))
        spans.append((start, middle, stop))
        start = stop
    return ids, text, places, document, spans


@torch.no_grad()
@groups
def test_packed_rows_equal_a_document_a_row_and_the_path_of_the_engine(group):
    model, layout = make(group, std=0.3)
    documents = [(text_of(5), codes_of(9)), (text_of(3, 1), codes_of(6, 4)), (text_of(8, 2), codes_of(2, 5))]
    ids, text, places, document, spans = pack(layout, documents, 50)
    packed = model.read_rows(ids, text, places, prefix_mask(document, text))
    assert bool(packed.isfinite().all())
    for (words, codes), (start, middle, stop) in zip(documents, spans, strict=True):
        alone_ids, alone_text, alone_places, own, _ = pack(layout, [(words, codes)], stop - start)
        alone = model.read_rows(alone_ids, alone_text, alone_places, prefix_mask(own, alone_text))
        torch.testing.assert_close(packed[:, start:stop], alone, atol=1e-4, rtol=1e-4)
        prefix, audio = model.text_prefix(words[None]), flat(layout, ids[:, middle:stop])
        torch.testing.assert_close(model.hidden(audio, prefix=prefix), alone, atol=1e-4, rtol=1e-4)
        cache = model.new_cache(1, 50)
        parts = [model.hidden(audio[:, :2], cache, prefix)]
        parts += [model.hidden(audio[:, i : i + 1], cache) for i in range(2, audio.shape[1])]
        torch.testing.assert_close(torch.cat(parts, 1), alone, atol=1e-4, rtol=1e-4)
        assert cache.lengths.tolist() == [stop - start] and cache.prefixes.tolist() == [len(words)]


@torch.no_grad()
def test_text_sees_text_alone_and_audio_sees_text_and_what_was_said():
    model, layout = make(std=0.3)
    words, ids = text_of(6), flat(layout, inputs_of(layout, codes_of(10)))[None]
    before = model.hidden(ids, prefix=model.text_prefix(words[None]))
    later = ids.clone()
    later[0, 5] = (later[0, 5] + 1) % 16
    after = model.hidden(later, prefix=model.text_prefix(words[None]))
    same = (before - after).abs().amax(-1)[0] < 1e-5
    assert same.tolist() == [True] * 11 + [False] * 5
    other = words.clone()
    other[5] = (other[5] + 1) % 20
    assert ((model.hidden(ids, prefix=model.text_prefix(other[None])) - before).abs().amax(-1) > 1e-4).all()


@torch.no_grad()
def reference(model, layout, words, prompt, frames, sampling, seed, may_end):
    """Decoding that reads everything again at every step, one sequence, no cache."""
    vocabulary, width = layout.vocabulary, layout.width
    codes, ended = prompt[:1].clone(), False
    prefix = None if words is None else model.text_prefix(words[None])
    while codes.shape[1] < prompt.shape[1] + frames and not ended:
        time = codes.shape[1] // width * width
        grid = torch.cat([torch.full((1, width), vocabulary.pad), layout.pack(codes[:, :time])])
        grid[0, 0] = vocabulary.bos
        hidden, known = model.hidden(flat(layout, grid)[None], prefix=prefix)[:, -1], codes.shape[1] % width
        for slot in range(known, width):
            if model.inner is None:
                logits = model.logits(hidden)[0]
            else:
                before = [int(codes[0, -1]) + vocabulary.id_range(slot - 1)[0]] if slot else None
                logits = model.inner.step(hidden, before and torch.tensor(before), None)[0]
            low, high = vocabulary.id_range(slot)
            time = codes.shape[1]
            if time == prompt.shape[1] + frames or ended:
                break
            columns = list(range(low, high)) + ([vocabulary.eos] if may_end else [])
            column = int(draw(logits[columns][None], sampling, row_noise(seed, time, len(columns))[None]))
            if column == 16:
                ended = True
            else:
                codes = torch.cat([codes, torch.tensor([[column]])], 1)
    return codes, ended


@pytest.mark.parametrize(("group", "chain"), [(1, False), (2, False), (3, False), (2, True), (3, True)])
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.9, top_k=9)], ids=["greedy", "drawn"])
def test_a_ragged_batch_gives_what_each_gives_alone(group, chain, graph, sampling):
    """Texts and prompts of several lengths, more requests than lanes, some without a prompt or without a text."""
    model, layout = make(group, text_pace=2.5, chain=chain)
    lengths = [(5, 2, 12), (9, 7, 3), (2, 0, 20), (7, 4, 0), (0, 3, 9), (3, 6, 14), (12, 1, 6)]
    asked = [
        (text_of(size, seed) if size else None, codes_of(prompt, seed), frames, seed)
        for seed, (size, prompt, frames) in enumerate(lengths)
    ]
    requests = [
        Request(
            frames,
            prompt,
            sampling,
            seed,
            may_end=True,
            prefix=None if words is None else model.text_prefix(words[None])[0],
        )
        for words, prompt, frames, seed in asked
    ]
    together = Engine(model, layout, 3, graph=graph).decode(requests)
    for one, (words, prompt, frames, seed) in zip(together, asked, strict=True):
        assert one.error is None
        codes, ended = reference(model, layout, words, prompt, frames, sampling, seed, may_end=True)
        assert torch.equal(one.codes, codes) and one.ended == ended
    assert len({code for one in together for code in one.codes[0].tolist()}) > 6


@groups
def test_a_text_over_its_speech_is_read_alike_packed_decoded_and_judged(group):
    """The places of a text are steps of speech, wherever it is read; `text_pace` then counts where none are given."""
    model, layout = make(group, std=0.3, text_over_speech=True, text_pace=2.5)
    words, codes = text_of(6), codes_of(4 * group)
    places = text_places([(1, 2.0), (3, 7.5)])
    nats, _ = model.spoken_nats(layout, words.tolist(), codes.numpy(), True, places)
    with torch.no_grad():
        ids = flat(layout, inputs_of(layout, codes, end=True))[None]
        hidden = model.hidden(ids, prefix=model.text_prefix(words[None], places))[:, 6:]
        targets = make_example(layout, codes, True).targets[None]
        known = known_steps(layout, targets)
        expected = cell_nats(layout, model.slot_logits(hidden, layout, known), targets)
    torch.testing.assert_close(nats, expected[0], atol=1e-4, rtol=1e-4)
    usual, _ = model.spoken_nats(layout, words.tolist(), codes.numpy(), True)
    counted, _ = model.spoken_nats(layout, words.tolist(), codes.numpy(), True, torch.arange(6) * 2.5)
    assert torch.equal(usual, counted) and not torch.allclose(usual, nats, atol=1e-3)


@groups
def test_a_full_context_begins_again_with_the_text(group):
    model, layout = make(group, block=24)
    words, prompt = text_of(6), codes_of(2)
    request = Request(20 * group, prompt, GREEDY, prefix=model.text_prefix(words[None])[0])
    company = Request(5 * group, codes_of(4), prefix=model.text_prefix(text_of(3, 5)[None])[0])
    made, _ = Engine(model, layout, 2).decode([request, company])
    assert made.error is None and made.refills >= 1
    # 24 positions hold 6 of text, bos and 17 steps; the step after those is read behind the last 8 of them.
    first = 18 * group
    shown = made.codes[:, first - 8 * group : first]
    again, _ = reference(model, layout, words, shown, group, GREEDY, 0, may_end=False)
    assert torch.equal(again[:, -group:], made.codes[:, first : first + group])


@torch.no_grad()
@groups
def test_guidance_by_another_text(group):
    model, layout = make(group, std=0.4)
    words, other, prompt = text_of(4), text_of(9, 1), codes_of(2 * group)
    fronts = [model.text_prefix(one[None]) for one in (words, other)]
    sampling = Sampling(0, cfg_scale=20.0)
    prefix, negative = fronts[0][0], fronts[1][0]
    requests = [Request(4 * group, prompt, sampling, seed, prefix=prefix, negative=negative) for seed in (0, 1)]
    made = Engine(model, layout, 4).decode(requests)  # the second copies what the first has read, lane by lane
    codes = prompt[:1]
    for _ in range(4):  # by hand
        ids = flat(layout, make_example(layout, torch.cat([codes, codes[:, :group]], 1), False).inputs)[None]
        logits = [model.logits(model.hidden(ids, prefix=front))[0, -1] for front in fronts]
        mixed = logits[1] + 20 * (logits[0] - logits[1])
        fresh = [mixed[slot * 16 : slot * 16 + 16].argmax() for slot in range(group)]
        codes = torch.cat([codes, torch.stack(fresh)[None]], 1)
    assert all(torch.equal(one.codes, codes) for one in made)
    plain = Engine(model, layout).decode([Request(4 * group, prompt, GREEDY, prefix=prefix)])[0]
    assert not torch.equal(plain.codes, codes)


def test_one_voice_for_many_is_read_once(monkeypatch):
    model, layout = make()
    prefix, prompt, lengths = model.text_prefix(text_of(8)[None])[0], codes_of(20), []
    hidden = model.hidden

    def counted(ids, *rest, **more):
        lengths.append(ids.shape[1])
        return hidden(ids, *rest, **more)

    monkeypatch.setattr(model, "hidden", counted)
    requests = [Request(6, prompt, seed=seed, prefix=prefix) for seed in range(4)]
    made = Engine(model, layout, 4).decode(requests)
    assert sum(length > 1 for length in lengths) == 1
    for request, one in zip(requests, made, strict=True):
        assert torch.equal(one.codes, Engine(model, layout).decode([request])[0].codes)


@torch.no_grad()
def test_a_chain_tells_each_frame_of_a_group_the_one_before():
    model, layout = make(3, std=0.3, chain=True)
    hidden, steps = torch.randn(1, 4, 32), layout.pack(codes_of(12))[None]
    before = model.inner(hidden, steps)
    for slot in range(3):  # forward is what `step` gives frame by frame
        ids = steps[0, :, slot - 1] if slot else None
        torch.testing.assert_close(model.inner.step(hidden[0], ids, None), before[0, :, slot])
        other = steps.clone()
        other[..., slot] = layout.vocabulary.id_range(slot)[0] + (other[..., slot] + 1) % 16
        changed = (model.inner(hidden, other) - before).abs().amax((0, 1, 3)) > 1e-4
        assert changed.tolist() == [place == slot + 1 for place in range(3)]
    with pytest.raises(ConfigError, match=r"model.chain is about the frames of a group, but model.group is 1"):
        ValleConfig(chain=True)


@torch.no_grad()
def test_a_chain_costs_an_utterance_what_its_frames_cost_one_by_one():
    model, layout = make(2, std=0.3, chain=True)
    words, codes = text_of(5), codes_of(7)
    nats, rows = model.spoken_nats(layout, words.tolist(), codes.numpy(), True)
    prefix, expected = model.text_prefix(words[None]), []
    for time in range(8):  # the eighth is the end
        grid = torch.cat([torch.full((1, 2), layout.vocabulary.pad), layout.pack(codes[:, : time // 2 * 2])])
        grid[0, 0] = layout.vocabulary.bos
        hidden = model.hidden(grid[None], prefix=prefix)[:, -1]
        logits = model.inner.step(hidden, torch.tensor([int(codes[0, time - 1])]) if time % 2 else None, None)[0]
        low, high = layout.vocabulary.id_range(time % 2)
        nats_here = -torch.cat([logits[low:high], logits[layout.vocabulary.eos][None]]).log_softmax(0)
        expected.append(nats_here[codes[0, time] if time < 7 else 16])
    torch.testing.assert_close(nats.flatten()[:8], torch.stack(expected), atol=1e-4, rtol=1e-4)
    assert rows.flatten()[:8].tolist() == [0] * 7 + [END]


@pytest.mark.parametrize(("group", "chain"), [(1, False), (2, False), (3, False), (2, True)])
def test_learns_a_text_and_every_weight_has_a_gradient(group, chain):
    """Initial weights guess evenly; a few steps on two utterances make the model say what the text says."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "layers": 2,
        "heads": 2,
        "dim": 32,
        "mlp_dim": 64,
        "text_size": 20,
        "n_q": 3,
        "codebook_size": 16,
    }
    model = ValleAR(ValleConfig(**sizes, dropout=0, group=group, chain=chain, recompute=True))
    layout = ar_layout(model.config, SPEC)
    documents = [(text_of(5), codes_of(9)), (text_of(5, 1), codes_of(9, 4))]
    ids, text, places, document, spans = pack(layout, documents, 60)
    examples = [make_example(layout, codes, True) for _, codes in documents]
    targets = torch.full_like(ids, -100)
    for example, (_, middle, stop) in zip(examples, spans, strict=True):
        targets[0, middle:stop] = example.targets
    optimizer, nats = torch.optim.AdamW(model.parameters(), lr=5e-3), []
    for _ in range(60):
        hidden = model.read_rows(ids, text, places, prefix_mask(document, text))
        losses = cell_nats(layout, model.slot_logits(hidden, layout, known_steps(layout, targets)), targets)
        nats.append(losses.sum().item() / int((targets != -100).sum()))
        optimizer.zero_grad()
        losses.sum().backward()
        assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters())
        optimizer.step()
    assert 2.3 < nats[0] < 4.2 and nats[-1] < 0.3
    model.eval()
    for words, codes in documents:
        request = Request(30, None, GREEDY, may_end=True, prefix=model.text_prefix(words[None])[0])
        (made,) = Engine(model, layout).decode([request])
        assert made.ended and torch.equal(made.codes, codes[:1])


@torch.no_grad()
@pytest.mark.parametrize(("precision", "off"), [("bf16", 0.1), ("int8", 0.2)])
def test_decodes_in_lower_precision(precision, off):
    model, layout = make(std=0.1)
    lower: Any = in_precision(model, precision)
    ids = flat(layout, inputs_of(layout, codes_of(20)))[None]
    exact = model.logits(model.hidden(ids, prefix=model.text_prefix(text_of(6)[None])))
    near = lower.logits(lower.hidden(ids, prefix=lower.text_prefix(text_of(6)[None]))).float()
    assert 1e-6 < (near - exact).abs().max() / exact.abs().max() < off
    (made,) = Engine(lower, layout).decode([Request(9, codes_of(3), prefix=lower.text_prefix(text_of(6)[None])[0])])
    assert made.error is None and made.codes.shape == (1, 12)


def test_says_what_does_not_fit():
    model, layout = make()
    with pytest.raises(TokenError, match=r"text id 20 is outside 0..19"):
        model.text_prefix(torch.tensor([[3, 20]]))
    with pytest.raises(TokenError, match="120 ids leaves no room for audio in the 120"):
        model.text_prefix(torch.zeros(1, 120, dtype=torch.int64))
    with pytest.raises(TokenError, match="121 positions do not fit the 120"):
        model.hidden(torch.zeros(1, 120, dtype=torch.int64), prefix=model.text_prefix(torch.zeros(1, 1).long()))
    cache, prefix = model.new_cache(1, 30), model.text_prefix(torch.zeros(1, 2).long())
    model.hidden(torch.zeros(1, 3, dtype=torch.int64), cache, prefix)
    with pytest.raises(TokenError, match="a prefix stands in front"):
        model.hidden(torch.zeros(1, 3, dtype=torch.int64), cache, prefix)
    (made,) = Engine(model, layout).decode([Request(5, codes_of(2), prefix=torch.zeros(120, 32))])
    assert "does not hold two frames" in str(made.error)
    with pytest.raises(TokenError, match=r"model.n_q is 8, but toy has 3"):
        ar_layout(ValleConfig(codebook_size=16), SPEC)
    with pytest.raises(TokenError, match=r"model.codebook_size is 1024, but the codebooks of toy have 16"):
        ar_layout(ValleConfig(n_q=3), SPEC)
