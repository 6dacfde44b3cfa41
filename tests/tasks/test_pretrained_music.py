"""The shipped music model: it loads offline, names its codec, continues, and was trained on train rows alone."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import read_manifest
from xcodec_lm.lm.anchors import BigramModel, UnigramModel
from xcodec_lm.lm.examples import recording_bits
from xcodec_lm.tasks.music import load_music
from xcodec_lm.tasks.music.continuation import PRETRAINED

CORPUS = os.environ.get("XCODEC_LM_CORPUS")


@pytest.fixture(scope="module")
def music():
    return load_music("music-tiny")


def test_it_is_small_and_goes_with_the_shipped_codec(music):
    folder = PRETRAINED / "music-tiny"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2_000_000
    assert music.codec.spec.fingerprint == music.spec.fingerprint
    card = (folder / "README.md").read_text()
    assert music.spec.fingerprint in card and "Licences" in card and "bits per second" in card


def test_it_continues(music):
    time = torch.arange(16_000) / 16_000
    chord = 0.2 * sum(torch.sin(2 * torch.pi * f * time) for f in (220, 277, 330))
    made = music.continue_(chord[None, None], seconds=1, seed=3)
    assert made.wav.shape == (1, 1, 32_000) and made.wav.isfinite().all()
    assert made.wav[..., 16_000:].square().mean().sqrt() > 1e-4  # it does not fall silent


@pytest.mark.skipif(CORPUS is None, reason="XCODEC_LM_CORPUS is not set")
def test_it_needs_fewer_bits_than_n_grams_and_saw_train_rows_alone(music):
    rows = read_manifest(Path(str(CORPUS)) / "music.jsonl")
    seen = json.loads((PRETRAINED / "music-tiny" / "provenance.json").read_text())["data"][0]
    held_out = [clip for clip in rows if clip.split in ("dev", "test")]
    assert not {str(clip.row["piece"]) for clip in held_out if clip.row.get("piece")} & set(seen["piece"])
    clips = [*[c for c in rows if c.split == "train"][:30], *[c for c in held_out if c.split == "test"][:3]]
    codes = []
    for clip in clips:
        wav = load_audio(clip.path, 16_000, duration_s=10).wav
        codes.append(music.codec.encode(wav[None], n_q=music.n_q).codes[0].clone())
    sizes = music.spec.codebook_sizes[: music.n_q]
    model = np.mean([recording_bits(music.model, music.layout, part).sum(0).mean() for part in codes[30:]])
    for anchor in (UnigramModel(sizes), BigramModel(sizes)):
        anchor.fit(codes[:30])
        assert model < 0.95 * np.mean([anchor.bits(part).sum(0).mean() for part in codes[30:]])
