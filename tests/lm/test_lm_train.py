"""The trainer: exact resume, one meaning on any number of processes, a model that learns, a run folder that loads."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xcodec_lm.codec.runtime.run import RunOptions, read_metrics
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import ConfigError, TokenError, XcodecLMError
from xcodec_lm.configs.lm import GPTConfig, LayoutConfig, LMDataConfig, LMTrainConfig
from xcodec_lm.configs.loader import save
from xcodec_lm.configs.run import OptimConfig, RunConfig
from xcodec_lm.lm.anchors import UnigramModel, mean_bits, model_bits
from xcodec_lm.lm.gpt import GPT, read_model_config
from xcodec_lm.lm.layouts import IGNORED, layout_from
from xcodec_lm.lm.shards import StoreWriter, TokenStore
from xcodec_lm.lm.train import Windows, describe, summary, train

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
        data=LMDataConfig(tokens=str(tokens), batch_codes=200, micro_batch_codes=64, eval_batches=4),
        optim=OptimConfig(
            steps=steps, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, schedule="cosine", warmup_steps=3, clip_norm=1.0, **optim
        ),
        run=RunConfig(log_every=1, eval_every=3, save_every=3),
    )


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
    whole, parts = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "parts")
    assert whole == parts and len(whole) == 6
    assert set(whole[2]) == {"step", "loss", "bits", "lr", "grad_norm", "eval/bits"}
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_killed_process_goes_on_bit_for_bit(tmp_path, store):
    config = replace(make_config(store, steps=40), run=RunConfig(log_every=1, eval_every=40, save_every=3))
    train(config, options(tmp_path / "whole"))
    save(config, tmp_path / "config.yaml")
    kill = (
        "import os, signal, sys; from pathlib import Path; from xcodec_lm import configs;"
        "from xcodec_lm.configs.lm import LMTrainConfig; from xcodec_lm.codec.runtime.run import Run, RunOptions;"
        "from xcodec_lm.lm.train import train; log = Run.log\n"
        "def die(run, step, *rest, **more):\n"
        "    log(run, step, *rest, **more)\n"
        "    if step == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Run.log = die\n"
        f"train(configs.load({str(tmp_path / 'config.yaml')!r}, LMTrainConfig),"
        f" RunOptions(out=Path({str(tmp_path / 'killed')!r}), device='cpu'))"
    )
    # The same number of threads: sums in another order would differ in their last bits.
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    assert subprocess.run([sys.executable, "-c", kill], env=env, capture_output=True, check=False).returncode == -9
    assert len(read_metrics(tmp_path / "killed")) == 8
    train(config, options(tmp_path / "killed"))
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "whole")


def test_two_processes_train_as_one_does(tmp_path, store):
    config = make_config(store, steps=5, dropout=0.0)
    save(config, tmp_path / "config.yaml")
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nimport torch\nfrom xcodec_lm import configs\n"
        "from xcodec_lm.configs.lm import LMTrainConfig\nfrom xcodec_lm.codec.runtime.run import RunOptions\n"
        "from xcodec_lm.lm.train import train\ntorch.set_num_threads(1)\n"
        "train(configs.load(sys.argv[1], LMTrainConfig), RunOptions(out=Path(sys.argv[2]), device='cpu'))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    arguments = [str(tmp_path / "config.yaml"), str(tmp_path / "two")]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    train(config, options(tmp_path / "one"))
    one, two = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    weights = [GPT.from_pretrained(tmp_path / name / "model").state_dict() for name in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("specials", ["none", "standard"])
def test_learns_what_follows_what(tmp_path, store, specials):
    config = make_config(store, steps=120, dropout=0.0, specials=specials)
    train(config, options(tmp_path / "run"))
    tokens = TokenStore.open(store)
    layout = layout_from(config.model.layout, tokens.spec)

    def codes(split):
        return [torch.from_numpy(tokens.codes(index).astype(np.int64).T) for index in tokens.split(split)]

    unigram = UnigramModel(layout).fit([layout.pack(one) for one in codes("train")])
    entropy = mean_bits(unigram, codes("dev"))
    assert entropy == pytest.approx(4, abs=0.3)
    model = GPT.from_pretrained(tmp_path / "run" / "model")
    measured = model_bits(model, layout, codes("dev"), unigram)
    assert measured < 0.35 * entropy
    last = read_metrics(tmp_path / "run")[-1]
    assert last["bits"] == pytest.approx(last["loss"] / math.log(2))
    assert last["eval/bits"] < 0.35 * entropy


def test_the_loss_does_not_depend_on_micro_batches(tmp_path, store):
    config = make_config(store, steps=3, dropout=0.0)
    config = replace(config, data=replace(config.data, eval_batches=20))  # all of dev, however large the batches
    train(config, options(tmp_path / "a"))
    train(replace(config, data=replace(config.data, micro_batch_codes=1000)), options(tmp_path / "b"))
    for a, b in zip(read_metrics(tmp_path / "a"), read_metrics(tmp_path / "b"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_windows_begin_with_a_frame_and_stay_in_their_recording(store):
    tokens = TokenStore.open(store)
    layout = layout_from(LayoutConfig("flatten", 2), SPEC)
    data = Windows(tokens, "train", layout, block=33, seed=4)  # 33 codes hold 16 frames
    eos, documents, starts = layout.vocabulary.eos, [], set()
    for position in range(2 * len(data)):
        inputs, targets = data.random(position)
        assert inputs[0] == layout.vocabulary.bos and len(inputs) in (1 + 32, 1 + 18)
        first, second = layout.unpack(inputs[1:])
        assert torch.equal((3 * first + 1) % 16, second)  # the window begins with codebook 0
        assert torch.equal((first[:-1] + 1) % 16, first[1:])  # and does not cross into another recording
        assert torch.equal(targets[:-1], inputs[1:])
        assert targets[-1] in (eos, (first[-1] + 1) % 16)
        assert (targets[-1] == eos) or len(inputs) == 33
        documents.append(len(inputs))
        starts.add(int(first[0]))
    # Both epochs hold every recording as often as it has windows: ceil(70 / 16) = 5, or 1 for a short one.
    train_rows = [tokens.rows[index]["frames"] for index in tokens.split("train")]
    assert documents.count(33) == 2 * 5 * train_rows.count(70) and documents.count(19) == 2 * train_rows.count(9)
    assert len(starts) > 8  # crops differ


def test_validation_predicts_every_code_of_the_split_once(store):
    tokens = TokenStore.open(store)
    total = sum(2 * tokens.rows[index]["frames"] for index in tokens.split("dev"))
    cases: Any = (("standard", 0), ("none", len(tokens.split("dev"))))
    for specials, missing in cases:
        layout = layout_from(LayoutConfig("flatten", 2, specials=specials), SPEC)
        dev = Windows(tokens, "dev", layout, 32, 0)
        targets = torch.cat([dev.fixed(slot)[1] for slot in range(len(dev))])
        assert int(((targets != IGNORED) & (targets < layout.vocabulary.codes)).sum()) == total - missing


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
    assert facts["vocabulary"] == 64 and facts["windows_per_step"] == 6 and facts["codes_per_step"] == 192
    assert facts["micro_batches"] == 3 and describe(make_config(store), world=2)["micro_batches"] == 2
    assert facts["window_s"] == pytest.approx(16 / 50) and not facts["codec_assumed"]
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


def test_refuses_to_go_on_with_other_tokens(tmp_path, store):
    config = make_config(store)
    train(config, options(tmp_path / "run", max_steps=3))
    with StoreWriter(store, SPEC) as writer:
        writer.add({"id": "new"}, np.zeros((9, 3), np.int64))
    with pytest.raises(XcodecLMError, match="12 recordings then, 13 now"):
        train(config, options(tmp_path / "run"))
