"""Conditions as a prefix: what is drawn, what a row reads, a model that obeys, guidance, company, resume."""
# pyright: reportArgumentType=false

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from xcodec_lm import configs
from xcodec_lm.codec.runtime.run import Run, RunOptions, read_metrics
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.conditioning import ConditionConfig
from xcodec_lm.configs.errors import ConfigError, TokenError, XcodecLMError
from xcodec_lm.configs.lm import DepthConfig, GPTConfig, LayoutConfig, LMRunConfig
from xcodec_lm.configs.run import OptimConfig
from xcodec_lm.configs.sound import SoundDataConfig, SoundTrainConfig
from xcodec_lm.lm.condition_train import ConditionedStretches, make_trainer, parameter_count
from xcodec_lm.lm.conditioning import ConditionedGPT, Conditions, Pool
from xcodec_lm.lm.engine import Engine
from xcodec_lm.lm.examples import IGNORED
from xcodec_lm.lm.layouts import layout_from
from xcodec_lm.lm.load import load_lm
from xcodec_lm.lm.requests import Request
from xcodec_lm.lm.sampling import Sampling
from xcodec_lm.lm.shards import StoreWriter, TokenStore

SPEC = TokenSpec("toy", 16_000, 16_000, 320, (16, 16), fingerprint="c" * 64)
DIM = 6
TEXT, AUDIO = torch.eye(DIM)[:3], torch.eye(DIM)[3:]
LAYOUTS = {
    "flatten": LayoutConfig("flatten", 2),
    "shared": LayoutConfig("flatten", 2, ids="shared", specials="none"),
    "delay": LayoutConfig("delay", 2),
    "parallel": LayoutConfig("parallel", 2),
    "depth": LayoutConfig("depth", 2),
}


def make_store(folder, count=24, frames=12):
    """Recordings of class 0 count upwards, those of class 1 downwards; some are short, so that rows hold several."""
    rng = np.random.default_rng(0)
    with StoreWriter(folder, SPEC) as writer:
        for number in range(count):
            length = frames if number % 4 else 4
            first = (rng.integers(16) + (1 - 2 * (number % 2)) * np.arange(length)) % 16
            row = {"id": str(number), "split": "dev" if number % 6 >= 4 else "train"}
            writer.add(row, np.stack([first, (first + 5) % 16], axis=1))
    return TokenStore.open(folder)


def conditions_of(count=24, drop=0.2, seed=0, text=0.5):
    """Two captions a recording of class 0, one of class 1; the last recording but one has no text, the last nothing."""
    texts = [[0, 1] if number % 2 == 0 else [2] for number in range(count - 2)] + [[], []]
    sounds = [[number % 2] for number in range(count - 1)] + [[]]
    pools = {"text": Pool.of(TEXT, texts), "audio": Pool.of(AUDIO, sounds)}
    return Conditions(pools, {"text": text, "audio": 1 - text}, drop, seed)


def make_config(layout="flatten", steps=6, prefix=2, drop=0.2, **values):
    return SoundTrainConfig(
        model=GPTConfig(layers=1, heads=2, dim=32, block=24, layout=LAYOUTS[layout], depth=DepthConfig(1, 2, 16)),
        condition=ConditionConfig(size=DIM, tokens=prefix, drop=drop),
        data=SoundDataConfig(batch_codes=192, micro_batch_codes=96, eval_batches=4, **values),
        optim=OptimConfig(steps=steps, lr=1e-2, betas=(0.9, 0.95), schedule="cosine", warmup_steps=3, clip_norm=1.0),
        run=LMRunConfig(log_every=1, eval_every=3, save_every=3),
    )


def train(config, store, out, max_steps=None):
    with Run(config, RunOptions(out=out, device="cpu", max_steps=max_steps), "test") as run:
        return make_trainer(run, config, store, conditions_of(drop=config.condition.drop), {"labels": []}).fit()


def make_model(layout="flatten", prefix=2, std=0.5, kind: Any = "vector", drop=0.1, block=60):
    torch.manual_seed(1)
    made = layout_from(LAYOUTS[layout], SPEC)
    sizes = GPTConfig(layers=2, heads=2, dim=32, block=block, layout=LAYOUTS[layout], depth=DepthConfig(1, 2, 16))
    model = ConditionedGPT(sizes, made.vocabulary.size, ConditionConfig(kind, DIM, prefix, drop)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model.requires_grad_(False), made


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("conditioned") / "tokens")


# ------------------------------------------------------------------ what is drawn


def drawn(conditions, recording, positions):
    return [(tuple(value.tolist()), out) for value, out in (conditions.draw(recording, p) for p in positions)]


