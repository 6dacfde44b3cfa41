"""`sound eval`: systems on the same captions, judges and when they may judge, rankings, the page, the command."""
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import json

import numpy as np
import pytest
import torch

from xcodec_lm.codec import load_codec
from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import Clip, read_manifests
from xcodec_lm.codec.tokens import stack_codes
from xcodec_lm.configs.conditioning import ConditionConfig
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.configs.lm import GPTConfig, LayoutConfig
from xcodec_lm.lm.conditioning import ConditionedGPT
from xcodec_lm.lm.layouts import layout_from
from xcodec_lm.tasks.eval.frechet import Projection
from xcodec_lm.tasks.eval.set_distances import frechet_drawn, kid_drawn
from xcodec_lm.tasks.sound.evaluate import Making, evaluate_sound, other_rows, shuffle_codes, untrained
from xcodec_lm.tasks.sound.judging import Heard, Judges, check_judges, hear, related
from xcodec_lm.tasks.sound.make import SoundModel
from xcodec_lm.tasks.sound.page import choose_rows, write_page
from xcodec_lm.tasks.sound.scoring import clap_scores, class_agreement, format_sound

RATE = 16_000


@pytest.fixture(scope="module")
def sound(twin_folder, make_clap):
    """An untrained tiny model over a tiny codec."""
    codec = load_codec(twin_folder)
    layout = LayoutConfig("delay", 2)
    config = GPTConfig(arch="llama", layers=1, heads=2, dim=16, mlp_dim=32, block=64, layout=layout)
    own = layout_from(layout, codec.spec)
    torch.manual_seed(0)
    model = ConditionedGPT(config, own.vocabulary.size, ConditionConfig(size=12, drop=0.1)).eval()
    return SoundModel(model, own, codec, codec.spec, make_clap("conditioner"))


@pytest.fixture(scope="module")
def judges(make_clap, class_judge):
    return Judges(make_clap("judge", seed=1), class_judge)


@pytest.fixture(scope="module")
def result(sound, sounds, judges, tmp_path_factory):
    """Two samples of a run beside a second run of the same model."""
    out = tmp_path_factory.mktemp("out")
    other = untrained(sound, seed=5)
    making = Making(seconds=0.3, samples=2)
    return evaluate_sound([("one", sound), ("two", other)], [sounds], judges, out, making), out


def test_every_system_stands_for_the_same_rows(result):
    data, out = result
    names = [row["system"] for row in data["systems"]]
    parts = ["made", "resynthesis", "other caption", "untrained", "shuffled codes"]
    assert names == ["real recordings", "training recordings", *(f"{run}: {part}" for run in ("one", "two")
                     for part in parts), "white noise"]  # fmt: skip
    by_name = {row["system"]: row for row in data["systems"]}
    assert by_name["real recordings"]["class"]["value"] >= 0.8 and data["trusted"]["class"] == ""
    assert by_name["training recordings"]["class"]["value"] > 0.5  # of 0.3 s, in which little may happen
    assert by_name["real recordings"]["frechet"] is None
    assert by_name["training recordings"]["frechet"]["value"] < by_name["white noise"]["frechet"]["value"]
    assert by_name["real recordings"]["clap_margin"]["low"] > 0 and data["trusted"]["clap"] == ""
    made = by_name["one: made"]
    assert sum(made["heard_as"].values()) == 24 and made["class"]["units"] == 12
    assert made["class_chance"]["value"] == pytest.approx(
        sum(count for name, count in made["heard_as"].items() if name in data["classes"]) / 24 / 3
    )
    assert (out / "one-made" / "s18.flac").is_file() and (out / "one-made" / "s18-2.flac").is_file()
    assert (out / "white-noise" / "s18.flac").is_file() and not (out / "real-recordings").exists()
    first, second = (load_audio(out / "one-made" / f"{name}.flac", RATE).wav for name in ("s18", "s21"))
    assert first.shape == (1, 0.3 * RATE) and not torch.equal(first, second)  # one caption, other draws


