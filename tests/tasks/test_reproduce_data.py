"""`reproduce` on the paper's data sets: what each table's prepare stage makes of trees in the published layouts."""

import json
import zlib

import numpy as np
import pytest
import soundfile as sf

from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.reproduce import arch_probing, reconstruction
from xcodec_lm.tasks.reproduce.lists import read_lines
from xcodec_lm.tasks.reproduce.settings import Settings
from xcodec_lm.tasks.reproduce.tables import reproduce

RATE = 16_000


def sound(path, seconds=0.5, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(path.stem.encode()))
    sf.write(path, 0.05 * rng.standard_normal(round(seconds * rate)), rate)


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


@pytest.fixture
def codecs(twin_folder, teacher_folder):
    return (f"ours={teacher_folder}", f"twin={twin_folder}")


@pytest.fixture
def prepare(codecs, tmp_path):
    """Runs one stage, `prepare` by default: the stage's folder and its result."""

    def run(number, only="prepare", **settings):
        out = tmp_path / "out"
        reproduce(number, Settings(**{"codecs": codecs, "runs": ("ours=a", "twin=b"), **settings}), out, only)
        folder = out / f"table{number}" / only
        return folder, json.loads((folder / "stage.json").read_text())["facts"]

    return run


@pytest.fixture
def librispeech(tmp_path):
    """Two chapters of test-clean and one of another subset; utterances of 3.5, 5 and 6 s."""
    root = tmp_path / "LibriSpeech"
    for subset, speaker, chapter in (("test-clean", 61, 70968), ("test-clean", 237, 134493), ("dev-clean", 84, 121123)):
        folder, lines = root / subset / str(speaker) / str(chapter), []
        for number, seconds in enumerate((3.5, 5.0, 6.0)):
            name = f"{speaker}-{chapter}-{number:04d}"
            sound(folder / f"{name}.flac", seconds)
            lines.append(f"{name} HE BEGAN A CONFUSED COMPLAINT {number}")
        text(folder / f"{speaker}-{chapter}.trans.txt", "\n".join(lines) + "\n")
    return root


ITEMS = """#file onset offset #phone prev-phone next-phone speaker
61-70968-0001 0.5000 0.7125 AH B T 61
61-70968-0002 1.0000 1.2000 IH B T 61
61-70968-0002 1.5000 1.7000 AH B T 61
237-134493-0001 0.5000 0.7000 AH B T 237
237-134493-0002 0.5000 0.7000 IH B T 237
237-134493-0002 0.9000 1.1000 AH B T 237
"""


def test_table1_lists_test_clean_between_4_and_10_s_with_3_s_of_prompt(librispeech, prepare):
    folder, facts = prepare(1, librispeech=librispeech)
    rows = read_lines(folder / "utterances.txt")
    assert [row[0] for row in rows] == [
        "237-134493-0001", "237-134493-0002", "61-70968-0001", "61-70968-0002",
    ]  # fmt: skip
    assert rows[0][1:] == ["237", "3.0", "HE BEGAN A CONFUSED COMPLAINT 1"]
    assert facts["hours"] == pytest.approx(22 / 3600) and facts["training"] == []


def test_table1_says_what_models_would_be_trained_on(librispeech, prepare):
    with pytest.raises(XcodecLMError, match="nothing to train the language models of ours, twin on") as error:
        prepare(1, librispeech=librispeech, runs=())
    assert "--runs" in error.value.hint and "--train-data" in error.value.hint


def test_table2_takes_the_items_and_finds_their_recordings(librispeech, prepare, tmp_path):
    text(tmp_path / "test-clean.item", ITEMS)
    given = {"librispeech": librispeech, "items": tmp_path / "test-clean.item"}
    folder, facts = prepare(2, **given)
    rows = read_lines(folder / "items.txt")
    assert rows[0] == ["61-70968-0001", "0.5000", "0.7125", "AH", "B", "T", "61"] and len(rows) == facts["items"] == 6
    assert sorted(facts["recordings"]) == ["237-134493-0001", "237-134493-0002", "61-70968-0001", "61-70968-0002"]
    _, result = prepare(2, "score", **given)
    titles = [(row["system"], row["part"], row["paper"]) for row in result["rows"]]
    assert ("ours", "nq 1, sem_decoder", "X-Codec, nq 1") in titles
    assert ("twin", "nq 4, post_vq", "Baseline Acoustic Codec, nq 8") in titles
    assert ("ours", "nq 1, post_vq", "") in titles  # the paper's row is of the semantic decoder
    assert all(metric["stands_for_paper"] for metric in result["metrics"])
    assert all(0 <= row["cells"]["within"]["value"] <= 100 for row in result["rows"])


