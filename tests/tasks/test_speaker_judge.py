"""The speaker judge: it learns voices, similarity heeds neither level nor band, equal-error rates, the command."""

import json
import math

import numpy as np
import pytest
import soundfile as sf
import torch

from xcodec_lm.codec.clips import write_manifest
from xcodec_lm.codec.runtime.run import RunOptions, read_metrics
from xcodec_lm.configs.errors import AudioError, ConfigError, XcodecLMError
from xcodec_lm.configs.evaluators import EvaluatorDataConfig, EvaluatorTrainConfig, SpeakerConfig
from xcodec_lm.configs.run import OptimConfig, RunConfig
from xcodec_lm.tasks.eval.judge_audio import low_pass
from xcodec_lm.tasks.eval.speaker import (
    SpeakerEmbedder,
    Voice,
    compare_with_prompts,
    equal_error_rate,
    load_speaker_embedder,
    similarity,
    verification,
)
from xcodec_lm.tasks.eval.tiny_speaker import TinySpeaker, TinySpeakerEmbedder, save_tiny_speaker
from xcodec_lm.tasks.eval.train_evaluators import thin, train

RATE = 16_000
SMALL = SpeakerConfig(channels=16, dim=16, dropout=0.0, crop_s=0.6)


def voice(speaker, seed, seconds=0.8):
    """Pulses through two resonances that are the speaker's, at a pitch that wanders."""
    rng = np.random.default_rng(1000 * speaker + seed)
    time = np.arange(round(seconds * RATE)) / RATE
    pitch = (90 + 25 * speaker) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(1, 4) * time + rng.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    formants = (350 + 90 * speaker, 1300 + 250 * speaker)
    wav = sum(np.cos(k * phase) * sum(1 / (1 + ((k * pitch - f) / 120) ** 2) for f in formants) for k in range(1, 25))
    wav = wav * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * time + rng.uniform(0, 6))) + 0.01 * rng.standard_normal(len(time))
    return (0.1 * wav / np.abs(wav).max()).astype(np.float32)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Four voices in train, two others in test, twice over under two sources."""
    folder = tmp_path_factory.mktemp("voices")
    rows = []
    for speaker in range(6):
        for index in range(4):
            name = f"{speaker}-{index}"
            sf.write(folder / f"{name}.wav", voice(speaker, index), RATE)
            rows.append({"id": name, "audio": f"{name}.wav", "duration": 0.8, "speaker": f"s{speaker}", "text": "low",
                         "split": "test" if speaker in (1, 4) else "train", "source": "made"})  # fmt: skip
    write_manifest(rows, folder / "voices.jsonl")
    return folder / "voices.jsonl"


@pytest.fixture(scope="module")
def trained(manifest, tmp_path_factory):
    config = EvaluatorTrainConfig(
        kind="speaker", speaker=SMALL,
        data=EvaluatorDataConfig(manifests=(str(manifest),), batch_clips=8, eval_clips=8),
        optim=OptimConfig(steps=40, lr=1e-2, betas=(0.9, 0.98), schedule="cosine", warmup_steps=5, clip_norm=1.0),
        run=RunConfig(log_every=1, eval_every=1000, save_every=1000),
    )  # fmt: skip
    return train(config, RunOptions(tmp_path_factory.mktemp("runs") / "speaker", device="cpu"))


def test_it_tells_voices_apart_that_it_never_heard(trained):
    rows = read_metrics(trained)
    assert rows[-1]["eval/eer"] < 0.3
    assert np.mean([row["loss"] for row in rows[-5:]]) < 0.6 * rows[0]["loss"]
    judge = load_speaker_embedder(trained)
    same = similarity(judge, [voice(1, 50), voice(4, 50)], [voice(1, 51), voice(4, 51)])
    different = similarity(judge, [voice(1, 50), voice(4, 50)], [voice(4, 51), voice(1, 51)])
    assert same.min() > different.max()


def test_the_contract_of_embedders(trained):
    judge = load_speaker_embedder(trained)
    assert isinstance(judge, SpeakerEmbedder)
    clips = [voice(0, 9), voice(1, 9, 0.1), voice(2, 9, 60.0), np.zeros(RATE, np.float32), np.ones(1, np.float32)]
    together = judge.embed(clips)
    assert together.shape == (5, 16) and together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    for row, clip in zip(together, clips, strict=True):
        np.testing.assert_array_equal(judge.embed([clip])[0], row)
    assert judge.embed([]).shape == (0, 16)
    with pytest.raises(AudioError, match="nan"):
        judge.embed([np.array([np.nan, 0.0], np.float32)])


def test_rows_of_a_batch_are_embedded_as_alone():
    torch.manual_seed(0)
    model = TinySpeaker(SMALL, ["a", "b"]).eval()
    rows = [torch.randn(length, model.bands) for length in (50, 3, 21)]
    lengths = torch.tensor([50, 3, 21])
    with torch.inference_mode():
        batch = model(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths)
        alone = torch.cat([model(row[None], length[None]) for row, length in zip(rows, lengths, strict=True)])
    torch.testing.assert_close(batch, alone, atol=1e-5, rtol=1e-5)


def test_similarity_heeds_neither_level_nor_band(trained):
    judge = load_speaker_embedder(trained)
    wav, other = voice(1, 7), voice(1, 8)
    narrow = low_pass(torch.from_numpy(wav)).numpy()
    base = similarity(judge, [wav], [other])[0]
    assert similarity(judge, [0.1 * wav], [other])[0] == pytest.approx(base, abs=1e-4)
    assert similarity(judge, [narrow], [other])[0] == pytest.approx(base, abs=5e-3)
    assert similarity(judge, [wav], [wav])[0] == pytest.approx(1, abs=1e-5)
    assert similarity(judge, [np.zeros(RATE, np.float32)], [wav])[0] == 0


class ByMark:
    """Knows a speaker by the strength of the clip's second half against the first."""

    name, ancestry = "by mark", {}

    def embed(self, wavs):
        halves = [np.array([np.square(wav[: len(wav) // 2]).mean(), np.square(wav[len(wav) // 2 :]).mean()])
                  for wav in wavs]  # fmt: skip
        return np.stack([half / np.linalg.norm(half) for half in halves]).astype(np.float32)


def marked(first, second):
    wav = np.sin(2 * np.pi * 300 * np.arange(3200) / RATE)
    return np.concatenate([first * wav, second * wav]).astype(np.float32)


def test_own_prompt_against_other_speakers_of_the_same_source():
    left, right, both = marked(0.5, 0.01), marked(0.01, 0.5), marked(0.5, 0.5)
    prompts = [Voice(left, "l", "x", "p1"), Voice(left, "l", "x", "p1"), Voice(right, "r", "x", "p2"),
               Voice(both, "b", "y", "p3")]  # fmt: skip
    report = compare_with_prompts(ByMark(), [left, left, right, both], prompts)
    assert report.own.value == pytest.approx(1, abs=1e-3)
    assert report.own.units == 3  # prompts, not clips
    own, others = report.by_source()["x"].own, report.by_source()["x"].others
    assert own.value == pytest.approx(1, abs=1e-3) and others.value < 0.1
    assert report.difference.scored == 3 and report.difference.unscored == 1  # nobody else is in source y
    assert report.difference.verdict(False) == "not decidable"
    more = compare_with_prompts(ByMark(), [both], [prompts[3]], others=[Voice(left, "l", "y"), Voice(right, "r", "x")])
    assert more.items[0]["others"] == pytest.approx(math.sqrt(0.5), abs=1e-2)
    swapped = compare_with_prompts(ByMark(), [right, right, left], prompts[:3])
    assert swapped.difference.value < -0.9
    with pytest.raises(XcodecLMError, match="one prompt a clip"):
        compare_with_prompts(ByMark(), [left], [])


def test_equal_error_rate_by_hand():
    assert equal_error_rate([0.9, 0.8], [0.1, 0.2]) == 0
    assert equal_error_rate([0.1, 0.2], [0.9, 0.8]) == 1
    assert equal_error_rate([0.9, 0.3], [0.5, 0.1]) == pytest.approx(0.5)
    assert equal_error_rate([0.9, 0.8, 0.7, 0.3], [0.5, 0.1, 0.2, 0.05]) == pytest.approx(0.25)
    assert equal_error_rate([0.5] * 4, [0.5] * 4) == pytest.approx(0.5)
    assert math.isnan(equal_error_rate([], [0.1]))


def test_equal_error_rate_of_normals_is_their_tail():
    rng = np.random.default_rng(0)
    rate = equal_error_rate(rng.normal(2, 1, 20_000), rng.normal(0, 1, 20_000))
    assert rate == pytest.approx(0.5 * math.erfc(1 / math.sqrt(2)), abs=0.01)


def test_verification_by_source():
    vectors = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [1, 0]], dtype=float)
    found = verification(vectors, ["a", "a", "b", "b", "c"], ["x", "x", "x", "x", "y"])
    assert found["x"] == {"eer": 0.0, "same": 1.0, "different": 0.0, "speakers": 2, "recordings": 4}
    assert found["y"]["eer"] is None


def test_saved_without_its_classes(tmp_path):
    torch.manual_seed(0)
    model = TinySpeaker(SMALL, ["a", "b"]).eval()
    save_tiny_speaker(model, tmp_path, {})
    clip = [voice(3, 3)]
    loaded = load_speaker_embedder(tmp_path)
    np.testing.assert_array_equal(loaded.embed(clip), TinySpeakerEmbedder(model).embed(clip))
    with pytest.raises(XcodecLMError, match="holds no judge"):
        load_speaker_embedder(tmp_path / "nowhere")


def test_one_speaker_is_not_enough(manifest, tmp_path):
    alone = tmp_path / "one.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    write_manifest([{**row, "audio": str(manifest.parent / row["audio"])} for row in rows if row["speaker"] == "s0"],
                   alone)  # fmt: skip
    config = EvaluatorTrainConfig(kind="speaker", data=EvaluatorDataConfig(manifests=(str(alone),)))
    with pytest.raises(ConfigError, match="have 1 speakers"):
        train(config, RunOptions(tmp_path / "run", device="cpu"))


def test_thinning_spreads():
    assert thin(list(range(10)), 3) == [0, 3, 6] and thin([1, 2], 5) == [1, 2]


def test_the_command_trains_both_and_measures_them(cli, manifest, tmp_path, twin_folder):
    out = tmp_path / "judges"
    argv = ["eval", "train-evaluators", "--data", manifest, "-o", out, "--steps", 2, "--device", "cpu"]
    code, text, err = cli(*argv, "--codecs", twin_folder, "--copies", 2, "--json")
    assert code == 0, err
    data = json.loads(text)
    assert "test, made" in data["speaker"]["measured"]
    (measured,) = data["recogniser"]["measured"].values()
    assert measured["wer"]["scored"] == 8
    header = json.loads((out / "recogniser" / "model" / "config.json").read_text())
    assert header["ancestry"]["copies"] == 2 and header["ancestry"]["codecs_heard"] == [str(twin_folder)]
    code, _, err = cli("eval", "train-evaluators", "--data", manifest, "-o", out, "--steps", 0)
    assert code == 2 and "--steps must be at least 1" in err
