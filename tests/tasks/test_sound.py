"""Text to sound with a stand-in for CLAP: the commands, what they refuse, what they say, and what a run remembers."""
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false

import hashlib
import json
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from xcodec_lm import configs
from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import write_manifest
from xcodec_lm.codec.runtime.run import RunOptions, read_metrics
from xcodec_lm.configs.errors import ConfigError, UsageError, XcodecLMError
from xcodec_lm.configs.sound import SoundDataConfig, SoundTrainConfig
from xcodec_lm.lm.sampling import Sampling
from xcodec_lm.tasks.sound import load_sound
from xcodec_lm.tasks.sound.captions import captions_of
from xcodec_lm.tasks.sound.make import file_stem
from xcodec_lm.tasks.sound.training import train

RATE = 16_000
SIZES = [
    "--model.layout.name", "flatten",
    "--model.layers", 1, "--model.heads", 2, "--model.dim", 16, "--model.mlp-dim", 32, "--model.block", 160,
    "--data.batch-codes", 320, "--data.micro-batch-codes", 320, "--data.eval-batches", 1, "--optim.warmup-steps", 1,
    "--run.log-every", 1, "--run.eval-every", 2, "--run.save-every", 1, "--device", "cpu",
]  # fmt: skip


class StandIn:
    """Texts and sounds as hashed words and as loudness in bands, in a space of a few dimensions."""

    def __init__(self, source="clap-tiny", dim=8):
        self.name, self.dim, self.sample_rate = Path(str(source)).name, dim, 48_000
        self.ancestry, self.fingerprint = {"data": "none"}, hashlib.sha256(f"{source}{dim}".encode()).hexdigest()

    def embed_texts(self, texts):
        rows = []
        for text in texts:
            row = torch.zeros(self.dim)
            for word in text.lower().split():
                row[hashlib.sha256(word.encode()).digest()[0] % self.dim] += 1
            rows.append(row / row.norm())
        return torch.stack(rows)

    def embed_audio(self, wavs):
        parts = [torch.from_numpy(np.abs(np.fft.rfft(wav))).float().tensor_split(self.dim) for wav in wavs]
        rows = torch.stack([torch.stack([part.mean() for part in row]) for row in parts])
        return rows / rows.norm(dim=1, keepdim=True)


@pytest.fixture(autouse=True)
def clap(monkeypatch):
    """Puts the stand-in where CLAP is loaded and where embeddings are cached; sources tell their width: `NAME@DIM`."""

    def load_clap(source, device="cpu"):
        name, _, dim = Path(str(source)).name.partition("@")
        return StandIn(name, int(dim or 8))

    def embed_cached(clap, items, cache_folder):
        if isinstance(items[0], str):
            return clap.embed_texts(items)
        return clap.embed_audio([load_audio(path, clap.sample_rate).wav[0].numpy() for path in items])

    for name, functions in (("clap", [load_clap]), ("clap_cache", [embed_cached])):
        module = types.ModuleType(f"xcodec_lm.tasks.sound.{name}")
        for function in functions:
            setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)


