"""`eval run` on recordings whose figures can be foreseen: values, verdicts, failures, caches, processes."""

import json
import shutil

import eval_stubs as stubs
import numpy as np
import pytest
import soundfile as sf
import torch

from xcodec_lm.configs.evaluators import RecogniserConfig, SpeakerConfig
from xcodec_lm.tasks.eval.tiny_ctc import Alphabet, TinyCTC, save_tiny_ctc
from xcodec_lm.tasks.eval.tiny_speaker import TinySpeaker, save_tiny_speaker


def results(out):
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def figure(data, system, label):
    return next(one for one in data["systems"] if one["system"] == system)["figures"][label]


def differences(data, label):
    return {(row["a"], row["b"]): row for row in data["differences"] if row["metric"] == label}


def run(cli, tmp_path, suite, manifest, *more, out="out"):
    code, text, err = cli("eval", "run", suite, "--manifest", manifest, "-o", tmp_path / out, *more)
    return code, text + err, tmp_path / out


def test_speech_is_judged_with_intervals_and_verdicts(cli, tmp_path, corpus, stub_plugins):
    code, text, out = run(cli, tmp_path, "speech", corpus({"good": 0.01, "bad": 2.0}))
    assert code == 0, text
    data = results(out)
    assert data["rows"] == 24 and data["units"] == 12 and data["unit"] == "speaker"
    assert figure(data, "good", "wer[tones]")["value"] == 0 == figure(data, "ground truth", "wer[tones]")["value"]
    bad = figure(data, "bad", "wer[tones]")
    assert 0.1 < bad["value"] < 1 and bad["low"] < bad["value"] < bad["high"] and bad["units"] == 12
    assert differences(data, "wer[tones]")["good", "bad"]["verdict"] == "better"
    assert differences(data, "wer[tones]")["bad", "ground truth"]["verdict"] == "worse"
    assert differences(data, "dnsmos_ovrl[peaks]")["good", "bad"]["verdict"] == "better"
    assert data["doubts"] == {} and data["failures"] == [] if "failures" in data else True
    assert "sim_r" in data["not_measured"] and "prompt_resynthesis" in data["not_measured"]["sim_r"]
    items = lines(out / "items.jsonl")
    assert len(items) == 3 * 24 and items[0]["details"]["wer[tones]"]["heard"] == items[0]["text"]
    assert lines(out / "failed.jsonl") == [] and "wer[tones] in %" in text


def test_sets_captions_and_classes_rank_degradation(cli, tmp_path, corpus, stub_plugins):
    """Clean, lightly noised, heavily noised, white noise: in this order by every metric that has a direction."""
    manifest = corpus({"clean": 0.0, "light": 0.03, "heavy": 0.6, "white": 30.0}, each=2)
    code, text, out = run(cli, tmp_path, "sound", manifest)
    assert code == 0, text
    data = results(out)
    assert set(data["not_measured"]) <= {"fad", "fd_mert9"}
    for label, lower in (("fd[bands]", True), ("fd16[bands]", True), ("kid[bands]", True), ("kl_softmax[bands]", True),
                         ("clap[toneclap]", False)):  # fmt: skip
        values = [figure(data, name, label)["value"] for name in ("clean", "light", "heavy", "white")]
        assert values == sorted(values, reverse=not lower) and values[0] != values[3], (label, values)
    assert figure(data, "clean", "fd[bands]")["value"] == pytest.approx(0, abs=1e-6)
    assert figure(data, "clean", "fd[bands]")["floor"] > 0
    assert figure(data, "clean", "class[bands]")["value"] > 0.6 > figure(data, "white", "class[bands]")["value"]
    clap = figure(data, "clean", "clap[toneclap]")
    assert clap["value"] > clap["other_captions"] and 0 <= clap["r@1"] <= clap["r@5"] <= clap["r@10"] <= 1
    assert differences(data, "kid[bands]")["clean", "heavy"]["verdict"] == "better"
    assert figure(data, "clean", "is[bands]")["most"] == 4


