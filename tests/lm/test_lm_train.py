"""The trainer: exact resume, one meaning on any number of processes, a model that learns, a run folder that loads."""

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xcodec_lm.codec.runtime.run import RunOptions, read_metrics
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import ConfigError, TokenError, XcodecLMError
from xcodec_lm.configs.lm import DepthConfig, GPTConfig, LayoutConfig, LMDataConfig, LMRunConfig, LMTrainConfig
from xcodec_lm.configs.loader import save
from xcodec_lm.configs.run import OptimConfig
from xcodec_lm.lm.anchors import UnigramModel, mean_bits, model_bits
from xcodec_lm.lm.examples import IGNORED
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.layouts import END, layout_from
from xcodec_lm.lm.model_files import read_model_config
from xcodec_lm.lm.shards import StoreWriter, TokenStore
from xcodec_lm.lm.stretches import Stretches
from xcodec_lm.lm.train import describe, summary, train

SPEC = TokenSpec("toy", 16_000, 16_000, 320, (16, 16, 16), fingerprint="c" * 64)


def make_store(folder, documents=12, frames=70, codec=None):
    """Recordings that count upwards from a random code: predictable, though all codes are equally frequent."""
    rng = np.random.default_rng(0)
    with StoreWriter(folder, SPEC, codec=codec) as writer:
        for number in range(documents):
            length = frames if number % 3 else 9  # some are shorter than a window
            first = (np.arange(length) + rng.integers(16)) % 16
            codes = np.stack([first, (3 * first + 1) % 16, (first + 5) % 16], axis=1)
            writer.add({"id": str(number), "split": "dev" if number % 4 == 3 else "train"}, codes)
    return folder


def make_config(tokens, steps=6, dropout=0.1, specials: Any = "standard", **optim):
    return LMTrainConfig(
        model=GPTConfig(
            layers=1, heads=2, dim=32, block=32, dropout=dropout, layout=LayoutConfig("flatten", 2, specials=specials)
        ),
        data=LMDataConfig(
            tokens=(str(tokens),) if tokens else (), batch_codes=200, micro_batch_codes=64, eval_batches=4
        ),
        optim=OptimConfig(
            steps=steps, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, schedule="cosine", warmup_steps=3, clip_norm=1.0, **optim
        ),
        run=LMRunConfig(log_every=1, eval_every=3, save_every=3),
    )


def rows_of(folder):
    """What was logged, but for how fast it went."""
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in read_metrics(folder)]


def options(out, **values):
    return RunOptions(out=out, device="cpu", **values)


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "tokens")


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_a_run_that_stopped_goes_on_bit_for_bit(tmp_path, store, ema_decay):
    config = make_config(store, ema_decay=ema_decay)
    train(config, options(tmp_path / "whole"))
    train(config, options(tmp_path / "parts", max_steps=3))
    assert len(read_metrics(tmp_path / "parts")) == 3
    assert (tmp_path / "parts" / "model" / "model.safetensors").is_file()  # of the steps so far
    torch.randn(7)  # whatever the generator's state was, it must not matter
    train(config, options(tmp_path / "parts"))
    whole, parts = rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts")
    assert whole == parts and len(whole) == 6
    books = {"bits_q1", "bits_q2", "eval/bits_q1", "eval/bits_q2"}
    assert set(whole[2]) == {"step", "loss", "bits", "lr", "grad_norm", "eval/bits", "eval/bits_per_s", *books}
    assert whole[2]["eval/bits_per_s"] == pytest.approx(50 * (whole[2]["eval/bits_q1"] + whole[2]["eval/bits_q2"]))
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


