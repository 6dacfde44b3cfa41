"""`tts eval`: every system judged on the same rows, controls beside it, a page to listen to."""

import json

import numpy as np
import pytest

from xcodec_lm.codec import load_codec
from xcodec_lm.codec.audio import load_audio
from xcodec_lm.configs.errors import UsageError
from xcodec_lm.lm.sampling import Sampling
from xcodec_lm.lm.valle_ar import ValleAR
from xcodec_lm.tasks.report import Marked
from xcodec_lm.tasks.tts.batch import make_line, read_lines
from xcodec_lm.tasks.tts.evaluate import Judges, evaluate_tts, format_tts, untrained
from xcodec_lm.tasks.tts.page import write_page
from xcodec_lm.tasks.tts.speech import ENDINGS, Pace, Speaking
from xcodec_lm.tasks.tts.voice import TTS

TEXTS = ["one two three", "four five", "six seven eight nine"]


class ByLength:
    """A recogniser that knows the recordings by their length."""

    name, ancestry = "bylength", {"data": "none"}

    def __init__(self, known):
        self.known = known

    def transcribe(self, wavs):
        return [self.known.get(len(wav), "nothing like it") for wav in wavs]


class ByLevel:
    """A judge of voices that hears only how the energy is spread."""

    name, ancestry = "bylevel", {"data": "none"}

    def embed(self, wavs):
        rows = []
        for wav in wavs:
            bands = np.array_split(np.abs(np.fft.rfft(wav)), 8)
            rows.append([np.log(band.mean() + 1e-6) for band in bands])
        rows = np.array(rows)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def listed(tmp_path, write_wav):
    rows = []
    for index, text in enumerate(TEXTS):
        write_wav(f"u{index}.wav", seconds=1.0 + 0.2 * index, kind="noise", level=0.1 + 0.1 * index)
        other = f"u{(index + 1) % 3}"
        rows.append({"id": f"u{index}", "audio": f"u{index}.wav", "text": text, "speaker": f"s{index}", "source": "x",
                     "prompt_id": other, "prompt_audio": f"{other}.wav", "prompt_text": "one"})  # fmt: skip
    path = tmp_path / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def tts(twin_folder):
    import torch

    from xcodec_lm.configs.text import TextConfig
    from xcodec_lm.configs.valle import ValleConfig
    from xcodec_lm.lm.valle_ar import ar_layout
    from xcodec_lm.lm.valle_nar import ValleNAR
    from xcodec_lm.tasks.tts.symbols import TextEncoder

    sizes = ValleConfig(layers=1, heads=2, dim=16, mlp_dim=32, dropout=0.0, text_size=48, n_q=4, codebook_size=64)
    codec = load_codec(twin_folder)
    torch.manual_seed(1)
    encoder = TextEncoder.build(TextConfig(), [" ".join(TEXTS)])
    models = ValleAR(sizes).eval(), ValleNAR(sizes).eval()
    return TTS(*models, ar_layout(sizes, codec.spec), encoder, codec, Pace(0.5, 1.0, 1.5))


def test_systems_are_judged_beside_their_anchors(tts, listed, tmp_path):
    real = [load_audio(tmp_path / f"u{index}.wav", 16_000).wav for index in range(3)]
    known = {wav.shape[1]: text for wav, text in zip(real, TEXTS, strict=True)}
    speaking = Speaking(Sampling(top_p=0.9), retries=0)
    out = tmp_path / "out"
    data = evaluate_tts([("run", tts)], listed, Judges(ByLength(known), ByLevel()), out, speaking)
    wer = {row["system"]: row["wer"]["value"] for row in data["systems"]}
    assert list(wer) == [
        "ground truth", "run: resynthesis", "run: AR", "run: AR+NAR", "run: shuffled text", "run: untrained"
    ]  # fmt: skip
    assert wer["ground truth"] == wer["run: resynthesis"] == 0 < wer["run: AR+NAR"]
    assert data["trusted"] and data["speakers"] == 3
    difference = data["differences"][0]
    assert (difference["a"], difference["b"]) == ("run: AR+NAR", "run: resynthesis")
    assert difference["wer"]["value"] == pytest.approx(wer["run: AR+NAR"]) and difference["verdict"] == "not decidable"
    like = data["systems"][0]["similarity"]
    assert like["own"]["value"] is not None and like["others"]["value"] is not None
    text = format_tts(data)
    assert "3 utterances of 3 speaker(s)" in text and "run: AR+NAR - run: resynthesis" in text
    shown = like["difference"]
    ends = ", ".join("-" if shown[end] is None else f"{shown[end]:.3f}" for end in ("low", "high"))
    assert f"{shown['value']:.3f} [{ends}]" in text.split("ground truth")[1].split("\n")[0]
    alone = Speaking(speaking.sampling, "ar", retries=0)  # the AR's row is what it says alone
    lines = [make_line(tts, row, listed.parent, index, None, {}) for index, row in enumerate(read_lines(listed))]
    for line, item in zip(lines, data["items"], strict=True):
        kept = load_audio(out / "run-ar" / f"{item['id']}.flac", 16_000).wav[0].numpy()
        assert np.allclose(kept, tts.say_all([line], alone)[0].wav[0].clamp(-1, 1), atol=1e-3)
    page = write_page(data, listed, out).read_text()
    assert page.count("<audio") == 3 * 7 and "<del>" in page and "one two three" in page
    assert any(text in page for text in ENDINGS.values())
    assert (out / "run-ar-nar" / "u0.flac").is_file()


