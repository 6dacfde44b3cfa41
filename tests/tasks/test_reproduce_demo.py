"""`reproduce --demo` on a corpus of tones with untrained codecs: every table from end to end, and what is reused."""

import json

import numpy as np
import pytest
import soundfile as sf

from xcodec_lm.codec.clips import write_manifest
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.reproduce import evaluators
from xcodec_lm.tasks.reproduce.demo import find_corpus
from xcodec_lm.tasks.reproduce.settings import Settings
from xcodec_lm.tasks.reproduce.stages import Place

RATE = 16_000
WORDS = {"one": 300, "two": 700}
KINDS = {"hum": 200, "whistle": 1500}


def tone(path, hertz, seconds, rng):
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * RATE)) / RATE
    sf.write(path, 0.2 * np.sin(2 * np.pi * hertz * time) + 0.02 * rng.standard_normal(len(time)), RATE)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Words of three test speakers and their sentences of two words, pieces of four seconds, sounds of two kinds."""
    root, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    rows = {"speech": [], "music": [], "sound": []}

    def add(domain, name, hertz, seconds, split, **keys):
        tone(root / domain / f"{name}.flac", hertz, seconds, rng)
        rows[domain].append({"id": name, "audio": f"{domain}/{name}.flac", "duration": seconds, "split": split, **keys})

    for speaker in range(6):
        split = "test" if speaker > 2 else "train"
        for word, hertz in WORDS.items():
            for take in range(4):
                pitch = hertz * (1 + 0.02 * speaker + 0.01 * take)
                add("speech", f"{word}-{speaker}-{take}", pitch, 0.3, split, text=word, speaker=f"s{speaker}")
        for number in range(3):
            add("speech", f"line-{speaker}-{number}", 300 + 5 * speaker, 2.0, split, text="one two one",
                speaker=f"s{speaker}")  # fmt: skip
    for piece in range(5):
        add("music", f"piece-{piece}", 100 * (piece + 2), 4.0, "train" if piece < 3 else "test", piece=f"p{piece}")
    for number in range(18):
        kind = list(KINDS)[number % 2]
        split = "train" if number < 10 else "dev" if number < 12 else "test"
        add("sound", f"sound-{number:02d}", KINDS[kind], 1.0, split, caption=f"a {kind}", label=kind,
            recording=f"r{number}")  # fmt: skip
    for domain, listed in rows.items():
        write_manifest(listed, root / f"{domain}.jsonl")
    return root


@pytest.fixture
def demo(cli, corpus, teacher_folder, twin_folder, tmp_path):
    """`demo("table2", ...)` -> exit code, output, what the user is told."""

    def run(table, *argv):
        return cli("reproduce", table, "--demo", "--quick", "--corpus", corpus, "--codecs", f"ours={teacher_folder}",
                   f"twin={twin_folder}", "--device", "cpu", "--out", tmp_path / "out", *argv)  # fmt: skip

    return run


def result(tmp_path, number):
    return json.loads((tmp_path / "out" / f"table{number}.json").read_text())


def test_table2_from_words(demo, tmp_path, read_page):
    code, out, _ = demo("table2")
    assert code == 0 and "ours, nq 1, sem_decoder" in out and "twin, nq 4, post_vq" in out
    assert "the paper's X-Codec" not in out  # words are not triphones
    assert "not comparable with the paper because" in out
    data = result(tmp_path, 2)
    assert data["paper"]["rows"]["X-Codec, nq 8"]["within"] == 3.3
    assert data["differences"] and all(item["verdict"] == "not decidable" for item in data["differences"])
    page = read_page((tmp_path / "out" / "table2.html").read_text())
    assert "Table 2 as the paper prints it" in page.text and "Where the paper is silent" in page.text


class Listener:
    """A recogniser that hears one word in all, and a judge of voices that hears their spectrum."""

    name, ancestry, sample_rate, fingerprint = "listener", {}, 16_000, ""

    def transcribe(self, wavs):
        return ["one" for _ in wavs]

    def embed(self, wavs):
        spectra = [np.abs(np.fft.rfft(wav, 512)) for wav in wavs]
        return np.array([spectrum / max(1e-9, np.linalg.norm(spectrum)) for spectrum in spectra], dtype=np.float32)


def test_table6_hears_words_and_voices_where_somebody_listens(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluators, "listeners", lambda *_: (Listener(), Listener()))
    code, out, err = demo("table6")
    assert code == 0, err
    assert "WER[listener], %" in out and "SIM to the recording[listener]" in out
    data = result(tmp_path, 6)
    cells = {(row["system"], row["part"]): row["cells"] for row in data["rows"]}
    assert cells["the recordings", ""]["wer"]["value"] == cells["ours", "nq 1"]["wer"]["value"] > 10
    assert 0 < cells["ours", "nq 1"]["sim"]["value"] <= 1 and cells["the recordings", ""]["sim"]["value"] is None
    gaps = {(item["metric"], item["a"]): item for item in data["differences"]}
    assert gaps["wer", "ours, nq 1"]["value"] == 0 and "errs on" in gaps["wer", "ours, nq 1"]["doubt"]
    assert {item["verdict"] for item in gaps.values() if item["metric"] == "sim"} == {"not decidable"}


def test_what_is_done_is_reused_and_said(demo, tmp_path):
    demo("table6")
    before = result(tmp_path, 6)
    (tmp_path / "out" / "table6.html").unlink()
    code, out, err = demo("table6")
    assert code == 0 and "reused: stage prepare, stage score" in out and "score reused" in err
    after = result(tmp_path, 6)
    assert after["rows"] == before["rows"] and (tmp_path / "out" / "table6.html").is_file()


def test_stages_one_after_the_other(demo, tmp_path):
    code, _, err = demo("table5", "--stage", "score")
    assert code == 1 and "needs prepare" in err
    assert demo("table5", "--stage", "prepare")[0] == 0
    assert demo("table5", "--stage", "score")[0] == 0
    code, out, _ = demo("table5", "--stage", "report")
    assert code == 0 and "sound class, %" in out and "most frequent label" in out
    code, _, err = demo("table5", "--stage", "train")
    assert code == 1 and "its stages are prepare, score, report" in err


def test_other_settings_need_another_folder(demo):
    demo("table6", "--stage", "prepare")
    code, _, err = demo("table6", "--stage", "prepare", "--seed", "1")
    assert code == 1 and "seed: 0 there, 1 asked for" in err


def test_runs_must_be_of_the_codecs_and_of_the_tables_codebooks(demo):
    code, _, err = demo("table3", "--runs", "encodec=runs/x")
    assert code == 2 and "none of the codecs ours, twin" in err


def test_the_same_codec_twice(cli, corpus, twin_folder, tmp_path):
    code, _, err = cli("reproduce", "table6", "--demo", "--quick", "--corpus", corpus, "--codecs", f"a={twin_folder}",
                       f"b={twin_folder}", "--out", tmp_path / "out")  # fmt: skip
    assert code == 1 and "a and b are the same codec" in err


def test_a_corpus_without_a_domain_names_what_still_works(tmp_path, corpus):
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "sound.jsonl").write_text((corpus / "sound.jsonl").read_text())
    place, settings = Place(tmp_path / "out", 1), Settings(demo=True, corpus=tmp_path / "some")
    found = find_corpus(place, settings, ["speech", "sound"])
    with pytest.raises(XcodecLMError, match=r"there is no speech\.jsonl") as error:
        found.of("speech")
    assert error.value.hint == "tables 4, 5 work with what is there"
    with pytest.raises(XcodecLMError, match="that this table needs"):
        find_corpus(place, settings, ["music"])
    with pytest.raises(XcodecLMError, match="is not a folder"):
        find_corpus(place, Settings(demo=True, corpus=tmp_path / "nowhere"), ["music"])


@pytest.mark.slow
def test_words_are_said_by_voices_that_no_model_was_trained_on(tmp_path):
    pytest.importorskip("espeakng_loader")
    from xcodec_lm.tasks.data.synth_speech import VARIANTS
    from xcodec_lm.tasks.reproduce.demo import make_words
    from xcodec_lm.tasks.reproduce.settings import QUICK

    path = make_words(tmp_path / "words", QUICK, seed=0)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 10 * QUICK.voices * QUICK.takes and len({row["speaker"] for row in rows}) == QUICK.voices
    assert all(any(f"-{variant}-" in row["speaker"] for variant in VARIANTS["test"]) for row in rows)
    again = make_words(tmp_path / "again", QUICK, seed=0)
    assert again.read_text() == path.read_text()


@pytest.mark.slow
def test_tables_that_train_models(demo, tmp_path):
    """Tables 1, 3, 4 and 7 in little: each trains, generates and scores, and finds again what it made."""
    for number in (3, 7, 4, 1):
        code, out, err = demo(f"table{number}")
        assert code == 0, err
        data = result(tmp_path, number)
        assert [row["system"] for row in data["rows"] if not row["reference"]] == ["ours", "twin"]
        assert [stage["name"] for stage in data["stages"]] == ["prepare", "tokenize", "train", "generate", "score"]
        assert "the paper's X-Codec" not in out  # the evaluators are others
        if number == 7:  # the tokens are those of table 3
            assert "shared/tokens" in out.split("reused: ")[1]
        code, out, _ = demo(f"table{number}")
        assert code == 0 and "stage train" in out.split("reused: ")[1]


@pytest.mark.slow
def test_all_tables_of_the_synthetic_corpus(cli, teacher_folder, twin_folder, tmp_path):
    pytest.importorskip("espeakng_loader")
    code, out, err = cli("reproduce", "all", "--demo", "--quick", "--codecs", f"ours={teacher_folder}",
                         f"twin={twin_folder}", "--device", "cpu", "--out", tmp_path / "out")  # fmt: skip
    assert code == 0, err
    assert all((tmp_path / "out" / f"table{number}.html").is_file() for number in range(1, 8))
    assert "already there" in err and "table   wall s   processor s" in out
