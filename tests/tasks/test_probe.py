"""Linear probes: they find what is linear and only that, never test on what they saw, and judge a teacher."""

import numpy as np
import pytest
import soundfile as sf
import torch
from transformers import HubertConfig, HubertModel

from xcodec_lm.codec.clips import Clip, write_manifest
from xcodec_lm.configs.errors import UsageError
from xcodec_lm.tasks.commands.hubert import hubert_probe
from xcodec_lm.tasks.eval import probe as probes
from xcodec_lm.tasks.eval.probe import ProbeTask, cross_validate, linear_probe, pooled, probe_tasks


def blobs(rows, classes, dims=8, apart=4.0, seed=0):
    rng = np.random.default_rng(seed)
    centres = apart * np.random.default_rng(99).standard_normal((classes, dims))
    labels = np.arange(rows) % classes
    return torch.from_numpy(centres[labels] + rng.standard_normal((rows, dims))), [f"class {i}" for i in labels]


def clip(name, tmp_path=None, **row):
    return Clip(name, (tmp_path or ".") and None, 1.0, "train", {"id": name, **row})


def test_separable_classes_are_told_apart():
    x, y = blobs(120, 4)
    z, w = blobs(80, 4, seed=1)
    result = linear_probe(x, y, z, w)
    assert result.accuracy == 1.0 and result.majority == 0.25 and result.correct.all()


def test_shuffled_labels_give_chance():
    x, y = blobs(400, 4)
    z, w = blobs(400, 4, seed=1)
    order = np.random.default_rng(0)
    result = linear_probe(x, list(order.permutation(y)), z, list(order.permutation(w)))
    assert abs(result.accuracy - 0.25) < 0.07


def test_what_is_not_linear_is_not_found():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (600, 2))
    y = (x[:, 0] * x[:, 1] > 0).tolist()
    result = linear_probe(torch.from_numpy(x[:400]), y[:400], torch.from_numpy(x[400:]), y[400:])
    assert result.accuracy < 0.65


def test_scale_shift_and_constant_features_change_nothing():
    x, y = blobs(90, 3, apart=0.8)
    z, w = blobs(90, 3, apart=0.8, seed=1)

    def stretched(v):
        return torch.cat([v * torch.logspace(-4, 4, 8) + 100, torch.full((len(v), 1), 7.0)], dim=1)

    plain, other = linear_probe(x, y, z, w), linear_probe(stretched(x), y, stretched(z), w)
    assert 0.5 < plain.accuracy < 1 and np.mean(plain.correct != other.correct) < 0.03


def test_label_that_was_never_trained_on_counts_as_wrong():
    x, y = blobs(40, 2)
    result = linear_probe(x, y, x[:4], ["class 0", "class 1", "unheard of", "unheard of"])
    assert result.correct.tolist() == [True, True, False, False]


def test_probe_is_decided_by_its_input_and_seed():
    x, y = blobs(60, 3, apart=0.7)
    a, b = (linear_probe(x[:40], y[:40], x[40:], y[40:], seed=5) for _ in range(2))
    assert a.penalty == b.penalty and a.correct.tolist() == b.correct.tolist()


def test_rows_and_labels_must_match():
    x, y = blobs(10, 2)
    with pytest.raises(ValueError, match="10 and 5 rows for 9 and 5 labels"):
        linear_probe(x, y[:9], x[:5], y[:5])


def test_penalty_is_chosen_on_groups_that_were_not_fitted(monkeypatch):
    fitted = []
    inner = probes._fit
    monkeypatch.setattr(probes, "_fit", lambda x, *rest: fitted.append(x) or inner(x, *rest))
    x, y = blobs(40, 2)
    groups = [f"speaker {row // 10}" for row in range(40)]
    linear_probe(x, y, x, y, train_groups=groups)
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    for part in fitted[:-1]:
        inside = [bool((standard[i] == part).all(1).any()) for i in range(40)]
        assert sum(inside) == 30 and all(len(set(inside[10 * g : 10 * g + 10])) == 1 for g in range(4))
    assert len(fitted) == len(probes.PENALTIES) + 1 and len(fitted[-1]) == 40


def test_pooling_gives_mean_and_deviation():
    frames = torch.tensor([[1.0, 3.0], [5.0, 5.0]])
    assert pooled(frames).tolist() == [2.0, 5.0, 1.0, 0.0]


def test_units_are_tested_once_and_never_trained_on(monkeypatch):
    x, y = blobs(60, 3)
    units = [f"unit {row // 6}" for row in range(60)]
    x[:, 0] = torch.arange(60)  # tells rows apart
    tested, inner = [], probes.linear_probe

    def spy(train_x, train_y, test_x, test_y, seed, groups):
        trained = {units[int(row)] for row in train_x[:, 0]}
        assert trained == set(groups) and not trained & {units[int(row)] for row in test_x[:, 0]}
        tested.extend(test_x[:, 0].int().tolist())
        return inner(train_x, train_y, test_x, test_y, seed, groups)

    monkeypatch.setattr(probes, "linear_probe", spy)
    score = cross_validate(x, ProbeTask("t", [], y, units, "unit"))
    assert sorted(tested) == list(range(60))
    assert score.accuracy.units == 10 and score.accuracy.scored == 60
    assert score.accuracy.value == pytest.approx(score.correct.mean()) and score.accuracy.value > 0.9


