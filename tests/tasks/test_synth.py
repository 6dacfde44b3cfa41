"""The synthetic corpus: the same for the same seed, at sane levels, rich in spectrum, honestly split."""

import json
from collections import defaultdict

import numpy as np
import pytest
import soundfile as sf

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import read_manifest
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.data import synth_dsp as dsp
from xcodec_lm.tasks.data.check import check
from xcodec_lm.tasks.data.synth import draw_splits, synth
from xcodec_lm.tasks.data.synth_music import TIMBRES, compose, perform, play, write_score
from xcodec_lm.tasks.data.synth_sound import KINDS, make_sound

SMALL = {"music_clips": 12, "sound_clips": 12, "clip_s": 3.0, "sound_s": 1.5}
RATE = 16_000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return synth(tmp_path_factory.mktemp("synth") / "corpus", **SMALL)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rms_db(wave):
    return 20 * np.log10(np.sqrt(np.mean(wave**2)))


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    settings = {"music_clips": 2, "sound_clips": 12, "clip_s": 1.0, "sound_s": 0.5}
    first, again = synth(tmp_path / "1", **settings), synth(tmp_path / "2", **settings)
    assert first.made and again.made
    assert files(tmp_path / "1") == files(tmp_path / "2")
    other = synth(tmp_path / "3", seed=1, **settings)
    audio = [{content for name, content in files(tmp_path / k).items() if name.suffix == ".flac"} for k in "13"]
    assert len(audio[0]) == len(audio[1]) == 14 and not audio[0] & audio[1]
    for mine, theirs, part in zip(first.manifests, other.manifests, ("music", "sound"), strict=True):
        names = [[clip.id for clip in read_manifest(path)] for path in (mine, theirs)]
        assert names[0][0] == f"synth-{part}-000" and names[1][0] == f"synth-s1-{part}-000"
        assert not set(names[0]) & set(names[1])  # so that both may be trained on together


def test_a_clip_does_not_depend_on_how_many_others_there_are(tmp_path):
    few = synth(tmp_path / "few", music_clips=1, sound_clips=0, clip_s=1.0)
    more = synth(tmp_path / "more", music_clips=2, sound_clips=0, clip_s=1.0)
    assert few.manifests == [few.music] and not few.sound.exists()
    first = read_manifest(few.music)[0].path.read_bytes()
    assert first == read_manifest(more.music)[0].path.read_bytes()


def test_the_manifests_are_sound(corpus):
    assert check(*corpus.manifests) == []
    for manifest in corpus.manifests:
        for clip in read_manifest(manifest):
            assert clip.row["source"] == "synth" and clip.row["licence"] == "CC0-1.0"
            info = sf.info(clip.path)
            assert (info.samplerate, info.channels, info.format, info.subtype) == (RATE, 1, "FLAC", "PCM_16")
    assert all(clip.row["caption"] and clip.row["label"] for clip in read_manifest(corpus.sound))
    assert {clip.row["label"] for clip in read_manifest(corpus.sound)} == {kind.label for kind in KINDS}


@pytest.mark.parametrize(("name", "key"), [("music", "piece"), ("sound", "recording")])
def test_pieces_and_recordings_stay_in_one_split(corpus, name, key):
    splits = defaultdict(set)
    for clip in read_manifest(getattr(corpus, name)):
        splits[clip.row[key]].add(clip.split)
    assert all(len(found) == 1 for found in splits.values())
    counts = [next(iter(found)) for found in splits.values()]
    assert counts.count("dev") >= 2 and counts.count("test") >= 4 and counts.count("train") >= 6


@pytest.mark.parametrize("count", [0, 1, 2, 3, 11, 12, 40, 60, 1000])
def test_splits_are_about_a_tenth_and_leave_most_for_training(count):
    splits = draw_splits(count, np.random.default_rng(0))
    assert len(splits) == count
    assert splits.count("train") >= count / 2
    if count >= 12:
        assert splits.count("dev") == max(2, round(count / 10))
        assert splits.count("test") == max(4, round(count / 10))


def test_music_has_its_level_and_does_not_clip(corpus):
    for clip in read_manifest(corpus.music):
        wave = load_audio(clip.path, RATE).wav.numpy()
        assert np.abs(wave).max() < 0.96
        assert -22 < rms_db(wave) < -19


def test_sounds_are_audible_and_do_not_clip(corpus):
    for clip in read_manifest(corpus.sound):
        wave = load_audio(clip.path, RATE).wav.numpy()
        assert np.abs(wave).max() < 0.96
        assert -45 < rms_db(wave) < -17, clip.row["label"]


def test_music_reaches_from_the_bass_to_seven_kilohertz(corpus):
    shares = []
    for clip in read_manifest(corpus.music):
        power = np.abs(np.fft.rfft(load_audio(clip.path, RATE).wav[0].numpy())) ** 2
        frequency = np.fft.rfftfreq(round(clip.duration_s * RATE), 1 / RATE)
        bands = ((40, 250), (250, 1000), (1000, 3000), (3000, 5000), (5000, 7000))
        shares.append([power[(frequency >= low) & (frequency < high)].sum() / power.sum() for low, high in bands])
    shares = np.array(shares)
    assert (shares > 1e-4).all()  # -40 dB: nothing is empty in any piece
    assert (np.median(shares, axis=0) > 3e-3).all()