def test_differences_are_paired_and_name_what_is_compared(result):
    data, _ = result
    keys = {(row["measure"], row["a"], row["b"]) for row in data["differences"]}
    for measure in ("class", "clap", "frechet", "kid"):
        for other in ("one: untrained", "one: resynthesis", "one: other caption", "white noise"):
            assert (measure, "one: made", other) in keys
        assert (measure, "one: made", "two: made") in keys
    assert ("class", "one: made", "its sounds dealt out anew") in keys
    assert ("clap", "two: made", "captions of other classes") in keys
    row = next(row for row in data["differences"] if (row["measure"], row["b"]) == ("clap", "two: made"))
    systems = {one["system"]: one["clap"]["value"] for one in data["systems"]}
    assert row["difference"]["value"] == pytest.approx(systems["one: made"] - systems["two: made"])
    assert row["difference"]["units"] == 12


def test_items_text_and_page_hold_it_all(result, sounds, read_page):
    data, out = result
    item = data["items"][0]
    entry = item["systems"]["one: made"][1]
    assert item["id"] == "s18" and {"heard", "clap", "nearest", "silent"} <= set(entry)
    assert entry["nearest"]["id"].startswith("s") and -1 <= entry["nearest"]["mel"] <= 1
    assert "nearest" not in item["systems"]["white noise"][0]
    assert data["nearest"]["one: made"]["sounds"] == 24
    assert data["nearest"]["real recordings"]["highest"] <= 1
    json.dumps(data, allow_nan=False)
    text = format_sound(data)
    assert "12 captions of split test of 12 recordings, 2 sound(s) of 0.3 s each" in text
    assert "one: made - white noise" in text and "as near as a copy" in text
    page = read_page(write_page(data, [sounds], out).read_text())
    assert len(page.all("audio")) >= 40 and "Is it a copy?" in page.text and "a low hum" in page.text
    assert "Fréchet distance" in page.text and "nearest to one: made" in page.text


def test_without_clap_or_without_classes(sound, sounds, make_clap, class_judge):
    making = Making(seconds=0.1)
    data = evaluate_sound([("run", sound)], [sounds], Judges(None, class_judge), making=making, most=6, controls=False)
    assert "clap" not in data["systems"][0] and data["judges"]["features"] == "class" and data["rows"] == 6
    assert {row["verdict"] for row in data["differences"]} == {"not decidable"}  # six recordings
    data = evaluate_sound([("run", sound)], [sounds], Judges(make_clap("j", 3)), making=making, most=6, controls=False)
    assert "class" not in data["systems"][0] and data["classes"] == [] and "class agreement" not in format_sound(data)
    with pytest.raises(UsageError, match="0 rows of split dev"):
        evaluate_sound([("run", sound)], [sounds], Judges(None, class_judge), split="dev")
    with pytest.raises(UsageError, match="two runs have one name"):
        evaluate_sound([("run", sound), ("run", sound)], [sounds], Judges(None, class_judge))


# ------------------------------------------------------------------ judges


def test_real_sounds_are_nearer_than_a_coarse_copy_and_that_than_noise(sounds, judges):
    clips = read_manifests([sounds], "test")
    real = [load_audio(clip.path, RATE).wav[0].numpy() for clip in clips]
    rng = np.random.default_rng(0)
    copies = [(wav + 0.004 * rng.standard_normal(len(wav))).clip(-1, 1).astype(np.float32) for wav in real]
    noise = [(0.2 * rng.standard_normal(len(wav))).clip(-1, 1).astype(np.float32) for wav in real]
    known = [load_audio(clip.path, RATE).wav[0].numpy() for clip in read_manifests([sounds], "train")]
    names = [clip.id for clip in clips]
    for judge in (judges, Judges(None, judges.classes)):
        projection = Projection.fit(hear(judge, known, RATE).vectors.astype(float), 4)
        reference, *sets = (projection(hear(judge, wavs, RATE).vectors) for wavs in (real, real, copies, noise))
        for measure in (frechet_drawn, kid_drawn):
            same, coarse, far = (measure([rows], reference, names) for rows in sets)
            assert same.value == pytest.approx(0, abs=1e-6)
            assert same.value < coarse.value < far.value
        near, far = (frechet_drawn([rows], reference, names) for rows in sets[1:])
        assert near.minus(far).verdict(lower_is_better=True) == "better"