def test_reconstruction_takes_a_systems_delay_out(cli, tmp_path, corpus, stub_plugins, edit_rows):
    manifest = corpus({"near": 0.01, "far": 0.2})
    for path in manifest.parent.glob("near-*.wav"):
        wav, rate = sf.read(path)
        sf.write(path, np.concatenate([np.zeros(37), wav]), rate)
    metrics = ("--metrics", "mel", "mel[dac_train]", "stft", "si_sdr", "pesq")
    code, text, out = run(cli, tmp_path, "reconstruction", manifest, *metrics)
    assert code in (0, 3), text
    data = results(out)
    assert [one["lag_samples"] for one in data["systems"]] == [37, 0, None] and "37 samples" in text
    for label in ("mel[hifigan80]", "mel[dac_train]", "stft[ln_stft]"):
        assert differences(data, label)["near", "far"]["verdict"] == "better"
    assert figure(data, "near", "si_sdr")["value"] > figure(data, "far", "si_sdr")["value"] + 10


def test_failures_count_are_listed_and_leave_code_3(cli, tmp_path, corpus, stub_plugins, edit_rows):
    manifest = corpus({"good": 0.01, "bad": 0.01})
    (manifest.parent / "bad-r3.wav").write_bytes(b"not audio")
    edit_rows(manifest, lambda row: None if (row["system"], row["id"]) == ("bad", "r5") else
              {**row, "audio": None} if (row["system"], row["id"]) == ("bad", "r7") else
              {**row, "text": "?!"} if row["id"] == "r9" else row)  # fmt: skip
    code, text, out = run(cli, tmp_path, "speech", manifest, "--metrics", "wer", "sim_o", "dnsmos", "fd")
    assert code == 3 and "failed.jsonl lists them" in text
    data, failed = results(out), lines(out / "failed.jsonl")
    whole = {(row["system"], row["id"]): row["why"] for row in failed if not row["metric"]}
    assert set(whole) == {("bad", "r3"), ("bad", "r5"), ("bad", "r7")}
    assert "not readable" in whole["bad", "r3"] and whole["bad", "r5"] == "no row for this id"
    assert {row["id"] for row in failed if row["metric"] == "wer[tones]"} == {"r9"}
    wer = figure(data, "bad", "wer[tones]")
    assert wer["failed"] == 3 and wer["empty"] == 3 and wer["unscored"] == 1
    words = {row["id"]: row for row in lines(out / "items.jsonl") if row["system"] == "bad"}
    assert words["r3"]["values"]["wer[tones]"] == 1 and words["r3"]["values"]["sim_o[loudness]"] == 0
    assert words["r9"]["values"]["wer[tones]"] is None
    assert figure(data, "bad", "dnsmos_ovrl[peaks]") ["failed"] == 3  # fmt: skip
    assert figure(data, "good", "fd[bands]")["rows"] == 21 == figure(data, "bad", "fd[bands]")["rows"]
    assert any("equal N: 21 of 24" in note for note in data["notes"])


def test_verdicts_are_withheld_where_a_judge_may_not_judge(cli, tmp_path, corpus, stub_plugins, edit_rows):
    manifest = corpus({"good": 0.01, "bad": 2.0})
    deaf = results(run(cli, tmp_path, "speech", manifest, "--metrics", "wer[deaf]", out="deaf")[2])
    verdict = differences(deaf, "wer[deaf]")["good", "bad"]["verdict"]
    assert verdict.startswith("withheld: deaf errs on ") and "ground truth" in verdict
    made = tmp_path / "made.json"
    made.write_text(json.dumps({"codec": {"fingerprint": stubs.Tones.fingerprint}}), encoding="utf-8")
    kin = results(run(cli, tmp_path, "speech", manifest, "--metrics", "wer[tones]", "--made-by", f"bad={made}",
                      out="kin")[2])  # fmt: skip
    assert kin["doubts"] == {"tones": "tones shares a model with what made bad"}
    made.write_text(json.dumps({"ancestry": stubs.KNOWN}), encoding="utf-8")
    kin = results(run(cli, tmp_path, "speech", manifest, "--metrics", "wer[kin]", "--made-by", f"bad={made}",
                      out="kin2")[2])  # fmt: skip
    assert "ancestry of what made bad" in kin["doubts"]["kin"]
    edit_rows(manifest, lambda row: {**row, "speaker": "heard" if row["speaker"] == "s1" else row["speaker"]})
    heard = results(run(cli, tmp_path, "speech", manifest, "--metrics", "wer[kin]", out="heard")[2])
    assert "was trained on 1 of the tested speakers" in heard["doubts"]["kin"]
    edit_rows(manifest, lambda row: {key: value for key, value in row.items() if key != "ref_audio"})
    lone = results(run(cli, tmp_path, "speech", manifest, "--metrics", "wer[tones]", out="lone")[2])
    assert "not known" in lone["doubts"]["tones"]