def write_corpus(folder, count=8, seconds=0.8, **extra):
    """Low tones and high tones; the first recording has two captions, the last none."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, time = [], np.arange(int(seconds * RATE)) / RATE
    for number in range(count):
        high = number % 2
        sf.write(folder / f"{number}.wav", 0.4 * np.sin(2 * np.pi * (300 + 1500 * high) * time), RATE)
        row = {"id": str(number), "audio": f"{number}.wav", "duration": seconds, "label": ("low", "high")[high]}
        row |= {"caption": f"a {row['label']} tone", "split": "dev" if number >= count - 2 else "train", **extra}
        rows.append(row)
    rows[0]["captions"] = ["a low tone", "something deep"]
    del rows[-1]["caption"]
    write_manifest(rows, folder / "captions.jsonl")
    return folder / "captions.jsonl"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def command(corpus, codec, out, *more):
    return ("sound", "train", "sound/tiny", "--data", corpus, "--codec", codec, "--out", out, *SIZES,
            "--optim.steps", 2, *more)  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sound") / "run"


@pytest.fixture
def run(cli, corpus, twin_folder, run_folder):
    """A run, made by the command that the first test checks."""
    if not (run_folder / "model").is_dir():
        code, _, err = cli(*command(corpus, twin_folder, run_folder, "--run.samples", 1, "--run.sample-s", 0.3))
        assert code == 0, err
        (run_folder / "said.txt").write_text(err)
    return run_folder


def test_trains_from_a_manifest_and_a_codec(run, twin_folder):
    said = (run / "said.txt").read_text()
    assert "8 recordings encoded, 0 already there, 0 failed" in said
    assert "3 different captions; 1 recordings without caption: 7" in said
    assert (run / "tokens" / "store.json").is_file() and len(read_metrics(run)) == 2
    facts = json.loads((run / "model" / "config.json").read_text())
    assert facts["embedder"]["source"] == "clap-tiny" and facts["embedder"]["dim"] == facts["condition"]["size"] == 8
    assert facts["embedder"]["fingerprint"] == StandIn().fingerprint
    assert (run / "model" / facts["codec"]["path"]).exists() or (run / facts["codec"]["path"]).exists()
    assert (run / "samples" / "sample-0.txt").read_text() == "a low tone\n"
    assert sf.info(run / "samples" / "sample-0-step-2.flac").frames == 0.3 * RATE
    assert json.loads((run / "left_out.json").read_text()) == {"without_caption": ["7"], "without_audio": {}}


def test_a_resumed_command_ends_as_an_uninterrupted_one(cli, run, corpus, twin_folder, tmp_path):
    more = ("--run.samples", 1, "--run.sample-s", 0.3)
    assert cli(*command(corpus, twin_folder, tmp_path / "run", *more, "--max-steps", 1))[0] == 0
    assert cli(*command(corpus, twin_folder, tmp_path / "run", *more))[0] == 0
    models = [folder / "model" / "model.safetensors" for folder in (run, tmp_path / "run")]
    assert models[0].read_bytes() == models[1].read_bytes()


def test_goes_on_only_with_the_same_clap_and_captions(cli, corpus, twin_folder, tmp_path):
    data = shutil.copytree(corpus.parent, tmp_path / "data") / "captions.jsonl"
    words = command(data, twin_folder, tmp_path / "run", "--data.text-share", 0.5)
    assert cli(*words, "--max-steps", 1)[0] == 0
    (data.parent / "1.wav").unlink()
    code, _, err = cli(*words)
    assert code == 1 and "was begun with other captions, labels or audio files" in err
    code, _, err = cli(*words, "--clap", "other")
    assert code == 1 and "data.clap" in err


def test_missing_audio_of_half_the_rows_is_listed_and_not_fatal(cli, twin_folder, tmp_path):
    manifest = write_corpus(tmp_path / "data")
    for number in (0, 2, 5, 7):
        (tmp_path / "data" / f"{number}.wav").unlink()
    code, _, err = cli(*command(manifest, twin_folder, tmp_path / "run"))
    assert code == 0 and "4 recordings encoded, 0 already there, 4 failed" in err
    failed = (tmp_path / "run/tokens/failed.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["id"] for line in failed) == ["0", "2", "5", "7"]
    (tmp_path / "data" / "1.wav").unlink()  # tokens stay, the sound can no longer be embedded
    (tmp_path / "data" / "4.wav").write_bytes(b"no sound")
    code, _, err = cli(*command(manifest, twin_folder, tmp_path / "again", "--data.tokens", tmp_path / "run/tokens"))
    assert code == 0 and "2 recordings without audio to embed: 1, 4" in err
    problems = json.loads((tmp_path / "again/left_out.json").read_text())["without_audio"]
    assert problems["1"] == "file not found" and "not readable as audio" in problems["4"]


def test_training_says_what_is_missing(cli, corpus, twin_folder, tmp_path):
    code, _, err = cli("sound", "train", "sound/tiny", "--out", tmp_path / "a", "--device", "cpu")
    assert code == 1 and "no sounds to train on" in err and "--data captions.jsonl" in err
    code, _, err = cli(*command(corpus, twin_folder, tmp_path / "b", "--condition.size", 9))
    assert code == 1 and "condition.size is 9, but clap-tiny gives vectors of 8" in err
    plain = write_corpus(tmp_path / "plain", count=3, caption="  ", captions=None)
    rows = [json.loads(line) for line in plain.read_text().splitlines()]
    write_manifest([{**row, "captions": []} for row in rows], plain)
    code, _, err = cli(*command(plain, twin_folder, tmp_path / "c"))
    assert code == 1 and "has no captions" in err
    with pytest.raises(ConfigError, match="text_share"):
        SoundDataConfig(text_share=1.5)
    with pytest.raises(ConfigError, match="into one store"):
        SoundDataConfig(tokens=("a", "b"), manifests=("c",))


@pytest.mark.parametrize("layout", ["flatten", "delay", "parallel"])
def test_the_layout_is_one_field(run, tmp_path, layout):
    base = configs.load(run, SoundTrainConfig)
    data = replace(base.data, manifests=(), tokens=(str(run / "tokens"),))
    model = replace(base.model, layout=replace(base.model.layout, name=layout))
    config = replace(base, model=model, data=data, run=replace(base.run, samples=0))
    folder = train(config, RunOptions(out=tmp_path / "run", device="cpu"))
    made = load_sound(folder).make(["a low tone", "a high tone"], 0.2, seed=1)
    assert [tuple(tokens.codes.shape) for tokens in made.tokens] == [(1, 4, 10)] * 2


def test_labels_need_no_clap(run, tmp_path):
    base = configs.load(run, SoundTrainConfig)
    data = replace(base.data, manifests=(), tokens=(str(run / "tokens"),), clap="nowhere")
    config = replace(base, condition=replace(base.condition, kind="label"), data=data)
    folder = train(config, RunOptions(out=tmp_path / "run", device="cpu"))
    sound = load_sound(folder)
    assert sound.labels == ["high", "low"] and sound.make(["low"], 0.2).wavs[0].shape == (1, 0.2 * RATE)
    with pytest.raises(UsageError, match="did you mean 'low'"):
        sound.make(["lov"], 0.2)


# ------------------------------------------------------------------ making


def test_makes_files_named_after_the_caption(cli, run, tmp_path):
    words = ("sound", "make", "A low, deep tone!", "--run", run, "--seconds", 0.3, "--device", "cpu", "--json")
    code, out, _ = cli(*words, "-n", 3, "--seed", 4, "--cfg", 2, "-o", tmp_path / "three")
    data = json.loads(out)
    assert code == 0 and data["cfg"] == 2 and data["seconds"] == [0.3] * 3
    assert [Path(path).name for path in data["audio"]] == [f"a-low-deep-tone-{number}.wav" for number in (1, 2, 3)]
    sounds = [Path(path).read_bytes() for path in data["audio"]]
    assert len(set(sounds)) == 3
    code, out, _ = cli(*words, "--seed", 4, "--cfg", 2, "-o", tmp_path / "one")
    assert Path(json.loads(out)["audio"][0]).read_bytes() == sounds[0]  # the first does not depend on how many follow
    code, out, _ = cli(*words, "-o", tmp_path / "usual")
    assert json.loads(out)["cfg"] == 3


def test_makes_sounds_like_a_recording(cli, run, corpus, tmp_path):
    words = ("sound", "make", "--audio", corpus.parent / "1.wav", "--run", run, "--seconds", 0.2, "--device", "cpu")
    code, out, err = cli(*words, "-o", tmp_path)
    assert code == 0 and "like-1.wav: 0.20 s" in out and "resampled 16000 to 48000 Hz" in err
    sf.write(tmp_path / "silence.wav", np.zeros(RATE), RATE)
    code, _, err = cli("sound", "make", "--audio", tmp_path / "silence.wav", "--run", run, "-o", tmp_path / "no")
    assert code == 1 and "is silence" in err and not (tmp_path / "no").exists()


def test_seconds_beyond_the_block_go_on_and_it_is_said(cli, run, tmp_path):
    code, out, err = cli("sound", "make", "a tone", "--run", run, "--seconds", 2, "-o", tmp_path, "--device", "cpu")
    assert code == 0 and "2.00 s" in out and "2 s are longer than the 0.8 s that the model sees at once" in err
    assert load_sound(run).make(["a tone"], 2.0).refills[0] > 1


def test_bad_captions(cli, run, tmp_path):
    for words, said in (([""], "caption is empty"), ([" "], "caption is empty"), ([], "either a caption or --audio"),
                        (["a", "--audio", "b.wav"], "either a caption or --audio")):  # fmt: skip
        code, _, err = cli("sound", "make", *words, "--run", run, "-o", tmp_path / "out")
        assert code == 2 and said in err
    assert not (tmp_path / "out").exists()
    for caption in ("rain " * 2000, "дождь по крыше", "屋根の雨"):
        code, _, err = cli("sound", "make", caption, "--run", run, "--seconds", 0.1, "-o", tmp_path / "out")
        assert code == 0, err
    assert {path.stem for path in (tmp_path / "out").iterdir()} >= {"дождь-по-крыше", "屋根の雨"}
    assert file_stem("?!") == "sound" and len(file_stem("屋" * 200).encode()) <= 180


@pytest.mark.parametrize(("other", "said"), [("clap-tiny@9", "gives vectors of 9, but"), ("else", "is not the CLAP")])
def test_another_clap_is_refused_with_what_to_do(cli, run, tmp_path, other, said):
    code, _, err = cli("sound", "make", "a tone", "--run", run, "--clap", other, "-o", tmp_path)
    assert code == 1 and said in err and "trained with clap-tiny" in err and "--clap" in err


def test_a_clap_in_a_folder_moves_with_the_run(cli, run, tmp_path):
    (tmp_path / "here" / "my-clap").mkdir(parents=True)
    base = configs.load(run, SoundTrainConfig)
    data = replace(base.data, manifests=(), tokens=(str(run / "tokens"),), clap=str(tmp_path / "here" / "my-clap"))
    train(replace(base, data=data), RunOptions(out=tmp_path / "here" / "run", device="cpu"))
    facts = json.loads((tmp_path / "here/run/model/config.json").read_text())
    assert facts["embedder"]["source"] == "../my-clap"
    codec = load_sound(run).codec
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert load_sound(tmp_path / "there" / "run", codec).clap.name == "my-clap"
    shutil.move(tmp_path / "there" / "my-clap", tmp_path / "gone")
    with pytest.raises(XcodecLMError, match=r"is not at .*my-clap"):
        load_sound(tmp_path / "there" / "run", codec)
    assert load_sound(tmp_path / "there" / "run", codec, tmp_path / "gone" / "my-clap").clap.dim == 8


def test_guidance_1_is_no_guidance_and_sounds_do_not_depend_on_company(run):
    sound = load_sound(run)
    plain, guided = (sound.make(["a low tone"], 0.4, 3, guidance) for guidance in (1.0, 60.0))  # hardly trained
    assert not torch.equal(plain.tokens[0].codes, guided.tokens[0].codes)
    company = sound.make(["a high tone", "a low tone"], 0.4, 3, 60.0, Sampling(), samples=2)
    assert company.conditions == [0, 0, 1, 1]
    assert torch.equal(company.tokens[2].codes, guided.tokens[0].codes)
    assert torch.equal(company.wavs[2], guided.wavs[0])
    with pytest.raises(UsageError, match="seconds must be above 0"):
        sound.make(["a"], 0)
    with pytest.raises(UsageError, match="samples"):
        sound.make(["a"], 1, samples=0)


def test_captions_of_a_row():
    assert captions_of({"caption": " a "}) == ["a"]
    assert captions_of({"captions": ["a", "", "b", 3], "caption": "a"}) == ["a", "b"]
    assert captions_of({"captions": "a", "caption": None}) == ["a"] and captions_of({}) == []