def test_a_clap_that_conditions_what_it_is_to_judge_is_refused(sound, sounds, make_clap, class_judge, capsys):
    clips = read_manifests([sounds], "test")
    with pytest.raises(XcodecLMError, match="is the CLAP that run is conditioned on") as error:
        check_judges(Judges(make_clap("conditioner")), [("run", sound.clap)], clips)
    assert "--data.split-seed" in error.value.hint
    kin = Judges(make_clap("conditioner at another step"), class_judge)  # other weights, the same seed and data
    check_judges(kin, [("run", sound.clap)], clips)
    assert "has the ancestry" in kin.doubts["clap"] and kin.features == "class"
    assert "gives no verdict" in capsys.readouterr().err.replace("give no", "gives no")
    heard = Judges(make_clap("judge", 1, trained_on=("r18", "r3")), class_judge)
    check_judges(heard, [("run", sound.clap)], clips)
    assert "1 of the tested recordings, such as r18" in heard.doubts["clap"]
    fine = Judges(make_clap("judge", 1, trained_on=("r3",)), class_judge)
    check_judges(fine, [("run", sound.clap), ("labels", None)], clips)
    assert not fine.doubts and fine.features == "clap"
    assert not related({}, {}) and related({"seed": 1, "steps": 5}, {"seed": 1, "steps": 9})


def test_a_doubtful_judge_gives_no_verdict(sound, sounds, make_clap, class_judge):
    kin = Judges(make_clap("kin"), class_judge)
    data = evaluate_sound([("run", sound)], [sounds], kin, making=Making(seconds=0.1), controls=False)
    verdicts = {row["measure"]: row["verdict"] for row in data["differences"] if row["b"] == "white noise"}
    assert verdicts["clap"] == "not decidable" and data["systems"][0]["clap"]["value"] is not None
    assert data["judges"]["features"] == "class" and data["trusted"]["frechet"] == ""
    deaf = Judges(None, class_judge)
    wrong = {"hum": "whistle", "whistle": "clicks", "clicks": "hum"}
    rows = [json.loads(line) for line in sounds.read_text().splitlines()]
    swapped = sounds.with_name("swapped.jsonl")
    text = [
        json.dumps(row | {"label": wrong[row["label"]] if row["split"] == "test" else row["label"]}) for row in rows
    ]
    swapped.write_text("\n".join(text))
    data = evaluate_sound([("run", sound)], [swapped], deaf, making=Making(seconds=0.1), controls=False)
    assert "of the real recordings only" in data["trusted"]["class"]
    assert {row["verdict"] for row in data["differences"] if row["measure"] == "class"} == {"not decidable"}


def test_agreement_and_scores_of_known_answers():
    shares = np.eye(3)[[0, 1, 2, 0]]
    heard = Heard(np.array([False, False, False, True]), np.zeros((4, 2)), shares, np.eye(4, 3))
    right, names = class_agreement(heard, ["a", "a", "unknown", "a"], ["a", "b", "c"])
    np.testing.assert_array_equal(right, [1, 0, np.nan, 0])  # silence is no answer
    assert names == ["a", "b", "silence"]
    texts = np.array([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0, 1], [0, 0, 1]])
    own, others = clap_scores(heard, texts, ["a", "a", "", ""], ["x", "y", "z", "z"])
    np.testing.assert_allclose(own, [1, 0.5, 1, np.nan])
    np.testing.assert_allclose(others, [0, 0, 0, np.nan])  # 2 and 3 say the same, 0 and 1 are of one class


# ------------------------------------------------------------------ controls


def test_other_captions_are_of_other_classes(sounds):
    clips = read_manifests([sounds], "test")
    rows = other_rows(clips, seed=3)
    assert all(clips[other].row["label"] != clip.row["label"] for clip, other in zip(clips, rows, strict=True))
    assert rows == other_rows(clips, seed=3) != other_rows(clips, seed=4)
    assert other_rows([clip for clip in clips if clip.row["label"] == "hum"]) is None
    told = [Clip(str(n), clips[0].path, 1.0, None, {"caption": f"sound {n % 2}"}) for n in range(4)]
    assert all((other - row) % 2 for row, other in enumerate(other_rows(told)))