def test_few_units_give_no_verdict(cli, tmp_path, corpus, stub_plugins):
    data = results(run(cli, tmp_path, "speech", corpus({"good": 0.01, "bad": 2.0}, 9), "--metrics", "wer")[2])
    assert differences(data, "wer[tones]")["good", "bad"]["verdict"] == "not decidable"


def test_a_set_of_silence_gives_no_verdict_and_finite_figures(cli, tmp_path, corpus, stub_plugins):
    manifest = corpus({"good": 0.01, "mute": 0.0})
    for path in manifest.parent.glob("mute-*.wav"):
        sf.write(path, np.zeros(8000), stubs.RATE)
    code, text, out = run(cli, tmp_path, "sound", manifest, "--metrics", "fd", "kid", "fd16", "wer", "clap", "is")
    data = results(out)
    assert code == 0 and "mute: 0 failed, 24 silent" in text
    assert "silent" in differences(data, "kid[bands]")["good", "mute"]["verdict"]
    assert figure(data, "mute", "wer[tones]")["value"] == 1 and figure(data, "mute", "clap[toneclap]")["value"] is None
    assert np.isfinite(figure(data, "mute", "fd[bands]")["value"])


def test_what_was_heard_is_kept_by_content_and_plugin(cli, tmp_path, corpus, stub_plugins, monkeypatch):
    manifest, calls = corpus({"good": 0.01}), []
    plain = stubs.Tones.transcribe
    monkeypatch.setattr(stubs.Tones, "transcribe", lambda self, wavs: calls.append(len(wavs)) or plain(self, wavs))
    first = results(run(cli, tmp_path, "speech", manifest, "--metrics", "wer")[2])
    heard = len(calls)
    assert heard == 36  # 24 made ones and 24 true ones, of which 12 have the bytes of another
    assert results(run(cli, tmp_path, "speech", manifest, "--metrics", "wer")[2]) == first and len(calls) == heard
    shutil.copy(manifest.parent / "good-r1.wav", manifest.parent / "good-r2.wav")
    run(cli, tmp_path, "speech", manifest, "--metrics", "wer")
    assert len(calls) == heard  # the same bytes under another name are known
    sf.write(manifest.parent / "good-r2.wav", stubs.say("four"), stubs.RATE)
    run(cli, tmp_path, "speech", manifest, "--metrics", "wer")
    assert len(calls) == heard + 1
    kept = next((tmp_path / "out" / "cache").rglob("*.npy"))
    kept.write_bytes(b"")  # a value that was cut off is computed again
    assert run(cli, tmp_path, "speech", manifest, "--metrics", "wer")[0] == 0
    monkeypatch.setattr(stubs.Tones, "fingerprint", "0" * 64)
    run(cli, tmp_path, "speech", manifest, "--metrics", "wer")
    assert len(calls) >= 2 * heard  # another model is asked anew