def test_pieces_differ(corpus):
    tempi = {(clip.row["tempo"], clip.row["key"]) for clip in read_manifest(corpus.music)}
    assert len(tempi) > 8


def test_a_piece_repeats_its_phrases():
    for seed in range(20):
        piece = compose(np.random.default_rng(seed))
        length = 4 * piece.steps_per_chord
        score = write_score(piece, 8 * length)

        def phrase(index, score=score, length=length):
            return {
                (note.step % length, note.steps, note.pitch, note.part)
                for note in score
                if note.step // length == index and note.part != "arpeggio"  # of three tones, it may cross the bar line
            }

        assert piece.form[0] == piece.form[4 % len(piece.form)]
        later = [index for index in range(1, 8) if piece.form[index % 4] == "A" and index >= piece.melody_from]
        assert all(phrase(index) == phrase(later[0]) for index in later)
        assert {note.part for note in score} >= {"melody", "chords", "bass"}
        assert all(24 <= note.pitch <= 100 and note.steps >= 1 for note in score)


def test_music_fits_any_rate_and_length():
    rng = np.random.default_rng(3)
    piece = compose(rng)
    for rate, duration in ((8_000, 0.1), (24_000, 1.0), (44_100, 0.5)):
        wave = perform(piece, np.random.default_rng(0), duration, rate)
        assert wave.shape == (round(duration * rate),)
        assert np.isfinite(wave).all() and np.abs(wave).max() < 0.96


@pytest.mark.parametrize("name", TIMBRES)
@pytest.mark.parametrize("pitch", [40, 69, 88])
def test_every_timbre_plays_in_tune_and_does_not_alias(name, pitch):
    wave = play(TIMBRES[name], pitch, 0.6, RATE, np.random.default_rng(0))
    expected = 440 * 2 ** ((pitch - 69) / 12)
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 1 << 17))
    frequency = np.fft.rfftfreq(1 << 17, 1 / RATE)
    near = (frequency > expected * 0.95) & (frequency < expected * 1.05)
    found = frequency[near][spectrum[near].argmax()]
    assert abs(1200 * np.log2(found / expected)) < 8  # cents
    if TIMBRES[name].kind == "tone":
        between = spectrum[np.abs((frequency / expected) % 1 - 0.5) < 0.1]
        assert between.max() < 0.02 * spectrum.max()  # an aliased partial would lie between the true ones


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.label)
def test_every_kind_of_sound_varies_in_sound_and_caption(kind):
    made = [make_sound(kind, np.random.default_rng(seed), 1.0, RATE) for seed in range(12)]
    waves, captions = zip(*made, strict=True)
    assert all(len(wave) == RATE and np.isfinite(wave).all() for wave in waves)
    assert not np.array_equal(waves[0], waves[1])
    assert len(set(captions)) >= 4  # three templates, two variations
    assert not any("{" in caption for caption in captions)


def test_the_same_settings_keep_what_is_there(tmp_path):
    settings = {"music_clips": 1, "sound_clips": 1, "clip_s": 0.5, "sound_s": 0.5}
    first = synth(tmp_path, **settings)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    second = synth(tmp_path, **settings)
    assert first.made and not second.made
    assert (second.music, second.sound) == (first.music, first.sound)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


def test_a_corpus_that_was_interrupted_is_finished(tmp_path):
    settings = {"music_clips": 2, "sound_clips": 1, "clip_s": 0.5, "sound_s": 0.5}
    synth(tmp_path, **settings)
    whole = files(tmp_path)
    next((tmp_path / "music").glob("*.flac")).unlink()
    assert synth(tmp_path, **settings).made
    assert files(tmp_path) == whole
    record = json.loads((tmp_path / "synth.json").read_text()) | {"complete": False}
    (tmp_path / "synth.json").write_text(json.dumps(record))
    (tmp_path / "sound.jsonl").unlink()
    assert synth(tmp_path, **settings).made
    assert files(tmp_path) == whole


def test_other_settings_and_other_corpora_are_not_overwritten(tmp_path):
    synth(tmp_path / "a", music_clips=1, sound_clips=0, clip_s=0.5)
    before = files(tmp_path / "a")
    with pytest.raises(XcodecLMError, match="other settings"):
        synth(tmp_path / "a", music_clips=1, sound_clips=0, clip_s=0.5, seed=1)
    assert files(tmp_path / "a") == before
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "music.jsonl").write_text("mine")
    with pytest.raises(XcodecLMError, match="was not made here"):
        synth(tmp_path / "b", music_clips=1, sound_clips=0, clip_s=0.5)
    assert (tmp_path / "b" / "music.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    "settings", [{"music_clips": 0, "sound_clips": 0}, {"music_clips": -1}, {"clip_s": 0.0}, {"sample_rate": 4000}]
)
def test_settings_that_make_no_corpus_are_refused(tmp_path, settings):
    with pytest.raises(UsageError):
        synth(tmp_path / "x", **settings)
    assert not (tmp_path / "x").exists()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(XcodecLMError, match="cannot write"):
        synth(tmp_path / "file" / "corpus", music_clips=1, sound_clips=0, clip_s=0.5)


def test_band_noise_keeps_to_its_band():
    noise = dsp.band_noise(np.random.default_rng(0), RATE, RATE, 1000, 2000)
    power = np.abs(np.fft.rfft(noise * np.hanning(RATE))) ** 2
    assert power[800:2500].sum() > 0.9 * power.sum()
    assert rms_db(noise) == pytest.approx(0, abs=0.01)