def test_table2_refuses_items_of_another_subset(librispeech, prepare, tmp_path):
    text(tmp_path / "dev.item", ITEMS + "84-121123-0000 0.5 0.7 AH B T 84\n")
    with pytest.raises(XcodecLMError, match=r"1 recordings of dev.item are not in .*, such as 84-121123-0000"):
        prepare(2, librispeech=librispeech, items=tmp_path / "dev.item")


def test_table2_with_no_audio_in_the_root(prepare, tmp_path):
    text(tmp_path / "a.item", ITEMS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(XcodecLMError, match=r"holds no .flac or .wav file"):
        prepare(2, librispeech=tmp_path / "empty", items=tmp_path / "a.item")


@pytest.fixture
def musdb(tmp_path):
    root = tmp_path / "musdb18hq"
    for split, track, seconds in (
        ("train", "A - One", 9.0), ("train", "B - Two", 12.0), ("test", "C - Three", 11.0), ("test", "D - Short", 2.0),
    ):  # fmt: skip
        sound(root / split / track / "mixture.wav", seconds, 8000)
        sound(root / split / track / "vocals.wav", 0.1, 8000)
    return root


def test_tables_3_and_7_draw_crops_of_whole_tracks(musdb, prepare):
    folder, facts = prepare(7, musdb=musdb)
    rows = read_lines(folder / "crops.txt")
    assert len(rows) == facts["crops"] == 600 and (facts["prompt_s"], facts["seconds"]) == (5.0, 5.0)
    assert {name for name, _ in rows} == {"train/B - Two", "test/C - Three"}  # the others are shorter than a crop
    assert facts["recordings"]["test/C - Three"]["piece"] == "C - Three"
    with pytest.raises(XcodecLMError, match="none of 4 tracks lasts 40 s"):
        prepare(3, musdb=musdb)


def test_the_split_of_musdb_can_be_chosen(musdb, prepare):
    folder, facts = prepare(7, musdb=musdb, split="test")
    assert {name for name, _ in read_lines(folder / "crops.txt")} == {"test/C - Three"}
    assert facts["origin"] == "MUSDB18, test tracks"


def test_the_papers_training_music_is_not_public(musdb, prepare):
    with pytest.raises(XcodecLMError, match="the paper's training music is not public") as error:
        prepare(7, musdb=musdb, runs=())
    assert "--train-data" in error.value.hint


AUDIOCAPS = "audiocap_id,youtube_id,start_time,caption\n"


@pytest.mark.parametrize("apart", [False, True])
def test_table4_draws_one_caption_a_clip(prepare, tmp_path, apart):
    root, names = tmp_path / "AudioCaps", [f"video{number:06d}" for number in range(4)]
    listed = AUDIOCAPS + "".join(f"{n}{k},{name},10,{name} {k}\n" for n, name in enumerate(names) for k in range(5))
    place = tmp_path / "lists" if apart else root
    text(place / "test.csv", listed)
    for name in names[:3]:
        sound(root / "test" / f"{name}_10.wav", 1.0)
    folder, facts = prepare(4, audiocaps=root, **({"captions": place / "test.csv"} if apart else {}))
    rows = read_lines(folder / "captions.txt")
    assert [name for name, _ in rows] == [f"{name}_10" for name in names[:3]]
    assert all(caption.split()[0] == name.removesuffix("_10") for name, caption in rows)
    assert (facts["captions"], facts["missing"], facts["seconds"]) == (3, 1, 10.0)


def test_table4_needs_a_clap_where_models_are_trained(prepare, tmp_path):
    root = tmp_path / "AudioCaps"
    for split in ("train", "test"):
        rows = "".join(f"{n},{split}video{n},0,a sound\n" for n in range(3))
        text(root / f"{split}.csv", AUDIOCAPS + rows)
        for number in range(3):
            sound(root / split / f"{split}video{number}_0.wav")
    with pytest.raises(XcodecLMError, match="conditioned on a CLAP") as error:
        prepare(4, audiocaps=root, runs=())
    assert "--clap" in error.value.hint


def test_table5_locks_the_splits_of_the_data_sets_that_are_there(arch_tree_at, prepare, capsys):
    root = arch_tree_at("ESC-50")
    folder, facts = prepare(5, arch_root=root)
    assert "esc50" in (folder / "splits.json").read_text()
    assert list(facts["roots"]) == ["esc50"] and len(facts["absent"]) == 11
    assert "11 of 12 data sets are not there" in capsys.readouterr().err
    with pytest.raises(XcodecLMError, match="lacks emovo"):
        arch_probing.find_roots(Settings(arch_root=root, datasets=("emovo",)))
    with pytest.raises(UsageError, match="'esc51' is none of ARCH's"):
        arch_probing.find_roots(Settings(arch_root=root, datasets=("esc51",)))


@pytest.fixture
def arch_tree_at(tmp_path):
    def write(name):
        root, lines = tmp_path / "arch" / name, []
        for fold in range(1, 6):
            for target in range(3):
                for take in range(4):
                    file = f"{fold}-{target}-{take}.wav"
                    sound(root / "audio" / file, 0.1)
                    lines.append(f"{file},{fold},{target},class{target},False,{fold}{target}{take},A")
        text(root / "meta" / "esc50.csv", "filename,fold,target,category,esc10,src_file,take\n" + "\n".join(lines))
        return root.parent

    return write


@pytest.fixture
def libritts(tmp_path):
    root = tmp_path / "LibriTTS"
    for subset, speaker in (("test-clean", 61), ("test-clean", 237), ("train-clean-100", 19)):
        for number in range(4):
            name = f"{speaker}_70968_{number:06d}_000000"
            folder = root / subset / str(speaker) / "70968"
            sound(folder / f"{name}.wav", 1.0, 24_000)
            text(folder / f"{name}.normalized.txt", "He began a confused complaint.\n")
            text(folder / f"{name}.original.txt", "He began a confused complaint.\n")
    return root


def test_table6_draws_clips_of_test_clean(libritts, prepare, monkeypatch):
    monkeypatch.setattr(reconstruction, "CLIPS", 5)
    folder, facts = prepare(6, libritts=libritts)
    rows = read_lines(folder / "clips.txt")
    assert len(rows) == 5 and {speaker for _, speaker in rows} == {"61", "237"} and facts["of"] == 8
    _, result = prepare(6, "score", libritts=libritts)
    assert [(row["system"], row["part"]) for row in result["rows"][:4]] == [
        ("ours", "nq 1"), ("ours", "nq 4"), ("twin", "nq 1"), ("twin", "nq 4"),
    ]  # fmt: skip
    assert result["rows"][0]["paper"] == "X-Codec, nq 1"
    assert "--weights utmos22=PATH" in result["rows"][0]["cells"]["utmos"]["reason"]
    assert {row["system"] for row in result["rows"] if row["reference"]} == {"silence", "white noise", "shaped noise"}


def test_table6_with_another_corpus_in_the_root(librispeech, prepare):
    with pytest.raises(XcodecLMError, match=r"holds no test-clean/SPEAKER/CHAPTER/NAME\.wav"):
        prepare(6, libritts=librispeech)


def test_a_changed_data_set_is_listed_anew(libritts, prepare):
    _, before = prepare(6, libritts=libritts)
    sound(libritts / "test-clean" / "61" / "70968" / "new.wav", 1.0, 24_000)
    text(libritts / "test-clean" / "61" / "70968" / "new.normalized.txt", "New.\n")
    _, after = prepare(6, libritts=libritts)
    assert (before["of"], after["of"]) == (8, 9)


def test_real_runs_of_other_settings_need_another_folder(libritts, prepare):
    prepare(6, libritts=libritts)
    with pytest.raises(XcodecLMError, match="table 6 of other settings"):
        prepare(6, libritts=libritts, seed=1)
