"""Runs of text to sound and of CLAP as folders for others, the vectors of training clips, the demo's page."""
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import json

import pytest
import torch

from xcodec_lm.codec.runtime.run import RunOptions
from xcodec_lm.configs.clap import (
    ClapAudioTowerConfig,
    ClapDataConfig,
    ClapModelConfig,
    ClapTextTowerConfig,
    ClapTrainConfig,
)
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.configs.lm import GPTConfig, LayoutConfig, LMRunConfig
from xcodec_lm.configs.run import OptimConfig, RunConfig
from xcodec_lm.configs.sound import SoundDataConfig, SoundTrainConfig
from xcodec_lm.tasks.sound import clap as clap_module
from xcodec_lm.tasks.sound import load_sound
from xcodec_lm.tasks.sound import make as make_module
from xcodec_lm.tasks.sound.clap import load_clap
from xcodec_lm.tasks.sound.neighbours import FILE, load_neighbours


@pytest.fixture(scope="module")
def runs(sounds, tmp_path_factory):
    """A CLAP and a model that is conditioned on it, both of a few steps, the latter on the shipped codec."""
    from xcodec_lm.tasks.sound import clap_train, training

    folder = tmp_path_factory.mktemp("runs")
    audio = ClapAudioTowerConfig(
        sample_rate=16_000, window_s=1, hop_samples=320, fft_samples=512, mel_bands=16, highest_hz=8000, image_size=32,
        width=8, depths=(1,), heads=(2,),
    )  # fmt: skip
    text = ClapTextTowerConfig(vocab_size=300, longest=32, width=8, layers=1, heads=2, inner=8)
    run = RunConfig(log_every=1, eval_every=2, save_every=2)
    optim = OptimConfig(steps=2, lr=1e-3, betas=(0.9, 0.98), warmup_steps=1)
    data = ClapDataConfig(manifests=(str(sounds),), batch_clips=4, eval_clips=6)
    clap = ClapTrainConfig(model=ClapModelConfig(audio, text, dim=8, dropout=0.0), data=data, optim=optim, run=run)
    words = f"xcodec-lm clap train clap/tiny --data {sounds} --data.cached-clips=5"
    clap_train.train(clap, RunOptions(folder / "clap", command=words, device="cpu"))
    sound = SoundTrainConfig(
        model=GPTConfig(
            arch="llama", layers=1, heads=2, dim=16, mlp_dim=32, block=160, layout=LayoutConfig("delay", 2)
        ),
        data=SoundDataConfig(manifests=(str(sounds),), clap=str(folder / "clap"), batch_codes=320, eval_batches=1,
                             micro_batch_codes=320),
        optim=optim, run=LMRunConfig(log_every=1, eval_every=2, save_every=2, samples=0),
    )  # fmt: skip
    words = f"xcodec-lm sound train sound/tiny --data={sounds} --clap {folder / 'clap'}"
    training.train(sound, RunOptions(folder / "sound", command=words, device="cpu"))
    return folder


def test_a_clap_as_a_folder_for_others(runs, cli, tmp_path):
    code, _, err = cli("clap", "card", runs / "clap", "-o", tmp_path / "clap-mine")
    assert code == 0, err
    clap = load_clap(tmp_path / "clap-mine")
    assert clap.fingerprint == load_clap(runs / "clap").fingerprint and clap.name == "clap-mine"
    card = (tmp_path / "clap-mine" / "README.md").read_text()
    assert card.startswith("# clap-mine\n") and clap.fingerprint in card and "| 18 |" in card
    assert "--data sounds.jsonl" in card and "recall@1" in card and str(runs) not in card
    data = json.loads((tmp_path / "clap-mine" / "provenance.json").read_text())
    assert "r0" in data["data"][0]["recording"] and "r18" not in data["data"][0]["recording"]
    assert not [path for path in (tmp_path / "clap-mine").iterdir() if str(runs.parent) in _text(path)]
    code, _, err = cli("clap", "card", tmp_path, "-o", tmp_path / "no")
    assert code == 1 and "has not finished" in err


