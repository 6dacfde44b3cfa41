"""music eval: figures that come out as worked out by hand, and sets of audio that fit together."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile as sf
import torch

from xcodec_lm import configs
from xcodec_lm.codec.clips import write_manifest
from xcodec_lm.codec.runtime.run import RunOptions
from xcodec_lm.configs.errors import TokenError, XcodecLMError
from xcodec_lm.configs.lm import LMTrainConfig
from xcodec_lm.lm.examples import recording_bits
from xcodec_lm.lm.shards import StoreWriter, TokenStore
from xcodec_lm.lm.train import train
from xcodec_lm.tasks.music.continuation import load_music, stores_of
from xcodec_lm.tasks.music.evaluate import SETS, code_entropy, cut_places, evaluate_music, format_music

RATE = 16_000


def melody(seconds, seed):
    """Notes of a quarter of a second, going up a scale."""
    rng = np.random.default_rng(seed)
    notes = 220 * 2 ** ((np.arange(int(seconds * 4)) * 2 + rng.integers(12)) % 24 / 12)
    time = np.arange(RATE // 4) / RATE
    wav = np.concatenate([np.sin(2 * np.pi * note * time) * np.exp(-4 * time) for note in notes])
    return (0.4 * wav + 0.003 * rng.standard_normal(len(wav))).astype(np.float32)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Melodies, their tokens by the shipped twin, and a small model of them."""
    from xcodec_lm.codec import load_codec

    folder = tmp_path_factory.mktemp("music")
    rows, codec = [], load_codec("baseline-tiny")
    with StoreWriter(folder / "tokens", codec.spec, codec="baseline-tiny") as writer:
        for number in range(10):
            wav = melody(4 if number < 9 else 1.5, number)
            sf.write(folder / f"{number}.wav", wav, RATE)
            wav, _ = sf.read(folder / f"{number}.wav", dtype="float32")  # as 16 bits have it
            split = "train" if number < 6 else "dev" if number < 7 else "test"
            row = {"id": str(number), "audio": f"{number}.wav", "duration": len(wav) / RATE, "split": split}
            rows.append(row)
            codes = codec.encode(torch.from_numpy(wav)[None, None]).codes[0]
            writer.add(row, codes.T.numpy())
    write_manifest(rows, folder / "melodies.jsonl")
    keys = {
        "model.layers": 1, "model.dim": 32, "model.heads": 2, "model.block": 128, "model.layout.n_q": 2,
        "data.tokens": [str(folder / "tokens")], "data.batch_codes": 512, "data.micro_batch_codes": 512,
        "optim.steps": 60, "optim.lr": 1e-2, "run.eval_every": 60, "run.save_every": 60,
    }  # fmt: skip
    train(configs.load("music/tiny", LMTrainConfig, keys), RunOptions(out=folder / "run", device="cpu"))
    return folder


def test_figures_are_those_of_the_parts(scene):
    music, store = load_music(scene / "run"), TokenStore.open(stores_of(scene / "run")[0])
    data = evaluate_music(music, [scene / "melodies.jsonl"], store, prompt_s=1, seconds=1, prompts=3)
    assert data["recordings"] == 3 and data["seconds"] == pytest.approx(9.5)
    codes = [torch.from_numpy(store.codes(index).astype(np.int64).T)[:2] for index in store.split("test")]
    bits = [recording_bits(music.model, music.layout, part) for part in codes]
    expected = np.mean([part.sum(0).mean() * 50 for part in bits])
    systems = data["bits"]
    assert systems["language model"]["bits_per_s"]["value"] == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(
        systems["language model"]["bits_per_code"], np.concatenate(bits, axis=1).mean(1), rtol=1e-4
    )
    assert set(systems) == {"language model", "untrained", "unigram", "bigram", "bigram of one codebook"}
    assert systems["language model"]["bits_per_s"]["value"] < systems["untrained"]["bits_per_s"]["value"]
    unigram = systems["unigram"]
    difference = expected - unigram["bits_per_s"]["value"]
    assert unigram["model_minus_this"]["value"] == pytest.approx(difference, rel=1e-3)
    assert 0 < data["resynthesis"]["mel"]["value"] < 3 and "sets" not in data
    text = format_music(data)
    assert "less than the unigram" in text and "resynthesis of the real tokens" in text