def test_two_folders_are_paired_by_name_never_by_order(cli, tmp_path, corpus, stub_plugins):
    manifest = corpus({"x": 0.0})
    truth, made = tmp_path / "truth", tmp_path / "made"
    truth.mkdir(), made.mkdir()
    for number in range(12):
        shutil.copy(manifest.parent / f"r{number}.wav", truth / f"r{number}.wav")
        if number != 4:
            shutil.copy(manifest.parent / f"x-r{number}.wav", made / f"r{number}.wav")
    shutil.copy(truth / "r0.wav", made / "a-first.wav")
    code, text, err = cli("eval", "run", "reconstruction", "--ref", truth, "--hyp", f"mine={made}", "-o",
                          tmp_path / "out", "--metrics", "mel")  # fmt: skip
    data = results(tmp_path / "out")
    assert code == 3 and "1 recordings have no reference" in text + err
    assert (
        figure(data, "mine", "mel[hifigan80]")["value"] == 0 and figure(data, "mine", "mel[hifigan80]")["failed"] == 1
    )
    assert lines(tmp_path / "out" / "failed.jsonl")[0]["id"] == "r4"
    empty = tmp_path / "none"
    empty.mkdir()
    code, _, err = cli("eval", "run", "reconstruction", "--ref", truth, "--hyp", empty, "-o", tmp_path / "o")
    assert code == 2 and "holds no recordings" in err
    shutil.copy(truth / "r0.wav", empty / "other.wav")
    code, _, err = cli("eval", "run", "reconstruction", "--ref", truth, "--hyp", empty, "-o", tmp_path / "o")
    assert code == 2 and "never by their order" in err


def test_unpaired_references_are_drawn_down_to_equal_size(cli, tmp_path, corpus, stub_plugins):
    manifest = corpus({"made": 0.01})
    folder = tmp_path / "references"
    folder.mkdir()
    for number in range(9):
        shutil.copy(manifest.parent / f"r{number}.wav", folder / f"{number}.wav")
    args = ("--references", folder, "--metrics", "fd", "kid")
    code, _, out = run(cli, tmp_path, "sound", manifest, *args)
    data = results(out)
    assert code == 0 and figure(data, "made", "fd[bands]")["rows"] == 9
    assert any("9 drawn with seed 0 of 24 made and 9 references" in note for note in data["notes"])
    assert any("9 vectors in 12 dimensions" in note for note in data["notes"])  # N below the dimension is said
    again = results(run(cli, tmp_path, "sound", manifest, *args, out="again")[2])
    assert again["systems"] == data["systems"]
    other = results(run(cli, tmp_path, "sound", manifest, *args, "--seed", 1, out="other")[2])
    assert figure(other, "made", "fd[bands]")["value"] != figure(data, "made", "fd[bands]")["value"]


@pytest.fixture
def judges(tmp_path):
    """A folder of untrained judges, which other processes can load."""
    folder = tmp_path / "judges"
    torch.manual_seed(0)
    save_tiny_ctc(TinyCTC(RecogniserConfig(), Alphabet("words", tuple(stubs.WORDS))).eval(), folder / "recogniser", {})
    save_tiny_speaker(TinySpeaker(SpeakerConfig()).eval(), folder / "speaker", {})
    return folder


