"""The NAR model: the published layers, each stage reading what it may, packed, batched and alone the same."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.configs.errors import ConfigError, TokenError, UsageError
from xcodec_lm.configs.valle import ValleConfig
from xcodec_lm.lm import valle_nar
from xcodec_lm.lm.precision import in_precision
from xcodec_lm.lm.sampling import Sampling, draw, row_noise
from xcodec_lm.lm.valle_blocks import full_mask
from xcodec_lm.lm.valle_nar import EXPECTING, ValleNAR, nearest_to_expected, refine

N_Q, SIZE, DIM = 4, 16, 32
ties = pytest.mark.parametrize("tie", ["natural", "repo", "none"])


def make(tie="natural", std=0.3, **options) -> Any:
    """A model whose weights are large enough that a mistake shows."""
    sizes: dict[str, Any] = {
        "layers": 2,
        "heads": 2,
        "dim": DIM,
        "mlp_dim": 48,
        "text_size": 20,
        "n_q": N_Q,
        "codebook_size": SIZE,
    }
    torch.manual_seed(1)
    model = ValleNAR(ValleConfig(**{**sizes, "tie": tie, **options})).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    return model


def text_of(length, seed=0):
    return torch.randint(0, 20, (length,), generator=torch.Generator().manual_seed(100 + seed))


def codes_of(frames, seed=3):
    return torch.randint(0, SIZE, (N_Q, frames), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def slow(model, words, codes, prompt_frames, stage):
    """Logits (P + T, K) of one utterance at one stage, written out: loops, one head at a time, no fused layers."""

    def position(place):
        return torch.tensor([
            (math.sin if i % 2 == 0 else math.cos)(place / 10_000 ** (i // 2 * 2 / DIM)) for i in range(DIM)
        ])  # fmt: skip

    def norm(module, x):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        normed = (x - mean) / (variance + 1e-5).sqrt() * module.norm.weight + module.norm.bias
        both = module.project.weight @ model.stages.weight[stage - 1] + module.project.bias
        return both[:DIM] * normed + both[DIM:]

    scale, rows = DIM**0.5, []
    for place, word in enumerate(words.tolist()):
        rows.append(model.text.weight[word] * scale + position(place))
    for place in range(codes.shape[1]):
        books = N_Q if place < prompt_frames else stage
        rows.append(sum(model.tables[b].weight[codes[b, place]] for b in range(books)) * scale + position(place))
    x = torch.stack(rows)
    for block in model.trunk.blocks:
        packed = norm(block.norm_1, x) @ block.attn.qkv.weight.T + block.attn.qkv.bias
        heads = []
        for head in range(2):
            q, k, v = (part[:, head * 16 : head * 16 + 16] for part in packed.split(DIM, dim=1))
            heads.append(torch.softmax(q @ k.T / 4, dim=-1) @ v)
        x = x + torch.cat(heads, 1) @ block.attn.proj.weight.T + block.attn.proj.bias
        inner = (norm(block.norm_2, x) @ block.fc.weight.T + block.fc.bias).clamp(min=0)
        x = x + inner @ block.proj.weight.T + block.proj.bias
    last = stage == N_Q - 1
    weight = {
        "natural": lambda: model.tables[stage].weight,
        "repo": lambda: model.heads[0].weight if last else model.tables[stage + 1].weight,
        "none": lambda: model.heads[stage - 1].weight,
    }[model.config.tie]()
    return (norm(model.trunk.norm, x) @ weight.T)[len(words) :]


def pack(documents, length):
    """One row of documents (text, codes, prompt frames, stage) as `read_rows` takes it."""
    ids, codes = torch.zeros(1, length).long(), torch.zeros(1, length, N_Q).long()
    text, given = torch.zeros(1, length).bool(), torch.zeros(1, length).bool()
    places, stage, document = torch.zeros(1, length).long(), torch.zeros(1, length).long(), torch.full((1, length), -1)
    start, spans = 0, []
    for number, (words, known, prompt, book) in enumerate(documents):
        middle, stop = start + len(words), start + len(words) + known.shape[1]
        ids[0, start:middle], codes[0, middle:stop] = words, known.T
        text[0, start:middle], given[0, middle : middle + prompt] = True, True
        places[0, start:middle], places[0, middle:stop] = torch.arange(len(words)), torch.arange(known.shape[1])
        stage[0, start:stop], document[0, start:stop] = book, number
        spans.append((middle, stop))
        start = stop
    return (ids, codes, text, places, full_mask(document), stage, given), spans


@torch.no_grad()
@ties
def test_packed_documents_of_several_stages_equal_the_layers_written_out(tie):
    model = make(tie)
    documents = [
        (text_of(5), codes_of(9), 3, 1),
        (text_of(3, 1), codes_of(6, 4), 0, 3),
        (text_of(7, 2), codes_of(4), 1, 2),
    ]
    row, spans = pack(documents, 45)
    logits = model.read_rows(*row)
    assert logits.shape == (1, 45, SIZE) and bool(logits.isfinite().all())
    for (words, codes, prompt, stage), (middle, stop) in zip(documents, spans, strict=True):
        expected = slow(model, words, codes, prompt, stage)
        torch.testing.assert_close(logits[0, middle:stop], expected, atol=2e-4, rtol=1e-4)
    hidden = model.hidden_rows(*row)
    wanted = torch.tensor([[6, 20, 10]])
    few = model.logits(hidden[0, wanted[0]], row[5][0, wanted[0]])
    torch.testing.assert_close(few, logits[0, wanted[0]], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_stage_reads_the_codebooks_before_it_and_all_of_the_prompt():
    model, stage, prompt = make(), 2, 3
    words, codes = text_of(5), codes_of(9)
    (row, [(middle, stop)]) = pack([(words, codes, prompt, stage)], 16)
    before = model.read_rows(*row)
    for frame in (1, 6):
        for book in range(N_Q):
            changed = row[1].clone()
            changed[0, middle + frame, book] = (changed[0, middle + frame, book] + 1) % SIZE
            after = model.read_rows(row[0], changed, *row[2:])
            moved = bool(((after - before).abs()[0, middle:stop] > 1e-5).any())
            assert moved == (frame < prompt or book < stage)
    other = model.read_rows(*row[:5], row[5].clamp(max=1), row[6])
    assert not torch.allclose(before, other, atol=1e-3)


@torch.no_grad()
def slow_refine(model, words, prompt, first, sampling, seed):
    codes = torch.zeros(N_Q, len(first), dtype=torch.int64)
    codes[0], start = first, 0
    if prompt is not None:
        start = prompt.shape[1]
        codes[:, :start] = prompt
    for stage in range(1, N_Q):
        logits = slow(model, words, codes, start, stage)[start:]
        noise = row_noise(derive_seed(seed, "refine"), stage, SIZE * len(logits)).view(-1, SIZE)
        codes[stage, start:] = draw(logits, sampling.for_book(stage), noise)
    return codes


@pytest.mark.parametrize("positions", [16_384, 40])
@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0), Sampling(0.9, top_k=5, books=((2, "temperature", 0),))], ids=["best", "drawn"]
)
def test_a_ragged_batch_gives_what_each_gives_alone(sampling, positions, monkeypatch):
    monkeypatch.setattr(valle_nar, "POSITIONS_AT_ONCE", positions)
    model = make()
    sizes = [(5, 3, 12), (9, 0, 7), (2, 6, 6), (7, None, 20), (4, 1, 2)]
    texts, prompts, firsts = [], [], []
    for seed, (words, prompt, frames) in enumerate(sizes):
        texts.append(text_of(words, seed))
        prompts.append(None if prompt is None else codes_of(prompt, seed))
        new = codes_of(frames - (prompt or 0), 50 + seed)[0]
        firsts.append(new if prompt is None else torch.cat([prompts[-1][0], new]))
    seeds = [11, 12, 13, 14, 15]
    made = refine(model, texts, prompts, firsts, sampling, seeds)
    for index, (words, prompt, first) in enumerate(zip(texts, prompts, firsts, strict=True)):
        (alone,) = refine(model, [words], [prompt], [first[None]], sampling, [seeds[index]])
        assert torch.equal(made[index], alone)
        assert torch.equal(alone, slow_refine(model, words, prompt, first, sampling, seeds[index]))
    assert torch.equal(made[2], prompts[2])  # nothing but the prompt
    assert len(made[3].unique()) > 6
    (fewer,) = refine(model, texts[:1], prompts[:1], firsts[:1], sampling, seeds[:1], n_q=2)
    assert torch.equal(fewer, made[0][:2])
    derived = refine(model, texts[:2], prompts[:2], firsts[:2], sampling, 11)
    assert torch.equal(derived[0], made[0])


def test_the_code_nearest_to_what_is_expected_is_taken():
    generator = torch.Generator().manual_seed(2)
    line = torch.arange(SIZE, dtype=torch.float32)[:, None]  # codes stand on a line
    sure = torch.full((1, SIZE), -30.0).index_fill(1, torch.tensor([5]), 30.0)
    torn = torch.full((1, SIZE), -30.0).index_fill(1, torch.tensor([3, 11]), 9.0)
    assert nearest_to_expected(torch.cat([sure, torn]), line).tolist() == [5, 7]
    vectors = [torch.randn(SIZE, 6, generator=generator) for _ in range(N_Q - 1)]
    model, texts, prompts = make(), [text_of(5), text_of(8, 1)], [codes_of(3), None]
    firsts = [torch.cat([prompts[0][0], codes_of(6, 8)[0]]), codes_of(15, 9)[0]]
    made = refine(model, texts, prompts, firsts, vectors=vectors)
    for index in range(2):
        (alone,) = refine(model, [texts[index]], [prompts[index]], [firsts[index]], vectors=vectors)
        assert torch.equal(made[index], alone)
    likeliest = refine(model, texts, prompts, firsts)
    assert any(not torch.equal(one, other) for one, other in zip(made, likeliest, strict=True))
    drawn = Sampling(temperature=0)  # sampling goes before vectors
    assert torch.equal(refine(model, texts, prompts, firsts, drawn, vectors=vectors)[1], likeliest[1])
    # Least expected squared error: checked for the first codebook that is added, over all codes.
    frames = slice(0, 15)
    logits = slow(model, texts[1], likeliest[1], 0, 1)[frames]
    shares = (logits / EXPECTING).softmax(-1)
    errors = shares @ torch.cdist(vectors[0], vectors[0]).square()  # (T, K) of each choice
    assert torch.equal(made[1][1], errors.argmin(-1))


@ties
def test_learns_and_every_weight_has_a_gradient(tie):
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "layers": 2,
        "heads": 2,
        "dim": DIM,
        "mlp_dim": 64,
        "text_size": 20,
        "n_q": N_Q,
        "codebook_size": SIZE,
    }
    model = ValleNAR(ValleConfig(**sizes, dropout=0, tie=tie, recompute=True))
    words, codes = text_of(5), codes_of(10)
    row, spans = pack([(words, codes, 2, stage) for stage in (1, 2, 3)], 48)
    wanted = torch.zeros(1, 48).bool()
    for middle, stop in spans:
        wanted[0, middle + 2 : stop] = True
    stage, targets = row[5][wanted], torch.cat([codes[book, 2:] for book in (1, 2, 3)])
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=5e-3), []
    for _ in range(50):
        loss = F.cross_entropy(model.logits(model.hidden_rows(*row)[wanted], stage), targets)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
    assert 2.3 < losses[0] < 4.2 and losses[-1] < 0.2
    (made,) = refine(model.eval(), [words], [codes[:, :2]], [codes[0]])
    assert torch.equal(made, codes)


def test_heads_that_no_position_needs_have_a_gradient_too():
    """Else training over several devices would wait for one that never comes."""
    model = make("none")
    row, _ = pack([(text_of(5), codes_of(9), 3, 1)], 14)
    model.logits(model.hidden_rows(*row), row[5]).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(("precision", "off"), [("bf16", 0.1), ("int8", 0.2)])
@torch.no_grad()
def test_refines_in_lower_precision(precision, off):
    model = make(std=0.1)
    lower: Any = in_precision(model, precision)
    row, _ = pack([(text_of(5), codes_of(9), 3, 2)], 14)
    exact, near = model.read_rows(*row), lower.read_rows(*row).float()
    assert 1e-6 < (near - exact).abs().max() / exact.abs().max() < off
    prompts, firsts = [codes_of(3), None], [codes_of(9)[0], codes_of(5)[0]]
    firsts[0][:3] = prompts[0][0]
    made = refine(lower, [text_of(4), text_of(6)], prompts, firsts, Sampling(0.8))
    assert [one.shape for one in made] == [(N_Q, 9), (N_Q, 5)]


def test_says_what_does_not_fit():
    model, words, codes = make(), text_of(5), codes_of(9)
    good = {"texts": [words], "prompts": [codes[:, :3]], "firsts": [codes[0]]}
    wrong = [
        (UsageError, "1 texts need as many", {"prompts": []}),
        (UsageError, "1, 1 and 2", {"seed": [1, 2]}),
        (UsageError, "n_q must lie in 1..4", {"n_q": 5}),
        (UsageError, "4 codebooks need vectors of 3, got 2", {"vectors": [torch.zeros(SIZE, 2)] * 2}),
        (UsageError, "all frames at once", {"sampling": Sampling(ras_window=10)}),
        (UsageError, "all frames at once", {"sampling": Sampling(cfg_scale=2)}),
        (TokenError, "with the 4 codebooks of the model, got .2, 3.", {"prompts": [codes[:2, :3]]}),
        (TokenError, "must begin with that of the prompt, 3 frames", {"firsts": [codes[1]]}),
        (TokenError, "must begin with that of the prompt", {"firsts": [codes[0, :2]]}),
        (TokenError, "codes must lie in 0..15, got", {"prompts": [None], "firsts": [codes[0] + 9]}),
        (TokenError, "got .2, 9.", {"firsts": [codes[:2]]}),
        (TokenError, "text id 99 is outside 0..19", {"texts": [torch.tensor([1, 99])]}),
    ]
    for kind, words_of, change in wrong:
        with pytest.raises(kind, match=words_of):
            refine(model, **{**good, **change})
    assert refine(model, [], [], []) == []
    with pytest.raises(TokenError, match=r"stages must lie in 1..3, got 0..2"):
        model.logits(torch.zeros(2, DIM), torch.tensor([0, 2]))
    with pytest.raises(ConfigError, match="at least 2"):
        make(n_q=1)