def test_draws_are_a_function_of_seed_and_position():
    once = drawn(conditions_of(), 0, range(200))
    assert drawn(conditions_of(), 0, reversed(range(200)))[::-1] == once
    assert drawn(conditions_of(seed=1), 0, range(200)) != once
    assert conditions_of().digest() == conditions_of().digest() != conditions_of(drop=0.3).digest()


def test_draws_keep_their_shares():
    found = drawn(conditions_of(drop=0.25, text=0.7), 0, range(4000))
    kinds = {int(np.argmax(value)) for value, _ in found}
    assert kinds == {0, 1, 3}  # both captions and the sound
    text = np.mean([np.argmax(value) < 3 for value, _ in found])
    first = np.mean([np.argmax(value) == 0 for value, _ in found])
    out = np.mean([dropped for _, dropped in found])
    # Five standard errors of 4000 draws.
    assert text == pytest.approx(0.7, abs=0.04) and first == pytest.approx(0.35, abs=0.04)
    assert out == pytest.approx(0.25, abs=0.04)


def test_a_recording_that_lacks_a_kind_draws_from_the_other(store):
    conditions = conditions_of(drop=0)
    assert {np.argmax(value) for value, _ in drawn(conditions, 22, range(50))} == {3}
    assert conditions.has(22) and not conditions.has(23)
    assert not conditions_of(text=1.0).has(22)  # sounds are never drawn then
    train = ConditionedStretches(store, "train", layout_from(LAYOUTS["flatten"], SPEC), 24, 0, conditions, 2)
    dev = ConditionedStretches(store, "dev", train.layout, 24, 0, conditions, 2)
    assert train.left_out == [] and dev.left_out == ["23"] and 23 not in dev.slots
    assert torch.equal(conditions.fixed(0), TEXT[0]) and torch.equal(conditions.fixed(22), AUDIO[0])
    with pytest.raises(ConfigError, match="share above 0"):
        Conditions({"text": Pool.of(TEXT, [[0]])}, {"text": 0.0}, 0.1, 0)