@pytest.mark.slow  # starts two processes, each of which imports torch
def test_several_processes_give_the_result_of_one(cli, tmp_path, corpus, judges):
    manifest = corpus({"a": 0.01, "b": 0.3}, each=1)
    metrics = ("--metrics", "wer", "sim_o", "mel", "--judges", judges)
    one = run(cli, tmp_path, "speech", manifest, *metrics, out="one")
    two = run(cli, tmp_path, "speech", manifest, *metrics, "--workers", 2, out="two")
    assert one[0] == two[0] == 0, two[1]
    assert results(one[2]) == results(two[2])
    assert (one[2] / "items.jsonl").read_bytes() == (two[2] / "items.jsonl").read_bytes()
    names = [{path.relative_to(run[2]).as_posix() for path in run[2].rglob("*.npy")} for run in (one, two)]
    assert names[0] == names[1] and len(names[0]) > 50
    assert results(one[2])["doubts"]["tinyctc"]  # an untrained recogniser gives no verdict
    plugin = next(row for row in results(one[2])["plugins"] if row["name"] == "tinyctc")
    assert len(plugin["fingerprint"]) == 64 and plugin["tier"] == "trained"


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "has no rows"),
        ("\n\n", "has no rows"),
        ("{", "line 1: not JSON"),
        ("[1]", "not a JSON object"),
        ('{"audio": "a.wav"}', "no `id`"),
        ('{"id": "a", "audio": "a.wav"}\n{"id": "a", "audio": "b.wav"}', "line 2: id 'a' of system 'made' is already"),
        ('{"id": "a", "audio": 3}', "`audio` is 3"),
        ('{"id": "a", "audio": "a.wav", "prompt_s": -1}', "prompt_s"),
        ('{"id": "a", "system": "x", "text": "one"}\n{"id": "a", "system": "y", "text": "two"}', "text of id 'a'"),
        ('{"id": "a", "audio": "a.wav"}', "nothing can be measured"),
    ],
)
def test_bad_pairs_files_are_refused_with_their_place(cli, tmp_path, stub_plugins, content, what):
    path = tmp_path / "pairs.jsonl"
    path.write_text(content, encoding="utf-8")
    suite = "reconstruction" if what.startswith("nothing") else "speech"
    metrics = ("--metrics", "mel") if what.startswith("nothing") else ()
    code, _, err = cli("eval", "run", suite, "--manifest", path, "-o", tmp_path / "out", *metrics)
    assert code == 2 and "Traceback" not in err
    assert what in err or (metrics and "no row has ref_audio" in err)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--metrics", "were"), "no metric is called 'were'"),
        (("--metrics", "wer[bands]"), "bands is a embedder"),
        (("--metrics", "mel[loud]"), "presets: hifigan80"),
        (("--metrics", "rtf"), "not measured on pairs"),
        (("--metrics", "sim_r"), "no row has prompt_resynthesis"),
        (("--metrics", "wer[brittle]"), "--weights brittle=PATH"),
        (("--weights", "brittle"), "is not NAME=PATH"),
        (("--weights", "nobody=x"), "no plug-in is called 'nobody'"),
        (("--weights", "brittle=/nowhere"), "does not exist"),
        (("--judges", "/nowhere"), "holds no judge"),
        (("--made-by", "nobody=x"), "names no system"),
        (("--workers", "0"), "--workers"),
        (("--hyp", "x"), "--manifest, or --ref with --hyp"),
    ],
)
def test_wrong_options_are_refused(cli, tmp_path, corpus, stub_plugins, words, what):
    code, _, err = cli("eval", "run", "speech", "--manifest", corpus({"a": 0.0}, 2), "-o", tmp_path / "o", *words)
    assert code == 2 and what in err and "Traceback" not in err


def test_a_backbone_with_a_wrong_key_stops_before_the_work(cli, tmp_path, corpus, stub_plugins):
    code, _, err = cli("eval", "run", "speech", "--manifest", corpus({"a": 0.0}, 2), "-o", tmp_path / "o",
                       "--weights", f"brittle={tmp_path}")  # fmt: skip
    assert code == 1 and "do not fit: conv.weight" in err and not (tmp_path / "o" / "results.json").exists()


def test_everything_missing_is_a_result_and_not_a_crash(cli, tmp_path, corpus, stub_plugins, edit_rows):
    manifest = corpus({"a": 0.0}, 3, each=1)
    edit_rows(manifest, lambda row: {**row, "audio": "gone.wav"})
    code, text, out = run(cli, tmp_path, "sound", manifest, "--metrics", "fd", "wer", "clap", "is", "mel")
    data = results(out)
    assert code == 3 and figure(data, "a", "wer[tones]")["value"] == 1
    assert figure(data, "a", "fd[bands]")["value"] is None and "two are needed" in text
    assert figure(data, "a", "mel[hifigan80]")["failed"] == 3


# ------------------------------------------------------------------ the list


def test_the_list_names_every_metric_and_what_is_missing(cli):
    code, text, _ = cli("eval", "list")
    assert code == 0
    for name in ("wer", "sim_o", "fd_mert9", "clap", "rtf", "tinyctc", "wavlm-ecapa", "--weights tinyctc=PATH"):
        assert name in text
    data = json.loads(cli("eval", "list", "--json")[1])
    assert {row["better"] for row in data["metrics"]} == {"low", "high", "info"}
    assert all(row["licence"] for row in data["plugins"])
    missing = [row for row in data["plugins"] if row["tier"] == "package" and row["state"].startswith("needs")]
    assert all(row["install"].startswith("pip install") for row in missing)
    licences = cli("eval", "list", "--licences")[1]
    assert "CC BY-NC" in licences and "MIT" in licences
