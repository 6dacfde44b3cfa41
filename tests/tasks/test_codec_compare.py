"""`codec eval`: a codec alone, and beside its twin, on made-up recordings."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import soundfile as sf
import torch

from xcodec_lm.codec import load_codec
from xcodec_lm.codec.evaluate import evaluate
from xcodec_lm.codec.tokens import AudioTokens, Features, FrameFeatures, TokenSpec
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.commands.codec_eval import codec_eval
from xcodec_lm.tasks.eval import codec_compare, codec_features, probe, reconstruction, signal
from xcodec_lm.tasks.eval.abx_items import Item, ItemError
from xcodec_lm.tasks.eval.codec_compare import compare, discriminability, encoding
from xcodec_lm.tasks.eval.codec_features import FeatureKey, collect, feature_keys
from xcodec_lm.tasks.eval.codec_text import format_comparison
from xcodec_lm.tasks.eval.probe import pooled

RATE = 16_000
WORDS = {"one": 300, "two": 700}
"""Words and their pitch: what a codec's vectors can tell."""


class Levels:
    """A codec of one hop's mean and level, coarse at first: `n_q` digits of base 8 of each sample block.

    It keeps every `hop`-th sample, rounded; the more layers, the finer. Its vectors are the rounded samples of a frame.
    """

    causal, lookahead_frames = True, 0
    features = ("post_vq", "pre_vq")

    def __init__(self, rate=RATE, hop=4, n_q=4, spoil=0.0, late=0, name="levels"):
        self.spec = TokenSpec(name, rate, rate, hop, (8,) * n_q, fingerprint=name)
        self.spoil, self.late = spoil, late

    def frames(self, samples):
        return math.ceil(samples / self.spec.hop_samples)

    def encode(self, wav, lengths=None, n_q=None, *, sample_rate=None):
        rest = (wav[0, 0, :: self.spec.hop_samples].clamp(-0.999, 0.999) + 1) / 2
        codes = []
        for _ in range(self.spec.n_q):
            digit = (rest * 8).floor().long()
            rest = rest * 8 - digit
            codes.append(digit)
        codes = torch.stack(codes)[None]
        return AudioTokens(codes, torch.tensor([codes.shape[2]]), self.spec, torch.tensor([wav.shape[2]]))

    def _values(self, tokens):
        weights = torch.tensor([8.0 ** -(1 + layer) for layer in range(tokens.spec.n_q)])
        return 2 * ((tokens.codes[0] * weights[:, None]).sum(0) + weights[-1] / 2) - 1

    def decode(self, tokens):
        wav = self._values(tokens).repeat_interleave(self.spec.hop_samples)
        rng = torch.Generator().manual_seed(0)
        wav = wav + self.spoil * torch.randn(wav.shape, generator=rng)
        return signal.shift(wav, -self.late)[None, None], torch.tensor([len(wav)])

    def stream_decoder(self, batch=1):
        raise AssertionError("not asked for here")

    def extract(self, source, feature, n_q=None, lengths=None):
        tokens = source.take(n_q) if isinstance(source, AudioTokens) else self.encode(source)
        values = self._values(tokens)
        width = 40  # spectra of 40 values, as a frame
        values = values[: len(values) // width * width].reshape(-1, width)
        spectra = torch.fft.rfft(values - values.mean()).abs()[:, 1:]
        rate = Fraction(self.spec.sample_rate, self.spec.hop_samples * width)
        return Features(spectra.T[None], torch.tensor([len(spectra)]), rate)


def write(folder, name, rows, rate=RATE):
    """A manifest of tones over a little noise: row -> pitch and seconds."""
    folder.mkdir(exist_ok=True)
    lines = []
    for index, (pitch, seconds, row) in enumerate(rows):
        rng = np.random.default_rng(index)
        time = np.arange(round(seconds * rate)) / rate
        wav = 0.4 * np.sin(2 * np.pi * pitch * time + rng.uniform(0, 6)) + 0.02 * rng.standard_normal(len(time))
        sf.write(folder / f"{name}-{index}.flac", wav, rate)
        lines.append(
            {"id": f"{name}-{index}", "audio": f"{name}-{index}.flac", "duration": seconds, "split": "test"} | row
        )
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Words by 11 speakers, of which one word has two takes, and sounds of few recordings."""
    folder = tmp_path_factory.mktemp("corpus")
    words = [
        (WORDS[word] * (1 + 0.01 * speaker), 0.15, {"text": word, "speaker": f"s{speaker}"})
        for speaker in range(11)
        for word in ("one", "one", "two")
    ]
    sounds = [
        (200 + 300 * (index % 2), 0.2, {"label": "high" if index % 2 else "low", "recording": f"r{index // 2}",
                                        "split": "train" if index < 12 else "test"})
        for index in range(16)
    ]  # fmt: skip
    return [write(folder, "speech", words), write(folder, "sound", sounds)]


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Probes of few steps, and no measure that depends on what is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "ITERATIONS", 5)
        patch.setattr(probe, "PENALTIES", (0.1,))
        patch.setattr(signal, "missing_libraries", lambda: ("pystoi", "pesq"))
        # The codes of `Levels` come 4,000 times a second, too many to warp; `Levels(hop=20)` has fewer.
        patch.setattr(codec_compare, "code_keys", lambda n_qs: [])
        yield


@pytest.fixture(scope="module")
def measured(corpus):
    codecs = {"codec": Levels(name="fine"), "against": Levels(spoil=0.1, name="spoilt")}
    return compare(codecs, corpus, "test")


def test_stand_in_has_the_protocols():
    assert isinstance(Levels(), FrameFeatures)


# ------------------------------------------------------------------ reconstructions


def test_domains_have_figures_with_intervals_and_paired_differences(measured):
    speech = measured["domains"]["speech"]
    assert (speech["clips"], speech["units"], speech["unit"]) == (33, 11, "speaker")
    assert set(speech["codec"]) == {"n_q 1", "n_q 2", "n_q 4"}
    assert set(speech["anchors"]) == {"silence", "white noise", "shaped noise"}
    for label in speech["codec"]:
        for name in ("mel", "stft", "si_sdr"):
            ours, theirs = (speech[role][label][name] for role in ("codec", "against"))
            difference = speech["difference"][label][name]
            assert ours["low"] <= ours["value"] <= ours["high"] and ours["units"] == 11
            assert difference["value"] == pytest.approx(ours["value"] - theirs["value"])
    assert speech["difference"]["n_q 4"]["mel"]["verdict"] == "better"
    assert speech["difference"]["n_q 4"]["si_sdr"]["verdict"] == "better"


def test_more_layers_are_nearer_and_noise_is_further(measured):
    for domain in measured["domains"].values():
        ratios = [domain["codec"][f"n_q {n_q}"]["si_sdr"]["value"] for n_q in (1, 2, 4)]
        assert ratios == sorted(ratios) and ratios[2] > 10
        assert domain["anchors"]["white noise"]["si_sdr"]["value"] < -5
        assert domain["anchors"]["silence"]["mel"]["value"] > domain["codec"]["n_q 4"]["mel"]["value"]


def test_few_units_are_not_decidable_but_have_figures(measured):
    sound = measured["domains"]["sound"]
    assert sound["units"] == 2 and sound["unit"] == "recording"
    assert {row["verdict"] for values in sound["difference"].values() for row in values.values()} == {"not decidable"}
    assert sound["difference"]["n_q 4"]["mel"]["value"] < 0
    assert "2 recordings are too few for a verdict, which takes 10: not decidable" in format_comparison(measured)


def test_figures_are_those_of_the_training_evaluation(corpus, twin_folder):
    codec = load_codec(twin_folder)
    (domain,) = reconstruction.read_domains(corpus[1:], "test")
    (result,), anchors, seconds = reconstruction.measure([codec], domain, [1, 4])
    wavs = [torch.from_numpy(sf.read(clip.path, dtype="float32")[0])[None] for clip in domain.clips]
    reference = evaluate(codec, wavs, (1, 4))
    for n_q, values in reference.codec.items():
        assert result.values[n_q]["mel"].mean() == pytest.approx(values["mel"], rel=1e-5)
    for name, values in reference.anchors.items():
        assert anchors[name]["stft"].mean() == pytest.approx(values["stft"], rel=1e-5)
    assert result.use.used == reference.codes_used and result.use.perplexity == pytest.approx(reference.perplexity)
    assert seconds == pytest.approx(reference.seconds)


def test_speech_is_told_by_its_text_and_gets_the_measures_that_are_installed(corpus, monkeypatch):
    speech, sound = reconstruction.read_domains(corpus, "test")
    monkeypatch.setattr(signal, "missing_libraries", lambda: ("pesq",))
    assert reconstruction.measures(speech) == ("mel", "stft", "si_sdr", "stoi")
    assert reconstruction.measures(sound) == ("mel", "stft", "si_sdr")


def test_what_a_measure_cannot_judge_is_counted(corpus, monkeypatch):
    monkeypatch.setattr(signal, "missing_libraries", lambda: ("pesq",))
    monkeypatch.setattr(signal, "stoi", lambda estimate, target, rate: math.nan if target[0] > 0 else 0.5)
    data = compare({"codec": Levels(n_q=1)}, corpus[:1], "test", looks_inside=False)
    figure = data["domains"]["speech"]["codec"]["n_q 1"]["stoi"]
    assert figure["scored"] + figure["unscored"] == 33 and figure["unscored"] > 0 and figure["value"] == 0.5
    text = format_comparison(data)
    assert f"clips that STOI could not judge, not in its means: n_q 1 {figure['unscored']}, silence" in text
    assert "STOI and PESQ need pesq, which are not installed: pip install 'xcodec-lm[eval]'" in text


@pytest.mark.parametrize("late", [0, 2])
def test_a_codec_that_is_late_is_measured_in_time(tmp_path, late):
    rows = []
    for index in range(4):
        wav = np.convolve(np.random.default_rng(index).standard_normal(3015), np.ones(16) / 16, "valid")
        sf.write(tmp_path / f"{index}.wav", 0.4 * wav, RATE)
        rows.append({"id": str(index), "audio": f"{index}.wav", "duration": 3000 / RATE})
    (tmp_path / "noise.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (domain,) = reconstruction.read_domains([tmp_path / "noise.jsonl"], None)
    (result,), _, _ = reconstruction.measure([Levels(hop=3, late=late)], domain, [4])
    assert result.delay_samples == late + 1  # a value held for three samples is late by one itself
    assert result.values[4]["si_sdr"].mean() > 5


def test_a_codec_of_another_rate_is_measured_on_the_same_clips(corpus):
    codecs = {"codec": Levels(n_q=2), "against": Levels(rate=8000, hop=2, n_q=2, name="narrow")}
    data = compare(codecs, corpus[:1], "test", looks_inside=False)
    speech = data["domains"]["speech"]
    assert speech["codec"]["n_q 2"]["mel"]["scored"] == speech["against"]["n_q 2"]["mel"]["scored"] == 33
    assert speech["against"]["n_q 2"]["si_sdr"]["value"] > 10
    assert speech["codes"]["codec"]["frames"] == pytest.approx(speech["codes"]["against"]["frames"], rel=0.01)


def test_codebook_use_is_counted(corpus):
    data = compare({"codec": Levels()}, corpus, "test", looks_inside=False)
    codes = data["domains"]["sound"]["codes"]["codec"]
    assert codes["frames"] == 4 * 0.2 * RATE / 4
    assert all(1 <= used <= 8 for used in codes["used"]) and codes["used"][-1] == 8
    assert codes["perplexity"][-1] == pytest.approx(8, abs=0.1) and codes["perplexity"][0] < 8
    for layer, used in enumerate(data["codes_used"]):
        assert used >= max(domain["codes"]["codec"]["used"][layer] for domain in data["domains"].values())


# ------------------------------------------------------------------ what tokens know


def test_features_lead_with_post_vq(twin_folder):
    assert [str(key) for key in feature_keys([Levels()], [1, 2, 4])] == ["post_vq n_q 1", "post_vq n_q 4", "pre_vq"]
    assert feature_keys([Levels(n_q=1)], [1])[0] == FeatureKey("post_vq", 1)


def test_collected_features_are_those_of_single_clips(corpus):
    (domain,) = reconstruction.read_domains(corpus[1:], "test")
    key = FeatureKey("post_vq", 4)
    whole, mean = (collect({"a": Levels()}, domain.clips, [key], "test", pool)["a", key] for pool in (None, pooled))
    clip = domain.clips[0]
    wav = torch.from_numpy(sf.read(clip.path, dtype="float32")[0])[None, None]
    expected = Levels().extract(Levels().encode(wav), "post_vq", 4)
    assert torch.equal(whole.vectors[clip.id], expected.values[0].T) and whole.frame_rate == 100
    assert torch.equal(mean.vectors[clip.id], pooled(expected.values[0]))


def test_probes_read_words_and_sounds(measured):
    rows = {(row["task"], row["feature"], row["n_q"]): row for row in measured["probes"]}
    assert {task for task, _, _ in rows} == {"spoken word", "sound class"}
    word, sound = rows["spoken word", "post_vq", 4], rows["sound class", "post_vq", 4]
    assert word["codec"]["value"] > 95 and word["chance"] == pytest.approx(100 * 2 / 3) and word["units"] == 11
    assert word["difference"]["value"] == 0 and word["difference"]["verdict"] == "no difference shown"
    assert (sound["units"], sound["unit"], sound["clips"]) == (8, "recording", 16)  # train recordings too
    assert sound["difference"]["verdict"] == "not decidable"


def test_words_are_discriminated_within_and_across_speakers(measured):
    rows = {(row["mode"], row["feature"], row["n_q"]): row for row in measured["abx"]}
    assert set(rows) == {
        (mode, *key) for mode in ("within", "across") for key in (("post_vq", 1), ("post_vq", 4), ("pre_vq", None))
    }
    row = rows["across", "post_vq", 4]
    assert row["items"] == 33 and row["codec"]["value"] < 5 and row["codec"]["units"] == 11
    assert row["difference"]["value"] == pytest.approx(row["codec"]["value"] - row["against"]["value"])


def test_abx_items_of_a_file_and_of_unknown_recordings(corpus):
    (domain,) = reconstruction.read_domains(corpus[:1], "test")
    items = [Item(clip.path.stem, clip.row["text"], clip.row["speaker"]) for clip in domain.clips]
    keys = [FeatureKey("post_vq", 4)]
    by_name = discriminability({"codec": Levels()}, domain.clips, keys, items)
    assert by_name == discriminability({"codec": Levels()}, domain.clips, keys, None)
    with pytest.raises(ItemError, match="'elsewhere'"):
        discriminability({"codec": Levels()}, domain.clips, keys, [Item("elsewhere", "a", "s")])


def test_recordings_without_words_have_no_abx(corpus):
    (domain,) = reconstruction.read_domains(corpus[1:], "test")
    assert discriminability({"codec": Levels()}, domain.clips, [FeatureKey("post_vq", 4)], None) == []


# ------------------------------------------------------------------ cost, table, command


def test_cost_of_encoding_is_compared_in_turns(corpus):
    (domain,) = reconstruction.read_domains(corpus[1:], "test")
    order = []

    class Logged(Levels):
        def encode(self, wav, *rest, **more):
            order.append(self.spec.name)
            return super().encode(wav, *rest, **more)

    data = encoding({"codec": Logged(name="a"), "against": Logged(name="b")}, domain.clips, repeats=3)
    assert len(data["codec"]["repeats"]) == 3 and data["audio_s"] == pytest.approx(0.8)
    assert data["ratio"]["low"] <= data["ratio"]["value"] <= data["ratio"]["high"]
    assert len(order) == 2 * 4 * 4 and order.count("a") == order.count("b")
    assert {order[2 * index] != order[2 * index + 1] for index in range(16)} == {True}
    assert {order[0], order[8]} == {"a", "b"}  # who begins alternates


def test_table_names_both_codecs_and_every_part(measured):
    text = format_comparison(measured)
    for part in ("fine against spoilt", "33 clips", "11 speakers", "difference", "verdict", "silence", "SI-SDR dB",
                 "codes in use by layer (fine)", "perplexity by layer (spoilt)", "ABX errors", "post_vq n_q 1",
                 "across", "words of dev and test", "spoken word: 2 classes",
                 "seconds per second of audio", "times the other's"):  # fmt: skip
        assert part in text, part
    assert max(map(len, text.splitlines())) <= 160
    json.dumps(measured, allow_nan=False)


def test_command_compares_a_codec_with_its_twin(corpus, teacher_folder, twin_folder, monkeypatch):
    monkeypatch.setattr(codec_compare, "TIMED_CLIPS", 2)
    words = corpus[0].with_name("words.jsonl")
    words.write_text("".join(corpus[0].read_text().splitlines(keepends=True)[:9]))
    result = codec_eval(str(teacher_folder), (words, corpus[1]), against=str(twin_folder), clip_s=0.2, device="cpu")
    assert "tiny-teacher against tiny-twin" in result.text
    for part in ("abx", "probes"):
        rows = {(row["feature"], row["n_q"]): row for row in result.data[part]}
        assert list(rows)[:2] == [("post_vq", 1), ("post_vq", 4)]
        assert "difference" in rows["pre_vq", None] and "difference" not in rows["ssl", None]
        assert "against" not in rows["sem_decoder", 4]
    assert {"codec", "against", "domains", "encoding", "probes"} <= set(result.data)
    assert result.data["encoding"]["ratio"]["value"] > 0
    json.dumps(result.data, allow_nan=False)


def test_command_without_a_twin_prints_one_table_a_domain(corpus, twin_folder):
    result = codec_eval(str(twin_folder), tuple(corpus), clip_s=0.2, device="cpu")
    assert result.text.startswith("33 clips, 5.0 s of speech, 11 speakers") and "4 clips, 0.8 s of sound" in result.text
    data = result.data
    assert data["clips"] == 37 and data["seconds"] == pytest.approx(5.75)
    assert set(data["codec"]) == {"n_q 1", "n_q 2", "n_q 4"} and set(data["codec"]["n_q 1"]) == {"mel", "stft"}
    assert "abx" not in data and len(data["codes_used"]) == 4
    means = [data["domains"][name]["codec"]["n_q 1"]["mel"]["value"] for name in ("speech", "sound")]
    assert data["codec"]["n_q 1"]["mel"] == pytest.approx((33 * means[0] + 4 * means[1]) / 37)


def test_command_refuses_what_it_cannot_do(corpus, twin_folder, tmp_path):
    with pytest.raises(UsageError, match="at least one manifest"):
        codec_eval(str(twin_folder), ())
    with pytest.raises(UsageError, match="--items"):
        codec_eval(str(twin_folder), tuple(corpus), items=tmp_path / "a.item")
    with pytest.raises(XcodecLMError, match="no row has split: dev"):
        codec_eval(str(twin_folder), tuple(corpus), split="dev", device="cpu")


def test_words_are_discriminated_by_their_codes_alone(corpus):
    """At 800 codes a second; the warping of 4,000 a second would take minutes."""
    (domain,) = reconstruction.read_domains(corpus[:1], None)
    rows = discriminability({"codec": Levels(hop=20)}, domain.clips, codec_features.code_keys([1, 4]), None)
    assert [(row["mode"], row["feature"], row["n_q"]) for row in rows] == [
        (mode, "codes", n_q) for n_q in (1, 4) for mode in ("within", "across")
    ]
    assert all(row["items"] == 33 for row in rows)
    coarse = {row["mode"]: row["codec"]["value"] for row in rows if row["n_q"] == 1}
    assert coarse["within"] < 10 and coarse["across"] < 10  # chance is 50
