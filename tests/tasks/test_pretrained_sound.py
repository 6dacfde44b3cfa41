"""The shipped CLAP and text-to-sound model: small, offline, trained on train rows alone, and led by captions."""

import json
import os
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import read_manifest
from xcodec_lm.lm.condition_train import behind_prefix
from xcodec_lm.lm.conditioning import ConditionedGPT
from xcodec_lm.lm.examples import code_bits, make_batch
from xcodec_lm.tasks.sound import load_sound
from xcodec_lm.tasks.sound.clap import PRETRAINED, load_clap
from xcodec_lm.tasks.sound.clap_batches import caption_of, label_of
from xcodec_lm.tasks.sound.neighbours import load_neighbours

CORPUS = os.environ.get("XCODEC_LM_CORPUS")
needs_corpus = pytest.mark.skipif(CORPUS is None, reason="XCODEC_LM_CORPUS is not set")
KINDS = ("dog bark", "rain", "baby cry", "clock tick", "chainsaw", "rooster", "sea waves")


@pytest.fixture(scope="module")
def sound():
    return load_sound("sound-tiny")


@pytest.fixture(scope="module")
def rows():
    return read_manifest(Path(str(CORPUS)) / "sound.jsonl")


@pytest.fixture(scope="module")
def held_out(rows):
    """Two unseen recordings of each of some classes."""
    clips = [clip for clip in rows if clip.split == "test"]
    return [clip for kind in KINDS for clip in [one for one in clips if label_of(one) == kind][:2]]


@pytest.mark.parametrize("name", ["clap-tiny", "sound-tiny"])
def test_they_are_small_and_have_cards(name):
    folder = PRETRAINED / name
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2_000_000
    card = (folder / "README.md").read_text()
    assert card.startswith(f"# {name}\n") and "Licences" in card and "## Limits" in card and "Measured" in card
    for path in folder.iterdir():
        content = path.read_bytes()
        if path.suffix == ".safetensors":  # eight bytes of length, then a header of JSON
            content = content[8 : 8 + int.from_bytes(content[:8], "little")]
        assert not re.search(r"""(?:^|["'\s`=(])/\w+/\w""", content.decode()), f"an absolute path in {path}"


def test_they_go_together(sound):
    assert sound.codec.spec.fingerprint == sound.spec.fingerprint and sound.codec.spec.name == "xcodec-tiny"
    assert sound.clap.fingerprint == load_clap("clap-tiny").fingerprint
    known = load_neighbours(PRETRAINED / "sound-tiny")
    assert known is not None and known.fingerprint == sound.clap.fingerprint and len(known.rows) > 300
    assert known.vectors.norm(dim=1).sub(1).abs().max() < 1e-4


def test_a_caption_becomes_a_file_offline_with_the_defaults(cli, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    code, _, err = cli("sound", "make", "rain on a roof", "--seconds", 1, "-o", tmp_path)
    assert code == 0, err
    wav, rate = sf.read(tmp_path / "rain-on-a-roof.wav")
    assert rate == 16_000 and len(wav) == 16_000 and np.sqrt(np.mean(wav**2)) > 1e-3


def test_bad_input_has_an_answer(cli, tmp_path):
    sf.write(tmp_path / "silence.wav", np.zeros(16_000), 16_000)
    words = ("sound", "make", "--seconds", 0.1, "-o", tmp_path / "out")
    for more, code, said in (
        (("",), 2, "caption is empty"), (("rain " * 2000,), 0, "reads the first 62"),
        (("дождь по крыше",), 0, "no word of"), (("--audio", tmp_path / "silence.wav"), 1, "is silence"),
    ):  # fmt: skip
        found, _, err = cli(*words, *more)
        assert found == code and said in err, err


@needs_corpus
@pytest.mark.parametrize("name", ["clap-tiny", "sound-tiny"])
def test_they_saw_train_rows_alone(name, rows):
    data = json.loads((PRETRAINED / name / "provenance.json").read_text())["data"]
    seen = {recording for entry in data for recording in entry["recording"]}
    held_out = [clip for clip in rows if clip.split in ("dev", "test")]
    assert len(held_out) > 50 and not {str(clip.row["recording"]) for clip in held_out} & seen
    assert {str(clip.row["recording"]) for clip in rows if clip.split == "train"} <= seen
    known = load_neighbours(PRETRAINED / "sound-tiny")
    assert known is not None and not {row["id"] for row in known.rows} & {clip.id for clip in held_out}


@needs_corpus
def test_the_clap_knows_what_unseen_recordings_are_called(sound, held_out):
    heard = torch.cat([sound.clap.embed_audio([load_audio(clip.path, 16_000).wav[0].numpy()]) for clip in held_out])
    names = sorted({label_of(clip) for clip in held_out})
    texts = sound.clap.embed_texts([f"the sound of {name}" for name in names])
    guesses = (heard @ texts.T).argmax(dim=1).tolist()
    right = np.mean([names[guess] == label_of(clip) for guess, clip in zip(guesses, held_out, strict=True)])
    assert right > 2.5 / len(names)  # chance is one in so many


@needs_corpus
def test_unseen_sounds_are_likelier_under_their_own_captions(sound, held_out):
    codes = []
    for clip in held_out:
        wav = load_audio(clip.path, 16_000, duration_s=1.2).wav
        codes.append(sound.codec.encode(wav[None], n_q=4).codes[0].clone())
    captions = [caption_of(clip) for clip in held_out]
    shift = len(held_out) // 2  # the other recording of a class stands beside it
    own, other = (_bits(sound, codes, texts) for texts in (captions, captions[shift:] + captions[:shift]))
    assert np.mean(own) < np.mean(other) and np.mean(np.array(own) < np.array(other)) > 0.5


def _bits(sound, codes, captions):
    """Bits a code of each recording behind its caption."""
    found = []
    assert isinstance(sound.model, ConditionedGPT)
    for one, vector in zip(codes, sound.clap.embed_texts(captions), strict=True):
        count = sound.model.condition.config.tokens
        batch = make_batch(sound.layout, [[behind_prefix(sound.layout, one.numpy(), False, count)]])
        where = torch.full(batch.inputs.shape[:2], -1)
        where[:, :count] = torch.arange(count)
        with torch.inference_mode():
            hidden = sound.model.read_rows(batch.inputs, where, vector[None], torch.tensor([False]))
            steps = None if sound.layout.flat else batch.targets.clamp_min(0)
            bits = code_bits(sound.layout, sound.model.slot_logits(hidden, sound.layout, steps), batch)
        found.append(float(bits[batch.rows >= 0].mean()))
    return found