def test_what_only_tells_units_apart_does_not_help():
    rng = np.random.default_rng(0)
    units = [f"u{row // 5}" for row in range(100)]
    labels = [f"{(row // 5) % 2}" for row in range(100)]  # a label is a property of the unit
    x = torch.from_numpy(np.repeat(rng.standard_normal((20, 30)), 5, axis=0) + 0.01 * rng.standard_normal((100, 30)))
    assert cross_validate(x, ProbeTask("t", [], labels, units, "unit")).accuracy.value < 0.75
    leaky = cross_validate(x, ProbeTask("t", [], labels, [str(row) for row in range(100)], "row"))
    assert leaky.accuracy.value > 0.9


def test_tasks_come_from_the_rows_of_manifests():
    words = [clip(f"w{i}", text=("one", "two")[i % 2], speaker=f"s{i % 4}") for i in range(40)]
    sentences = [clip(f"l{i}", text=f"a sentence number {i}", speaker=f"once {i}") for i in range(9)]
    sounds = [
        clip(f"d{i}", label=("dog", "rain", "rare")[i % 3 if i < 3 else i % 2], recording=f"r{i // 2}", speaker=None)
        for i in range(30)
    ]
    tasks = {task.name: task for task in probe_tasks([*words, *sentences, *sounds], per_class=15)}
    assert set(tasks) == {"spoken word", "speaker", "sound class"}
    word = tasks["spoken word"]
    assert (
        len(word.clips) == 30 and set(word.labels) == {"one", "two"} and set(word.units) == {f"s{i}" for i in range(4)}
    )
    assert set(tasks["speaker"].labels) == {f"s{i}" for i in range(4)}  # those with enough recordings
    assert tasks["speaker"].units == [c.id for c in tasks["speaker"].clips]
    assert set(tasks["sound class"].labels) == {"dog", "rain"} and "r5" in tasks["sound class"].units
    assert [t.clips for t in probe_tasks(words, 15, seed=1)] != [t.clips for t in probe_tasks(words, 15, seed=2)]
    assert probe_tasks(sentences, 15) == []


# ---------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two `words`, a low and a high tone, of ten speakers with their own levels."""
    folder = tmp_path_factory.mktemp("words")
    rng = np.random.default_rng(0)
    rows = []
    for speaker in range(10):
        for word, hertz in (("low", 200), ("high", 2500)):
            name = f"{speaker}-{word}.wav"
            time_s = np.arange(4000) / 16000
            tone = 0.05 * (1 + speaker) * np.sin(2 * np.pi * hertz * rng.uniform(0.9, 1.1) * time_s)
            sf.write(folder / name, (tone + 0.001 * rng.standard_normal(4000)).astype(np.float32), 16000)
            rows.append({"id": name, "audio": name, "duration": 0.25, "text": word, "speaker": f"s{speaker}"})
    write_manifest(rows, folder / "words.jsonl")
    return folder / "words.jsonl"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8,) * 7,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("teacher")
    HubertModel(config).save_pretrained(folder)
    return folder


def test_command_compares_teacher_untrained_teacher_and_codec(corpus, teacher, twin_folder):
    result = hubert_probe(str(teacher), (corpus,), codec=str(twin_folder), device="cpu")
    rows = {row["source"]: row for row in result.data}
    assert list(rows) == [
        "teacher", "untrained teacher", "codec pre_vq", "codec post_vq n_q 1", "codec post_vq n_q 4",
    ]  # fmt: skip
    assert {row["task"] for row in result.data} == {"spoken word"}  # two recordings a speaker are too few for another
    assert rows["codec pre_vq"]["accuracy"]["value"] > 0.7 and rows["teacher"]["chance"] == 0.5
    estimate = rows["teacher"]["accuracy"]
    assert estimate["low"] <= estimate["value"] <= estimate["high"] and estimate["units"] == 10
    gain = rows["codec pre_vq"]["gain"]["value"]
    assert gain == pytest.approx(estimate["value"] - rows["codec pre_vq"]["accuracy"]["value"])
    assert "gain" not in rows["teacher"] and "untrained teacher" in result.text and "95 %" in result.text


def test_command_without_labels_says_so(teacher, tmp_path, write_wav):
    write_wav("a.wav")
    write_manifest([{"id": "a", "audio": "a.wav", "duration": 1.0}], tmp_path / "m.jsonl")
    assert "no row of the manifests has labels" in hubert_probe(str(teacher), (tmp_path / "m.jsonl",)).text
    with pytest.raises(UsageError, match="at least one manifest"):
        hubert_probe(str(teacher), ())
    with pytest.raises(UsageError, match="per-class"):
        hubert_probe(str(teacher), (tmp_path / "m.jsonl",), per_class=0)