def _text(path):
    return path.read_bytes().decode(errors="ignore")


@pytest.fixture
def shipped(runs, cli, tmp_path, monkeypatch):
    """The CLAP and the model as if they shipped."""
    from xcodec_lm.tasks.demo import sound as demo
    from xcodec_lm.tasks.report import card_sound

    for module in (clap_module, make_module, card_sound, demo):
        monkeypatch.setattr(module, "PRETRAINED", tmp_path / "pretrained")
    assert cli("clap", "card", runs / "clap", "-o", tmp_path / "pretrained" / "clap-tiny")[0] == 0
    (tmp_path / "figures.txt").write_text("class agreement 61 %")
    code, _, err = cli("sound", "card", runs / "sound", "-o", tmp_path / "pretrained" / "sound-tiny",
                       "--evaluation", tmp_path / "figures.txt")  # fmt: skip
    assert code == 0, err
    return tmp_path / "pretrained"


def test_a_model_as_a_folder_for_others(shipped, runs):
    folder = shipped / "sound-tiny"
    facts = json.loads((folder / "config.json").read_text())
    assert facts["embedder"]["source"] == "clap-tiny" and facts["codec"]["path"] == "xcodec-tiny"
    card = (folder / "README.md").read_text()
    assert card.startswith("# sound-tiny\n") and "class agreement 61 %" in card and "a vector of clap-tiny" in card
    assert "--data=sounds.jsonl" in card
    assert not [path for path in folder.iterdir() if str(runs.parent) in _text(path)]
    sound, own = load_sound("sound-tiny"), load_sound(runs / "sound")
    assert sound.clap.name == "clap-tiny"
    torch.testing.assert_close(sound.model.wte.weight, own.model.wte.weight, atol=1e-3, rtol=1e-3)
    known = load_neighbours(folder)
    assert len(known.rows) == 18 and known.fingerprint == sound.clap.fingerprint
    assert known.rows[0]["id"] == "s0" and known.rows[0]["caption"] == "a low hum"
    row, cosine = known.nearest(known.vectors[7])
    assert row["id"] == "s7" and cosine == pytest.approx(1, abs=1e-3)
    (folder / FILE).write_bytes(b"broken")
    with pytest.raises(XcodecLMError, match="cannot be read"):
        load_neighbours(folder)


def test_a_clap_that_others_do_not_have_is_refused(runs, cli, tmp_path, monkeypatch):
    from xcodec_lm.tasks.report import card_sound

    monkeypatch.setattr(card_sound, "PRETRAINED", tmp_path)
    code, _, err = cli("sound", "card", runs / "sound", "-o", tmp_path / "out")
    assert code == 1 and "is conditioned on ../clap, a folder or file that others do not have" in err
    assert "clap card" in err and not (tmp_path / "out").exists()


def test_the_page_of_the_demo(shipped, tmp_path, read_page, capsys):
    from xcodec_lm.tasks.demo.sound import write_sound_page

    page = read_page(write_sound_page(tmp_path, captions=("a low hum", "rain"), seconds=0.3, samples=2).read_text())
    assert len(page.all("audio")) == 4 and "no independent judgement" in page.text
    assert "a low hum" in page.text and ("s1: " in page.text or "s" in page.text)
    assert len(list((tmp_path / "sound").glob("*.wav"))) == 4
    assert "xcodec-lm sound make 'a low hum' --run sound-tiny" in page.text
    (shipped / "sound-tiny" / FILE).unlink()
    page = read_page(write_sound_page(tmp_path, captions=("rain",), seconds=0.1, samples=1).read_text())
    assert "does not list its training clips" in page.text
    (shipped / "clap-tiny" / "config.json").unlink()
    assert write_sound_page(tmp_path / "none") is None and not (tmp_path / "none").exists()
    assert "clap-tiny does not ship" in capsys.readouterr().err