def test_without_judges_speech_is_heard_and_nothing_is_marked(tts, listed, tmp_path):
    out = tmp_path / "out"
    data = evaluate_tts([("run", tts)], listed, Judges(), out, Speaking(retries=0), controls=False)
    assert [row["wer"] for row in data["systems"]] == [{"value": None}] * 4 and data["differences"] == []
    ended = [item["systems"]["run: AR+NAR"]["ended"] for item in data["items"]]
    assert {kind: ended.count(kind) for kind in ("eos", "limit", "loop")} == data["systems"][-1]["ended"]
    page = write_page(data, listed, out, tmp_path / "speak.html", {"Music": "report.html"}).read_text()
    assert "No recogniser listened" in page and "recogniser errs" not in page and "(nothing)" not in page
    assert ENDINGS[ended[0]] in page and '<a href="report.html">Music</a>' in page
    assert page.count("<audio") == 3 * 5
    assert "nobody listened" in format_tts(data)


def test_a_deaf_recogniser_gives_no_verdict(tts, listed, capsys):
    judges = Judges(ByLength({}))
    data = evaluate_tts([("run", tts)], listed, judges, speaking=Speaking(retries=0), controls=False)
    assert not data["trusted"] and {row["verdict"] for row in data["differences"]} == {"not decidable"}
    assert "its figures give no verdict" in capsys.readouterr().err


def test_the_untrained_model_is_another_one_of_the_same_sizes(tts):
    import torch

    other = untrained(tts, seed=3)
    assert isinstance(other.ar, ValleAR) and other.ar is not tts.ar
    assert not torch.equal(other.ar.head.weight, tts.ar.head.weight)
    assert torch.equal(other.ar.head.weight, untrained(tts, seed=3).ar.head.weight)


def test_rows_without_a_recording_are_refused(tts, tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_text('{"id": "a", "text": "one"}\n')
    with pytest.raises(UsageError, match="no audio or no text"):
        evaluate_tts([("run", tts)], path, Judges(ByLength({})))


def test_errors_are_marked_in_what_was_heard():
    marks = (("equal", "one", "one"), ("substitute", "two", "too"), ("delete", "three", ""), ("insert", "", "oh"))
    assert Marked(marks).text == "one [two > too] [-three] [+oh]"


def test_texts_that_nobody_has_spoken_are_judged_without_a_verdict(tts, listed, tmp_path):
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    for row in rows:
        del row["audio"]
    path = tmp_path / "unspoken.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = evaluate_tts([("run", tts)], path, Judges(ByLength({})), speaking=Speaking(retries=0))
    assert [row["system"] for row in data["systems"]] == [
        "run: AR",
        "run: AR+NAR",
        "run: shuffled text",
        "run: untrained",
    ]
    assert not data["trusted"]


def test_likeness_is_compared_with_other_voices_of_the_source(tts, listed, tmp_path, write_wav):
    rows = [{**json.loads(line), "speaker": "s0"} for line in listed.read_text().splitlines()]
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_wav("o0.wav", seconds=1, kind="sine")
    write_wav("o1.wav", seconds=1, kind="sine")
    voices = tmp_path / "voices.jsonl"

    def others(*made):
        voices.write_text("".join(json.dumps({"duration": 1.0, **row}) + "\n" for row in made))
        judged = evaluate_tts([("R", tts)], listed, Judges(embedder=ByLevel()), controls=False, voices=voices)
        return judged["systems"][0]["similarity"]

    alone = evaluate_tts([("R", tts)], listed, Judges(embedder=ByLevel()), controls=False)
    assert alone["systems"][0]["similarity"]["others"]["value"] is None
    found = others({"id": "a", "audio": "o0.wav", "speaker": "s1", "source": "x"},
                   {"id": "b", "audio": "o1.wav", "speaker": "s2", "source": "y"})  # fmt: skip
    assert found["others"]["value"] is not None and found["own"] == alone["systems"][0]["similarity"]["own"]
    with pytest.raises(UsageError, match="no other speaker of x"):
        others({"id": "b", "audio": "o1.wav", "speaker": "s0", "source": "x"})
