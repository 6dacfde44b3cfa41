"""The embedder of sounds and captions: parity with transformers, windows, guards, folders."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

from xcodec_lm.configs.clap import ClapAudioTowerConfig, ClapModelConfig, ClapTextTowerConfig, ClapTrainConfig
from xcodec_lm.configs.errors import AudioError, UsageError, XcodecLMError
from xcodec_lm.tasks.sound.clap import ClapEmbedder, fill_window, load_clap, log_mel, split_windows
from xcodec_lm.tasks.sound.clap_train import (
    build_extractor,
    build_model,
    build_tokenizer,
    save_clap,
    transformers_config,
)

RATE = 8000
AUDIO = ClapAudioTowerConfig(
    sample_rate=RATE, window_s=1, hop_samples=160, fft_samples=256, mel_bands=16, highest_hz=4000, image_size=32,
    width=16, depths=(1,), heads=(2,),
)  # fmt: skip
TEXT = ClapTextTowerConfig(vocab_size=300, longest=24, width=16, layers=1, heads=2, inner=16)
CONFIG = ClapTrainConfig(model=ClapModelConfig(AUDIO, TEXT, dim=24))
CAPTIONS = ["a dog barking", "rain on a roof", "barking of a dog", "a dog in the rain"]


@pytest.fixture(scope="module")
def clap():
    tokenizer = build_tokenizer(CONFIG, CAPTIONS)
    model = build_model(CONFIG, len(tokenizer)).eval()
    encoder = model.audio_model.audio_encoder
    encoder.batch_norm.running_mean.fill_(-40.0)  # of decibels, as training leaves it
    encoder.batch_norm.running_var.fill_(400.0)
    words = ["a", "barking", "dog", "in", "of", "on", "rain", "roof", "the"]
    return ClapEmbedder(model, tokenizer, build_extractor(AUDIO), "small", {"weights_from": "none"}, words)


@pytest.fixture(scope="module")
def folder(clap, tmp_path_factory):
    path = tmp_path_factory.mktemp("clap") / "small-clap"
    save_clap(clap, path)
    return path


def noise(seconds, seed=0):
    rng = np.random.default_rng(seed)
    count = max(1, round(seconds * RATE))
    return (0.3 * rng.uniform(-1, 1, count) * np.linspace(0.1, 1, count)).astype(np.float32)


@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
@pytest.mark.parametrize("seconds", [0.15, 0.4, 1.0])
def test_the_spectrogram_is_that_of_transformers(padding, seconds):
    extractor = build_extractor(AUDIO)
    wav = noise(seconds)
    theirs = extractor(wav, sampling_rate=RATE, padding=padding, return_tensors="pt").input_features
    ours = log_mel(fill_window(torch.from_numpy(wav), RATE, padding)[None], extractor)
    torch.testing.assert_close(ours.float(), theirs.float(), atol=1e-3, rtol=0)  # of dB


def test_embeddings_are_those_of_transformers(clap, folder):
    model = ClapModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, extractor = AutoTokenizer.from_pretrained(folder), ClapFeatureExtractor.from_pretrained(folder)
    ours = load_clap(folder)
    wavs = [noise(0.3, 1), noise(1.0, 2)]
    with torch.no_grad():
        heard = model.get_audio_features(**extractor(wavs, sampling_rate=RATE, return_tensors="pt")).pooler_output
        read = model.get_text_features(**tokenizer(CAPTIONS, padding=True, return_tensors="pt")).pooler_output
    torch.testing.assert_close(ours.embed_audio(wavs), heard, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.embed_texts(CAPTIONS), read, atol=1e-5, rtol=0)
    assert (ours.embed_audio(wavs) * clap.embed_audio(wavs)).sum(dim=1).min() > 0.999  # what half precision leaves


@pytest.mark.parametrize("seconds", [0.1, 0.5, 1.0, 1.3, 2.0, 60.0])
def test_a_clip_is_the_mean_of_windows_that_cover_it(clap, seconds):
    wav = torch.from_numpy(noise(seconds))
    windows = split_windows(wav, RATE)
    assert len(windows) == max(1, math.ceil(seconds)) and all(len(window) <= RATE for window in windows)
    assert torch.equal(windows[0], wav[: len(windows[0])]) and torch.equal(windows[-1], wav[-len(windows[-1]) :])
    if seconds == 2.0:
        assert torch.equal(torch.cat(windows), wav)
    each = clap.embed_audio([window.numpy() for window in windows])
    (whole,) = clap.embed_audio([wav.numpy()])
    torch.testing.assert_close(whole, F.normalize(each.mean(dim=0), dim=0), atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.norm(), torch.tensor(1.0))


def test_neither_neighbours_nor_calls_change_an_embedding(clap):
    wavs = [noise(0.1, 3), noise(3.4, 4), noise(1.0, 5)]
    together, again = clap.embed_audio(wavs), clap.embed_audio(wavs[::-1]).flip(0)
    assert torch.equal(together, again)
    assert torch.equal(together, torch.cat([clap.embed_audio([wav]) for wav in wavs]))
    texts = ["a dog", "rain on a roof " * 5, "дождь"]
    assert torch.equal(clap.embed_texts(texts), torch.cat([clap.embed_texts([text]) for text in texts]))
    assert clap.embed_audio([]).shape == clap.embed_texts([]).shape == (0, 24)


def test_embeddings_can_train_what_they_condition(clap):
    layer = torch.nn.Linear(24, 3)
    for vectors in (clap.embed_texts(["a dog"]), clap.embed_audio([noise(0.2)])):
        assert not vectors.requires_grad and vectors.device.type == "cpu" and vectors.dtype == torch.float32
        layer(vectors).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


def test_feature_fusion_draws_no_crops(clap):
    config = transformers_config(CONFIG.model, len(clap.tokenizer))
    config.audio_config.enable_fusion, config.audio_config.fusion_type = True, "aff_2d"
    torch.manual_seed(0)
    fused = ClapEmbedder(ClapModel(config).eval(), clap.tokenizer, build_extractor(AUDIO))
    wavs = [noise(0.3), noise(2.5)]
    assert torch.equal(fused.embed_audio(wavs), fused.embed_audio(wavs))


def test_audio_that_is_none_is_refused(clap):
    bad = noise(0.2)
    bad[100] = np.nan
    with pytest.raises(AudioError, match="sample 100 is nan"):
        clap.embed_audio([noise(0.2), bad])
    for wav in (np.zeros(0, np.float32), np.zeros(100, np.int16), np.zeros((2, 100), np.float32), 30 * noise(0.2)):
        with pytest.raises(AudioError):
            clap.embed_audio([wav])


@pytest.mark.parametrize("wav", [np.zeros(RATE // 10, np.float32), np.zeros(1, np.float32)])
def test_silence_has_a_vector_and_a_note(clap, wav, capsys):
    vector = clap.embed_audio([noise(0.2), wav])[1]
    assert torch.isfinite(vector).all() and abs(float(vector.norm()) - 1) < 1e-5
    assert "clip 1 is silent" in capsys.readouterr().err


@pytest.mark.parametrize("caption", ["", "  \n\t", None, 3])
def test_empty_captions_are_refused(clap, caption):
    with pytest.raises(UsageError, match="caption 1"):
        clap.embed_texts(["rain", caption])


def test_one_text_is_not_a_list_of_letters(clap):
    with pytest.raises(UsageError, match="list"):
        clap.embed_texts("rain")


def test_a_long_caption_is_cut_and_said(clap, capsys):
    text = ("a dog barking " * 1000)[:10_000]
    cut = clap.embed_texts([text])
    assert "reads the first 24" in capsys.readouterr().err
    torch.testing.assert_close(cut, clap.embed_texts([text[:2000]]), atol=0, rtol=0)
    assert not torch.allclose(cut, clap.embed_texts(["a dog barking"]), atol=1e-4)


def test_other_scripts_are_read_and_unknown_words_said(clap, capsys):
    vectors = clap.embed_texts(["дождь", "雨の音", "🐕"])
    note = capsys.readouterr().err
    assert torch.isfinite(vectors).all() and "no word of 'дождь'" in note and "cannot spell" not in note
    assert (vectors @ vectors.T)[0, 1] < 0.9999
    clap.embed_texts(["a dog, in the snow"])
    assert capsys.readouterr().err == ""


def test_special_tokens_in_a_caption_are_text(clap):
    ids = clap.token_ids("a dog</s><pad>")[0].tolist()
    assert ids.count(clap.tokenizer.eos_token_id) == 1 and clap.tokenizer.pad_token_id not in ids


def test_a_folder_keeps_everything(clap, folder):
    loaded, again = load_clap(folder), load_clap(str(folder))
    assert loaded.fingerprint == again.fingerprint and len(loaded.fingerprint) == 64
    assert (loaded.name, loaded.ancestry, loaded.dim, loaded.sample_rate) == ("small", clap.ancestry, 24, RATE)
    assert loaded.longest == 24 and loaded.known_words == clap.known_words


def test_the_fingerprint_tells_weights_and_settings(clap, folder):
    first = load_clap(folder).fingerprint
    other = load_clap(folder)
    with torch.no_grad():
        other.model.audio_projection.linear1.bias[0] += 1e-3
    louder = load_clap(folder)
    louder.extractor.frequency_min = 0
    assert len({first, other.fingerprint, louder.fingerprint}) == 3


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, tmp_path, name):
    for path in folder.iterdir():
        if path.name != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(XcodecLMError) as error:
        load_clap(tmp_path)
    assert name in str(error.value) and str(tmp_path) in str(error.value)


def test_what_is_no_clap_is_said(tmp_path, folder):
    with pytest.raises(XcodecLMError, match="nothing is downloaded"):
        load_clap("laion/clap-htsat-unfused")
    header = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(header | {"model_type": "bert"}))
    with pytest.raises(XcodecLMError, match="'bert'"):
        load_clap(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(XcodecLMError, match="cannot be read"):
        load_clap(tmp_path)
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("{}")
    with pytest.raises(XcodecLMError, match="not finished"):
        load_clap(unfinished)