def test_shuffled_codes_keep_how_often_each_occurs(sound):
    rng = torch.Generator().manual_seed(0)
    spec = sound.codec.spec.take(2)
    tokens = [stack_codes([torch.randint(9, (2, size), generator=rng)], spec) for size in (30, 7, 21)]
    dealt = shuffle_codes(tokens, seed=1)
    assert [one.codes.shape for one in dealt] == [one.codes.shape for one in tokens]
    for book in range(2):
        before, after = (torch.cat([one.codes[0, book] for one in part]) for part in (tokens, dealt))
        assert torch.equal(before.sort().values, after.sort().values) and not torch.equal(before, after)


def test_the_untrained_model_is_another_one_of_the_same_sizes(sound):
    other = untrained(sound, seed=3)
    assert not torch.equal(other.model.wte.weight, sound.model.wte.weight) and other.clap is sound.clap
    assert torch.equal(other.model.wte.weight, untrained(sound, seed=3).model.wte.weight)


def test_one_seed_for_each_condition(sound):
    both = sound.make(["a low hum"] * 2, 0.2, [1, 2])
    assert not torch.equal(both.tokens[0].codes, both.tokens[1].codes)
    assert torch.equal(both.tokens[1].codes, sound.make(["a low hum"], 0.2, 2).tokens[0].codes)
    with pytest.raises(UsageError, match="3 seeds for 2 conditions"):
        sound.make(["a low hum"] * 2, 0.2, [1, 2, 3])


def test_the_page_shows_every_class_first():
    items = [{"id": str(n), "class": "ab"[n // 9], "caption": ""} for n in range(12)]
    assert [item["id"] for item in choose_rows(items, 3)] == ["0", "1", "9"]


# ------------------------------------------------------------------ the command


def test_the_command(sound, sounds, make_clap, cli, tmp_path, monkeypatch):
    claps = {"judges/clap": make_clap("judge", 1), "same": make_clap("conditioner")}
    monkeypatch.setattr("xcodec_lm.tasks.sound.make.load_sound", lambda *arguments: sound)
    monkeypatch.setattr(
        "xcodec_lm.tasks.sound.clap.load_clap",
        lambda source, device="cpu": next(clap for name, clap in claps.items() if str(source).endswith(name)),
    )
    monkeypatch.setattr("xcodec_lm.tasks.sound.sound_class.STEPS", 2)
    (tmp_path / "judges" / "clap").mkdir(parents=True)
    (tmp_path / "same").mkdir()
    words = ("sound", "eval", sounds, "--runs", "run", "--seconds", 0.1, "--most", 4, "--device", "cpu")
    code, out, err = cli(*words, "--judges", tmp_path / "judges", "-o", tmp_path / "out", "-n", 2, "--json")
    assert code == 0, err
    data = json.loads(out)
    assert data["samples"] == 2 and data["judges"]["clap"] == "judge" and "report:" in err
    lines = (tmp_path / "out" / "items.jsonl").read_text().splitlines()
    assert len(lines) == 4 and json.loads((tmp_path / "out" / "result.json").read_text())["rows"] == 4
    assert (tmp_path / "out" / "report.html").is_file() and (tmp_path / "out/sound_class/config.json").is_file()
    weights = (tmp_path / "out/sound_class/model.safetensors").stat().st_mtime_ns
    code, out, err = cli(*words, "-o", tmp_path / "out", "--no-controls")
    assert code == 0 and "CLAP scores are left out" in err and "run: made" in out and "untrained" not in out
    assert (tmp_path / "out/sound_class/model.safetensors").stat().st_mtime_ns == weights  # trained once
    code, _, err = cli(*words, "--judges", tmp_path / "same")
    assert code == 1 and "it cannot judge it" in err and "hint: train another" in err
    code, _, err = cli(*words, "--judges", tmp_path / "nowhere")
    assert code == 1 and "does not exist" in err
    assert cli(*words, "--codecs", "a", "b")[0] == 2 and cli(*words, "-n", 0)[0] == 2
