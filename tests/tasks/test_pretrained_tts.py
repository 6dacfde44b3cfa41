"""The shipped speech models: they load offline, name their codec, read their text, and saw train rows alone."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import read_manifest
from xcodec_lm.lm.speech import text_places
from xcodec_lm.tasks.tts import load_tts
from xcodec_lm.tasks.tts.voice import PRETRAINED

CORPUS = os.environ.get("XCODEC_LM_CORPUS")
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def tts():
    return load_tts("tts-tiny")


def test_they_are_small_and_go_with_the_shipped_codec(tts):
    folder = PRETRAINED / "tts-tiny"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 6_000_000
    assert tts.nar is not None and tts.guidable and tts.speaking.sampling.cfg_scale > 1
    card = (folder / "README.md").read_text()
    assert tts.codec.spec.fingerprint in card and "Licences" in card and "WER" in card


def test_they_speak(tts, write_wav):
    voice = tts.prompt(write_wav("voice.wav", seconds=2.0, kind="sine", level=0.2))
    spoken = tts.say("three one four", prompt=voice, seed=1)
    assert spoken.ended == "eos" and 0.5 < spoken.seconds < 6 and not spoken.sentences[0].unknown
    assert spoken.sentences[0].codes.shape[0] == tts.n_q > 1
    assert spoken.wav.square().mean().sqrt() > 1e-3


@pytest.mark.skipif(CORPUS is None, reason="XCODEC_LM_CORPUS is not set")
def test_the_ar_hears_which_digit_was_said_by_a_speaker_it_never_heard(tts):
    """Of ten digits it finds the right one likelier than others for a recording; chance is a tenth."""
    rows = [
        clip for clip in read_manifest(Path(str(CORPUS)) / "speech.jsonl") if clip.row.get("speaker") == "fsdd_george"
    ]
    chosen = [clip for digit in DIGITS for clip in [one for one in rows if one.row["text"] == digit][:3]]
    right = []
    for clip in chosen:
        wav = load_audio(clip.path, 16_000).wav
        wav = wav * (10 ** (-25 / 20) / wav.square().mean().sqrt())  # the level that it was trained at
        codes = tts.codec.encode(wav[None], n_q=1).codes[0].numpy()
        with torch.inference_mode():
            nats = []
            for digit in DIGITS:
                ids = tts.encoder.encode(digit).ids
                places = text_places([(len(ids) - 2, codes.shape[1] / tts.ar.config.group)])
                nats.append(float(tts.ar.spoken_nats(tts.layout, ids, codes, True, places)[0].sum()))
        right.append(DIGITS[int(np.argmin(nats))] == clip.row["text"])
    assert np.mean(right) > 0.4


@pytest.mark.skipif(CORPUS is None, reason="XCODEC_LM_CORPUS is not set")
def test_they_saw_train_rows_alone():
    data = json.loads((PRETRAINED / "tts-tiny" / "provenance.json").read_text())["data"]
    held_out = [clip for clip in read_manifest(Path(str(CORPUS)) / "speech.jsonl") if clip.split != "train"]
    speakers = {str(clip.row["speaker"]) for clip in held_out if clip.split == "test"}
    seen = {str(name) for part in data for name in part.get("speaker", [])}
    assert seen and not speakers & seen