# ------------------------------------------------------------------ what a row reads


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stretches_that_share_a_row_are_those_alone(store, layout):
    model, made = make_model(layout)
    stretches = ConditionedStretches(store, "train", made, 24, 0, conditions_of(), 2)
    rows = stretches.packer().take(3)
    assert any(len(row) > 1 for row in rows)
    objective_of = _objective(model, made)
    packed = stretches.batch(rows)
    assert packed.inputs.shape[1] <= stretches.capacity == 24 + 2 + made.lead
    together = objective_of(*objective_of.prepare(packed))
    alone = []
    for position in (position for row in rows for position in row):
        batch = stretches.batch([[position]])
        assert batch.document is None and (batch.where[0, :2] == torch.arange(2)).all()
        alone.append(objective_of(*objective_of.prepare(batch))[batch.targets != IGNORED])
    torch.testing.assert_close(together[packed.targets != IGNORED], torch.cat(alone), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hidden_codes_are_asked_for_and_conditions_stay(store, layout, monkeypatch):
    monkeypatch.setattr("xcodec_lm.lm.condition_train.HIDDEN_RUN", 2)  # stretches are short here
    made = layout_from(LAYOUTS[layout], SPEC)
    shown, hiding = (
        ConditionedStretches(store, "train", made, 24, 0, conditions_of(), 2, hidden=share) for share in (0.0, 0.9)
    )
    first, changed = 2 + made.lead, 0
    for position in range(60):
        plain, one = shown.batch([[position]]), hiding.batch([[position]])
        assert torch.equal(one.targets, plain.targets) and torch.equal(one.values, plain.values)
        assert torch.equal(one.inputs[0, :first], plain.inputs[0, :first])
        gone = (one.inputs != plain.inputs)[0].any(-1)
        assert set(one.inputs[0, gone].flatten().tolist()) <= {made.vocabulary.pad or 0}
        assert torch.equal(hiding.batch([[position]]).inputs, one.inputs)
        changed += bool(gone.any())
    assert 10 < changed < 60
    assert all(torch.equal(hiding.fixed(slot).inputs, shown.fixed(slot).inputs) for slot in range(len(shown)))


def _objective(model, layout):
    from xcodec_lm.lm.condition_train import ConditionedCells

    return ConditionedCells(model, layout, {})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_read_what_decoding_reads(store, layout):
    """The prefix as places within a row gives what it gives in front of the ids; without bos it predicts the first."""
    model, made = make_model(layout)
    stretches = ConditionedStretches(store, "train", made, 24, 0, conditions_of(drop=0), 2)
    batch = stretches.batch([[3]])
    front = model.prefix_of(batch.values)
    ids = batch.inputs[:, 2:]
    plain = model.hidden(ids[..., 0] if made.flat else ids, prefix=front)
    torch.testing.assert_close(model.read_rows(batch.inputs, batch.where, batch.values, batch.dropped), plain)
    recording, start, frames, ends = stretches.place(3)
    codes = torch.from_numpy(store.codes(recording)[start : start + frames].T.astype(np.int64))
    predicted = batch.targets[0][(batch.targets[0] != IGNORED).any(dim=1)]
    whole = made.pack(codes, ends)
    pad = -1 if made.vocabulary.pad is None else made.vocabulary.pad
    wanted = whole[(whole != pad).any(dim=1)]
    assert torch.equal(predicted.where(predicted != IGNORED, pad), wanted)


def test_a_condition_that_is_left_out_does_not_matter():
    model, _ = make_model()
    dropped = torch.tensor([True, True, False])
    fronts = model.condition(torch.stack([TEXT[0], TEXT[1], TEXT[1]]), dropped)
    assert torch.equal(fronts[0], fronts[1]) and torch.equal(fronts[0], model.null_prefix())
    assert not torch.equal(fronts[1], fronts[2])
    with pytest.raises(ConfigError, match="always had a condition"):
        make_model(drop=0.0)[0].null_prefix()
    with pytest.raises(TokenError, match=r"vectors \(N, 6\), got \(1, 7\)"):
        model.prefix_of(torch.zeros(1, 7))


def test_classes_are_conditions_too():
    model, made = make_model(kind="label")
    fronts = model.prefix_of(torch.tensor([0, 5]))
    assert fronts.shape == (2, 2, 32)
    outcomes = Engine(model, made, 2).decode([Request(8, prefix=front, seed=1) for front in fronts])
    assert not torch.equal(outcomes[0].codes, outcomes[1].codes)
    with pytest.raises(TokenError, match="class 6 is outside"):
        model.prefix_of(torch.tensor([6]))


# ------------------------------------------------------------------ decoding


def request_of(model, number, frames, scale=1.0, seed=None):
    front = model.prefix_of(TEXT[number % 3][None])[0]
    negative = model.null_prefix() if scale != 1 else None
    sampling = Sampling(cfg_scale=scale)
    return Request(frames, None, sampling, number if seed is None else seed, prefix=front, negative=negative)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_requests_in_company_give_what_they_give_alone(layout, scale):
    model, made = make_model(layout)
    requests = [request_of(model, number, frames, scale) for number, frames in enumerate((9, 3, 14, 1, 6))]
    together = Engine(model, made, 6).decode(requests)
    for request, one in zip(requests, together, strict=True):
        assert one.error is None and one.codes.shape == (2, request.frames)
        assert torch.equal(Engine(model, made, 2).decode([request])[0].codes, one.codes)


@pytest.mark.parametrize("layout", ["flatten", "delay"])
def test_guidance_1_is_no_guidance_and_0_no_condition(layout):
    model, made = make_model(layout)
    plain = request_of(model, 1, 12)
    one = replace(plain, negative=model.null_prefix(), sampling=Sampling(cfg_scale=1.0))
    none = replace(one, sampling=Sampling(cfg_scale=0.0))
    empty = replace(plain, prefix=model.null_prefix())
    codes = [Engine(model, made, 2).decode([request])[0].codes for request in (plain, one, none, empty)]
    assert torch.equal(codes[0], codes[1]) and torch.equal(codes[2], codes[3])
    assert not torch.equal(codes[0], codes[2])


def test_beyond_the_block_the_condition_stays_in_front(monkeypatch):
    model, made = make_model(block=24)
    fronts, hidden = [], ConditionedGPT.hidden

    def watched(self, ids, cache=None, prefix=None, **rest):
        if prefix is not None:
            fronts.append(prefix[0])
        return hidden(self, ids, cache, prefix, **rest)

    monkeypatch.setattr(ConditionedGPT, "hidden", watched)
    request = request_of(model, 0, 40, 2.0)
    one = Engine(model, made, 2).decode([request])[0]
    assert one.refills > 2 and one.codes.shape == (2, 40)
    assert len(fronts) == 2 * (1 + one.refills)
    assert all(torch.equal(front, request.prefix) for front in fronts[::2])
    assert all(torch.equal(front, request.negative) for front in fronts[1::2])


# ------------------------------------------------------------------ training


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("obeys") / "run"
    config = make_config(steps=150)
    return train(replace(config, run=LMRunConfig(eval_every=150, save_every=150)), store, out)


def obedience(model, layout, values, scale):
    """Share of steps from one code to the next that go the way of the class; values of class 0, then of class 1."""
    sampling, shares = Sampling(cfg_scale=scale), []
    for way, value in zip((1, -1), values, strict=True):
        front = model.prefix_of(value[None])[0]
        requests = [Request(8, None, sampling, seed, prefix=front, negative=model.null_prefix()) for seed in range(10)]
        codes = torch.stack([one.codes[0] for one in Engine(model, layout, 20).decode(requests)])
        shares.append(float(((codes.diff() - way) % 16 == 0).float().mean()))
    return shares


def test_a_trained_model_obeys_text_and_sound(trained):
    loaded = load_lm(trained / "model", model_class=ConditionedGPT)
    model, layout = loaded.model, loaded.layout
    for values in ((TEXT[0], TEXT[2]), (TEXT[1], TEXT[2]), (AUDIO[0], AUDIO[1])):
        assert min(obedience(model, layout, values, 2.0)) > 0.8
    assert max(obedience(model, layout, (TEXT[2], TEXT[0]), 2.0)) < 0.15  # the other class's caption, the other way


def test_the_exported_model_is_the_trained_one(trained, tmp_path):
    model = ConditionedGPT.from_pretrained(trained / "model")
    assert model.prefix == 2 and model.positions == 24 + 2 + 1 and model.condition.config.size == DIM
    model.save_pretrained(tmp_path / "half", {"codec": {}}, half=True)
    again = ConditionedGPT.from_pretrained(tmp_path / "half")
    torch.testing.assert_close(again.prefix_of(TEXT), model.prefix_of(TEXT), atol=1e-3, rtol=1e-2)
    with pytest.raises(XcodecLMError, match="xcodec_lm_conditioned_gpt"):
        load_lm(trained / "model")


@pytest.mark.parametrize("layout", ["flatten", "shared", "delay", "parallel"])
def test_a_run_that_stopped_goes_on_bit_for_bit(store, tmp_path, layout):
    config = make_config(layout)
    train(config, store, tmp_path / "whole")
    train(config, store, tmp_path / "parts", max_steps=3)
    torch.randn(7)  # whatever the generator's state was, it must not matter
    train(config, store, tmp_path / "parts")
    whole, parts = (
        [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in read_metrics(tmp_path / name)]
        for name in ("whole", "parts")
    )
    assert whole == parts and len(whole) == 6 and all(math.isfinite(row["loss"]) for row in whole)
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


SCRIPT = """
import sys
from pathlib import Path
import torch
from xcodec_lm import configs
from xcodec_lm.codec.runtime.run import Run, RunOptions
from xcodec_lm.configs.sound import SoundTrainConfig
from xcodec_lm.lm.condition_train import make_trainer
from xcodec_lm.lm.conditioning import Conditions, Pool
from xcodec_lm.lm.shards import TokenStore
torch.set_num_threads(1)
config, store = configs.load(sys.argv[1], SoundTrainConfig), TokenStore.open(sys.argv[2])
pools = {"text": Pool.of(torch.eye(6), [[number % 6] for number in range(len(store))])}
with Run(config, RunOptions(out=Path(sys.argv[3]), device="cpu"), "test") as run:
    make_trainer(run, config, store, Conditions(pools, {"text": 1.0}, 0.2, 0), {}).fit()
"""


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_several_processes_train_as_one_does(store, tmp_path, shard):
    config = make_config(steps=4)
    (tmp_path / "train.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for name, sharded, words in (("one", False, [sys.executable]), ("two", shard, launch)):
        configs.save(replace(config, run=replace(config.run, shard=sharded)), tmp_path / f"{name}.yaml")
        command = [*words, "train.py", f"{name}.yaml", str(store.folder), name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    rows = [read_metrics(tmp_path / name) for name in ("one", "two")]
    assert [row["loss"] for row in rows[0]] == pytest.approx([row["loss"] for row in rows[1]], rel=1e-4)
    weights = [ConditionedGPT.from_pretrained(tmp_path / name / "model").state_dict() for name in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-4, rtol=1e-3)


def test_the_paper_s_model_has_the_paper_s_size():
    config = configs.load("sound/paper", SoundTrainConfig)
    assert (config.optim.steps, config.optim.lr, config.optim.warmup_steps) == (80_000, 3e-4, 2000)
    assert config.data.batch_codes == 8 * config.model.block == 8 * 2000 and config.data.text_share == 1
    spec = TokenSpec("codes", 16_000, 16_000, 320, (1024,) * 8)
    layout = layout_from(config.model.layout, spec)
    assert layout.frames_in(config.model.block) == 10 * spec.frame_rate
    dim, ids = 1024, layout.vocabulary.size
    blocks = 24 * (12 * dim * dim + 13 * dim) + 2 * dim
    positions = 2000 + 1 + 1  # codes, condition, bos
    condition = 512 * dim + dim + dim  # the linear layer, and the prefix that says nothing
    assert parameter_count(config, ids) == blocks + (ids + positions) * dim + condition
    tiny = configs.load("sound/tiny", SoundTrainConfig)
    with_clap = replace(tiny, condition=replace(tiny.condition, size=512))
    assert 2 * parameter_count(with_clap, layout_from(tiny.model.layout, spec).vocabulary.size) < 2_000_000