def test_sets_fit_together(scene, tmp_path, capsys):
    music, store = load_music(scene / "run"), TokenStore.open(scene / "tokens")
    data = evaluate_music(music, [scene / "melodies.jsonl"], store, tmp_path / "sets", prompt_s=1, seconds=1, prompts=3)
    assert data["sets"]["prompts"] == 3
    assert "1 of 3 recordings are shorter than 2 s" in capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "sets" / "sets.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == ["7", "8", "7"] and [row["start"] for row in rows] == [0, 0, 2]
    for row in rows:
        wavs = {name: sf.read(tmp_path / "sets" / row[name])[0] for name in SETS}
        assert all(len(wav) == RATE for wav in wavs.values())
        source = melody(4, int(row["source"]))[int(row["start"] * RATE) :][: 2 * RATE]
        np.testing.assert_allclose(np.concatenate([wavs["prompt"], wavs["reference"]]), source, atol=1e-3)
        assert np.abs(wavs["continuation"] - wavs["resynthesis"]).max() > 0.01


def test_paper_cuts(scene):
    """30 s after 10 s, or, with several codebooks, 5 s after 5 s: no melody here is as long."""
    music, store = load_music(scene / "run"), TokenStore.open(scene / "tokens")
    assert evaluate_music(music, [scene / "melodies.jsonl"], store)["resynthesis"]["mel"]["value"] is None


def test_entropy_and_places_by_hand():
    found = code_entropy([torch.tensor([[0, 1, 0, 1], [2, 2, 2, 2]])], (4, 4))
    assert found == {"bits": [1.0, 0.0], "perplexity": [2.0, 1.0]}
    assert cut_places([], 1, 3) == []


def test_says_what_does_not_fit(scene, tmp_path):
    music, store = load_music(scene / "run"), TokenStore.open(scene / "tokens")
    rows = [{"id": "0", "audio": str(scene / "0.wav"), "duration": 4.0, "split": "train"}]
    write_manifest(rows, tmp_path / "none.jsonl")
    with pytest.raises(XcodecLMError, match="no recording of split test"):
        evaluate_music(music, [tmp_path / "none.jsonl"], store)
    other = music.spec.to_dict() | {"fingerprint": "f" * 64}
    with StoreWriter(tmp_path / "other", type(music.spec).from_dict(other)) as writer:
        writer.add({"id": "x"}, np.zeros((5, 8), np.int64))
    with pytest.raises(TokenError, match="another codec"):
        evaluate_music(music, [scene / "melodies.jsonl"], TokenStore.open(tmp_path / "other"))
    with pytest.raises(XcodecLMError, match="give the store with --tokens"):
        stores_of(tmp_path)


def test_command(scene, cli, tmp_path):
    sizes = ["--prompt-s", "1", "--seconds", "1", "--prompts", "1"]
    melodies = scene / "melodies.jsonl"
    code, out, err = cli("music", "eval", scene / "run", melodies, "-o", tmp_path / "sets", *sizes, "--json")
    assert code == 0, err
    assert json.loads(out)["sets"]["prompts"] == 1 and (tmp_path / "sets/continuation/000.flac").is_file()


def test_a_card_and_a_folder_of_half_precision_that_loads_by_name(scene, cli, tmp_path, monkeypatch):
    (tmp_path / "figures.txt").write_text("bits per second 900")
    code, _, err = cli(
        "music", "card", scene / "run", "-o", tmp_path / "shipped" / "small", "--evaluation", tmp_path / "figures.txt"
    )
    assert code == 0, err
    folder = tmp_path / "shipped" / "small"
    card, facts = (folder / "README.md").read_text(), json.loads((folder / "provenance.json").read_text())
    assert "# small" in card and "bits per second 900" in card and "baseline-tiny" in card
    assert facts["data"][0]["rows"] == 6 and facts["data"][0]["ids_sha256"]
    monkeypatch.setattr("xcodec_lm.tasks.music.continuation.PRETRAINED", tmp_path / "shipped")
    shipped, trained = load_music("small"), load_music(scene / "run")
    for (name, half), (_, whole) in zip(
        shipped.model.named_parameters(), trained.model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(half, whole, atol=1e-3, rtol=1e-3, msg=name)
        assert half.dtype == torch.float32
    size = (folder / "model.safetensors").stat().st_size
    assert size < 0.6 * (scene / "run/model/model.safetensors").stat().st_size
    assert cli("music", "card", scene / "run", "-o", tmp_path / "x", "--notes", tmp_path / "none")[0] == 1


def test_continue_streams_to_the_standard_output(scene, tmp_path):
    command = [sys.executable, "-m", "xcodec_lm.tasks.cli", "music", "continue", str(scene / "8.wav")]
    command += ["--run", str(scene / "run"), "--seconds", "0.4", "-o", "-", "--json"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) == 2 * round(4.4 * RATE)  # 16-bit samples and nothing else
    assert b"4.40 s of 16-bit PCM at 16000 Hz" in done.stderr
    both = subprocess.run([*command, "--samples", "2"], capture_output=True, check=False)
    assert both.returncode == 2 and b"one continuation can be streamed" in both.stderr and not both.stdout