TRAIN = (
    "import sys\nfrom pathlib import Path\nimport torch\nfrom xcodec_lm import configs\n"
    "from xcodec_lm.configs.lm import LMTrainConfig\nfrom xcodec_lm.codec.runtime.run import RunOptions\n"
    "from xcodec_lm.lm.train import train\ntorch.set_num_threads(int(sys.argv[3]))\n"
    "train(configs.load(sys.argv[1], LMTrainConfig), RunOptions(out=Path(sys.argv[2]), device='cpu'))\n"
)


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(tmp_path, store, kills):
    steps = 12 * kills
    config = make_config(store, steps=steps)
    config = replace(config, run=LMRunConfig(log_every=1, eval_every=steps, save_every=3))
    save(config, tmp_path / "config.yaml")
    train(config, options(tmp_path / "whole"))
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "config.yaml"), str(tmp_path / "killed")]
    command.append(str(torch.get_num_threads()))  # sums in another order would differ in their last bits
    rng, killed, metrics = np.random.default_rng(0), 0, tmp_path / "killed" / "metrics.jsonl"
    while killed < kills:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(metrics.read_text().splitlines()) if metrics.is_file() else 0
        wanted = before + int(rng.integers(2, 12))
        while process.poll() is None:  # until it has gone on a few steps, and a moment longer
            if metrics.is_file() and len(metrics.read_text().splitlines()) >= min(wanted, steps - 2):
                time.sleep(float(rng.uniform(0, 0.02)))
                break
            time.sleep(0.002)
        process.kill()
        if process.wait() != -9:
            break
        killed += 1
    assert killed >= 1
    train(config, options(tmp_path / "killed"))
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")
    weights = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "killed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize(
    ("processes", "shard"), [(2, False), (2, True), pytest.param(4, False, marks=pytest.mark.slow)]
)
def test_several_processes_train_as_one_does(tmp_path, store, processes, shard):
    config = make_config(store, steps=5, dropout=0.0)
    save(replace(config, run=replace(config.run, shard=shard)), tmp_path / "config.yaml")
    script = tmp_path / "run.py"
    script.write_text(TRAIN)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    arguments = [str(script), str(tmp_path / "config.yaml"), str(tmp_path / "several"), "1"]
    done = subprocess.run([*launch, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    train(config, options(tmp_path / "one"))
    for a, b in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "several"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    weights = [GPT.from_pretrained(tmp_path / name / "model").state_dict() for name in ("one", "several")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-4, rtol=1e-3)


def test_one_process_cannot_shard(tmp_path, store):
    config = make_config(store)
    with pytest.raises(ConfigError, match="needs several devices"):
        train(replace(config, run=replace(config.run, shard=True)), options(tmp_path / "run"))


@pytest.mark.parametrize("specials", ["none", "standard"])
def test_learns_what_follows_what(tmp_path, store, specials):
    config = make_config(store, steps=120, dropout=0.0, specials=specials)
    train(config, options(tmp_path / "run"))
    tokens = TokenStore.open(store)
    layout = layout_from(config.model.layout, tokens.spec)

    def codes(split):
        return [torch.from_numpy(tokens.codes(index).astype(np.int64).T) for index in tokens.split(split)]

    unigram = UnigramModel((16, 16)).fit(one[:2] for one in codes("train"))
    entropy = mean_bits(unigram, codes("dev")).mean()
    assert entropy == pytest.approx(4, abs=0.3)
    model = GPT.from_pretrained(tmp_path / "run" / "model")
    measured = model_bits(model, layout, codes("dev"), unigram).mean()
    assert measured < 0.35 * entropy
    last = read_metrics(tmp_path / "run")[-1]
    assert last["bits"] == pytest.approx(last["loss"] / math.log(2))
    assert last["eval/bits"] < 0.35 * entropy


def test_the_loss_does_not_depend_on_micro_batches(tmp_path, store):
    config = make_config(store, steps=3, dropout=0.0)
    config = replace(config, data=replace(config.data, eval_batches=20))  # all of dev, however large the batches
    train(config, options(tmp_path / "a"))
    train(replace(config, data=replace(config.data, micro_batch_codes=1000)), options(tmp_path / "b"))
    for a, b in zip(rows_of(tmp_path / "a"), rows_of(tmp_path / "b"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_stretches_begin_with_a_frame_and_stay_in_their_recording(store):
    tokens = TokenStore.open(store)
    layout = layout_from(LayoutConfig("flatten", 2), SPEC)
    data = Stretches(tokens, "train", layout, block=33, seed=4)  # 33 codes hold 16 frames
    lengths, starts = [], set()
    for position in range(2 * len(data)):
        example = data.example(position)
        assert len(example) == data.steps(position) <= data.capacity
        ids = example.targets[example.rows[:, 0] != END]
        first, second = layout.unpack(ids)
        assert torch.equal((3 * first + 1) % 16, second)  # the stretch begins with codebook 0
        assert torch.equal((first[:-1] + 1) % 16, first[1:])  # and does not cross into another recording
        document, start, frames, ends = data.place(position)
        assert ends == (start + frames == tokens.rows[document]["frames"]) == bool((example.rows == END).any())
        lengths.append(frames)
        starts.add(int(first[0]))
    # Both epochs hold every recording as often as it has rows: ceil(70 / 16) = 5, or 1 for a short one.
    train_rows = [tokens.rows[index]["frames"] for index in tokens.split("train")]
    assert lengths.count(16) == 2 * 5 * train_rows.count(70) and lengths.count(9) == 2 * train_rows.count(9)
    assert len(starts) > 8  # crops differ


def test_validation_predicts_every_code_of_the_split_once(store):
    tokens = TokenStore.open(store)
    total = sum(2 * tokens.rows[index]["frames"] for index in tokens.split("dev"))
    for specials in ("standard", "none"):
        layout = layout_from(LayoutConfig("flatten", 2, specials=specials), SPEC)
        dev = Stretches(tokens, "dev", layout, 32, 0)
        predicted = sum(int((dev.fixed(slot).rows >= 0).sum()) for slot in range(len(dev)))
        assert predicted == total - (0 if specials == "standard" else len(dev))  # without bos, not a row's first


@pytest.mark.parametrize("pack", [True, False])
def test_packing_fills_rows_and_loses_nothing(store, pack):
    tokens = TokenStore.open(store)
    data = Stretches(tokens, "train", layout_from(LayoutConfig("first"), SPEC), 64, 0, pack)
    rows = data.packer().take(40)
    taken = sorted(position for row in rows for position in row)
    assert taken[: len(taken) - 130] == list(range(len(taken) - 130)) or not pack
    batch = data.batch(rows[:4])
    assert (batch.document is not None) == pack
    assert int((batch.targets != IGNORED).sum()) == sum(data.steps(p) for row in rows[:4] for p in row)


@pytest.mark.parametrize(
    "layout",
    [
        LayoutConfig("delay", 3),
        LayoutConfig("depth", 2),
        LayoutConfig("parallel", 2),
        LayoutConfig("grouped", group=2),
        LayoutConfig("coarse_first", 2, chunk=4),
    ],
    ids=lambda layout: layout.name,
)
def test_every_layout_learns(tmp_path, store, layout):
    config = make_config(store, steps=80, dropout=0.0)
    sizes = replace(config.model, layout=layout, depth=DepthConfig(1, 2, 32))
    train(replace(config, model=sizes), options(tmp_path / "run"))
    last = rows_of(tmp_path / "run")[-1]
    # The first codebook counts upwards: two bits less than the four of its unigram, at the least. In grouped layouts
    # the second of two frames is predicted without seeing the first, and still follows from the group before.
    assert last.get("eval/bits_q1", last["eval/bits"]) < 2


@pytest.mark.parametrize("name", ["muon", "scaled_adam"])
def test_other_optimizers_resume_bit_for_bit_too(tmp_path, store, name):
    config = make_config(store, dropout=0.0, name=name)
    train(config, options(tmp_path / "whole"))
    train(config, options(tmp_path / "parts", max_steps=3))
    train(config, options(tmp_path / "parts"))
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "parts")


def test_a_torn_checkpoint_falls_back_to_the_one_before(tmp_path, store, capsys):
    config = make_config(store, steps=9)
    train(config, options(tmp_path / "whole"))
    train(config, options(tmp_path / "torn", max_steps=6))
    newest = tmp_path / "torn" / "checkpoints" / "step-6" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    capsys.readouterr()
    train(config, options(tmp_path / "torn"))
    said = capsys.readouterr()
    assert "step-6" in said.err + said.out and "trying the one before it" in said.err + said.out
    assert rows_of(tmp_path / "torn") == rows_of(tmp_path / "whole")


def test_starts_from_a_trained_model_of_the_same_codec(tmp_path, store):
    config = make_config(store, steps=40, dropout=0.0)
    train(config, options(tmp_path / "first"))
    again = replace(config, init=str(tmp_path / "first"), optim=replace(config.optim, steps=1, lr=1e-6))
    train(again, options(tmp_path / "second"))
    before, after = rows_of(tmp_path / "first")[-1], rows_of(tmp_path / "second")[-1]
    assert after["eval/bits"] == pytest.approx(before["eval/bits"], abs=0.01)
    longer = replace(again, model=replace(config.model, block=48))
    train(longer, options(tmp_path / "longer"))
    other = replace(again, model=replace(config.model, layers=2))
    with pytest.raises(ConfigError, match="another architecture"):
        train(other, options(tmp_path / "other"))
    with pytest.raises(ConfigError, match="has layout"):
        train(replace(again, model=replace(config.model, layout=LayoutConfig())), options(tmp_path / "other"))
    stranger = replace(SPEC, fingerprint="d" * 64)
    with StoreWriter(tmp_path / "foreign", stranger) as writer:
        writer.add({"id": "x"}, np.zeros((90, 3), np.int64))
    with pytest.raises(ConfigError, match="speaks the tokens of codec cccccccccccc"):
        train(
            replace(again, data=replace(config.data, tokens=(str(tmp_path / "foreign"),))), options(tmp_path / "other")
        )


def test_recomputed_activations_train_the_same(tmp_path, store):
    config = make_config(store, steps=2, dropout=0.0)
    train(config, options(tmp_path / "a"))
    train(replace(config, model=replace(config.model, recompute=True)), options(tmp_path / "b"))
    for a, b in zip(rows_of(tmp_path / "a"), rows_of(tmp_path / "b"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_the_model_names_its_codec_relative_to_the_run(tmp_path):
    (tmp_path / "codec").mkdir()
    store = make_store(tmp_path / "tokens", codec=tmp_path / "codec")
    train(make_config(store, steps=1), options(tmp_path / "run"))
    header = read_model_config(tmp_path / "run" / "model")
    assert header["codec"] == {"fingerprint": "c" * 64, "path": "../codec", "spec": SPEC.to_dict()}
    assert header["steps"] == 1
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["fingerprint"] == "c" * 64 and data["recordings"] == 12


def test_bf16_trains_in_a_process_that_trained_in_fp32(tmp_path, store):
    train(make_config(store, steps=1), options(tmp_path / "before"))
    config = make_config(store, steps=3, ema_decay=0.9)
    train(replace(config, run=replace(config.run, precision="bf16")), options(tmp_path / "run"))
    rows = read_metrics(tmp_path / "run")
    assert all(math.isfinite(row["loss"]) for row in rows) and rows[-1]["eval/bits"] < 10
    weights = GPT.from_pretrained(tmp_path / "run" / "model").state_dict()
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_describes_a_run_without_making_it(store):
    facts = describe(make_config(store))
    assert facts["parameters"] == GPT(make_config(store).model, 64).parameter_count()
    assert facts["vocabulary"] == 64 and facts["rows_per_step"] == 6 and facts["codes_per_step"] == 192
    assert facts["micro_batches"] == 3 and describe(make_config(store), world=2)["micro_batches"] == 2
    assert facts["row_s"] == pytest.approx(16 / 50) and not facts["codec_assumed"]
    assert "192 codes" in summary(facts) and "(assumed" not in summary(facts)
    assert "(assumed" in summary(describe(make_config(""))) and describe(make_config(""))["vocabulary"] == 2112


def test_refuses_what_cannot_be_trained(tmp_path, store):
    with pytest.raises(ConfigError, match=r"data\.tokens is not set"):
        train(make_config(""), options(tmp_path / "a"))
    with pytest.raises(TokenError, match="not a token store"):
        train(make_config(tmp_path), options(tmp_path / "a"))
    config = make_config(store)
    with pytest.raises(TokenError, match="3 quantizers"):
        layout = replace(config.model.layout, n_q=4)
        train(replace(config, model=replace(config.model, layout=layout)), options(tmp_path / "a"))
    with StoreWriter(tmp_path / "dev", SPEC) as writer:
        writer.add({"id": "x", "split": "dev"}, np.zeros((9, 3), np.int64))
    with pytest.raises(XcodecLMError, match="no recordings of split train"):
        train(make_config(tmp_path / "dev"), options(tmp_path / "a"))
    assert not Path(tmp_path / "a" / "model").exists()


def test_several_stores_are_one_and_must_be_of_one_codec(tmp_path, store):
    for name, spec in (("more", SPEC), ("foreign", replace(SPEC, fingerprint="d" * 64))):
        with StoreWriter(tmp_path / name, spec) as writer:
            writer.add({"id": f"{name}-0"}, np.full((40, 3), 3))
    config = make_config(store, steps=1)
    both = replace(config, data=replace(config.data, tokens=(str(store), str(tmp_path / "more"))))
    train(both, options(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "data.json").read_text())["recordings"] == 13
    mixed = replace(config, data=replace(config.data, tokens=(str(store), str(tmp_path / "foreign"))))
    with pytest.raises(TokenError, match="another codec"):
        train(mixed, options(tmp_path / "mixed"))


def test_refuses_to_go_on_with_other_tokens(tmp_path, store):
    config = make_config(store)
    train(config, options(tmp_path / "run", max_steps=3))
    with StoreWriter(store, SPEC) as writer:
        writer.add({"id": "new"}, np.zeros((9, 3), np.int64))
    with pytest.raises(XcodecLMError, match="12 recordings then, 13 now"):
        train(config, options(tmp_path / "run"))
