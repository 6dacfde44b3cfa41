"""Every codec behind `AudioTokenizer`: one suite for adapters, X-Codec and the twin; parity of adapters with peers."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xcodec_lm.codec.adapters import adapter_kind, base, load_adapter, models, speechtokenizer
from xcodec_lm.codec.adapters.models import DacAdapter, EncodecAdapter, MimiAdapter
from xcodec_lm.codec.tokens import AudioTokenizer, AudioTokens, FrameFeatures
from xcodec_lm.configs.errors import AudioError, ConfigError, TokenError, XcodecLMError


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.2


# ---------------------------------------------------------------------- every codec


def test_has_the_protocol(any_codec):
    assert isinstance(any_codec, AudioTokenizer)
    assert len(any_codec.spec.fingerprint) == 64
    assert any_codec.spec.output_sample_rate % any_codec.spec.frame_rate == 0


@pytest.mark.parametrize("samples", [1, 2, 79, 319, 320, 321, 1919, 1920, 1921, 7777, 48000, 72001])
def test_frames_and_lengths_are_kept(any_codec, samples):
    wav = noise(1, 1, samples)
    tokens = any_codec.encode(wav)
    assert tokens.lengths.tolist() == [any_codec.frames(samples)] == [tokens.codes.shape[2]]
    assert any_codec.frames(samples) == math.ceil(samples / any_codec.spec.hop_samples)
    audio, lengths = any_codec.decode(tokens)
    assert lengths.tolist() == [samples] and audio.shape == (1, 1, samples)
    assert audio.isfinite().all() and audio.dtype == torch.float32
    unknown, lengths = any_codec.decode(replace(tokens, samples=None))
    assert lengths.tolist() == [tokens.codes.shape[2] * any_codec.spec.hop_samples] == [unknown.shape[2]]


@settings(max_examples=4, deadline=None)
@given(lengths=st.lists(st.integers(1, 9000), min_size=1, max_size=4))
def test_batches_of_any_lengths_equal_singles(any_codec, lengths):
    lengths = [*lengths, lengths[0]]  # two rows at least share a group
    wav = noise(len(lengths), 1, max(lengths))
    tokens = any_codec.encode(wav, torch.tensor(lengths))
    audio, audio_lengths = any_codec.decode(tokens)
    assert audio_lengths.tolist() == lengths
    for row, length in enumerate(lengths):
        single = any_codec.encode(wav[row : row + 1, :, :length])
        assert torch.equal(single.codes, tokens.row(row).codes)
        assert (any_codec.decode(single)[0][0] - audio[row, :, :length]).abs().max() <= 1e-5 * max(1, audio.abs().max())
        assert not audio[row, :, length:].any()


def test_few_layers_are_a_prefix_of_many_and_are_decoded(any_codec):
    wav = noise(2, 1, 5000)
    whole = any_codec.encode(wav)
    for n_q in range(1, any_codec.spec.n_q + 1):
        tokens = any_codec.encode(wav, n_q=n_q)
        assert torch.equal(tokens.codes, whole.codes[:, :n_q])
        assert any_codec.decode(tokens)[0].shape == wav.shape
    with pytest.raises(TokenError, match="n_q must lie in 1"):
        any_codec.encode(wav, n_q=any_codec.spec.n_q + 1)


def test_bad_audio_is_refused(any_codec):
    wav = noise(2, 1, 700)
    broken = wav.clone()
    broken[1, 0, 5] = math.nan
    for bad in (broken, wav.repeat(1, 2, 1), wav[0], wav[:, :, :0], 32768 * wav, (wav * 1000).long()):
        with pytest.raises(AudioError):
            any_codec.encode(bad)
    with pytest.raises(AudioError, match="the codec needs"):
        any_codec.encode(wav, sample_rate=any_codec.spec.sample_rate + 1)


def test_bad_tokens_are_refused(any_codec):
    tokens = any_codec.encode(noise(1, 1, 5000))
    for bad in (-1, 64):
        codes = tokens.codes.clone()
        codes[0, 1, 0] = bad
        with pytest.raises(TokenError, match=f"code {bad} of row 0, quantizer 1, frame 0"):
            any_codec.decode(replace(tokens, codes=codes))
    with pytest.raises(TokenError, match="another codec"):
        any_codec.decode(replace(tokens, spec=replace(tokens.spec, fingerprint="other")))


def test_tokens_survive_a_file(any_codec, tmp_path):
    tokens = any_codec.encode(noise(2, 1, 3000), torch.tensor([3000, 1234]))
    tokens.save(tmp_path / "a.tokens")
    loaded = AudioTokens.load(tmp_path / "a.tokens")
    assert torch.equal(any_codec.decode(loaded)[0], any_codec.decode(tokens)[0])


# ---------------------------------------------------------------------- adapters


def peer_codes(adapter, wav):
    """What the peer's own `encode` gives for audio padded as its feature extractor would."""
    padded = torch.nn.functional.pad(wav, (0, adapter.padded_samples(wav.shape[2]) - wav.shape[2]))
    with torch.inference_mode():
        match adapter:
            case EncodecAdapter():
                return adapter.model.encode(padded, bandwidth=adapter.model.config.target_bandwidths[-1]).audio_codes[0]
            case speechtokenizer.SpeechTokenizerAdapter():
                return adapter.model.encode(padded).transpose(0, 1)
            case _:
                return adapter.model.encode(padded).audio_codes


def peer_wav(adapter, codes):
    """What the peer's own `decode` gives."""
    with torch.inference_mode():
        match adapter:
            case EncodecAdapter():
                return adapter.model.decode(codes[None], [None]).audio_values
            case DacAdapter():
                return adapter.model.decode(audio_codes=codes).audio_values[:, None]
            case MimiAdapter():
                return adapter.model.decode(codes).audio_values
            case _:
                return adapter.model.decode(codes.transpose(0, 1))


@pytest.mark.parametrize("samples", [1, 3000, 3200, 24001])
def test_parity_with_the_peer(foreign, samples):
    wav = noise(2, 1, samples)
    tokens = foreign.encode(wav)
    assert torch.equal(tokens.codes, peer_codes(foreign, wav))
    assert samples < 20000 or all(len(book.unique()) > 1 for book in tokens.codes[0])  # codebooks are not trivial
    audio, _ = foreign.decode(replace(tokens, samples=None))
    expected = peer_wav(foreign, tokens.codes)
    missing = audio.shape[2] - expected.shape[2]
    assert 0 <= missing < 32
    torch.testing.assert_close(audio[:, :, : expected.shape[2]], expected, rtol=1e-5, atol=1e-5)
    assert not audio[:, :, expected.shape[2] :].any()


def test_dac_at_16_khz_ends_8_samples_early_and_keeps_the_length():
    from transformers import DacConfig, DacModel

    config = DacConfig(encoder_hidden_size=2, decoder_hidden_size=32, downsampling_ratios=(2, 4, 5, 8), n_codebooks=2)
    adapter = DacAdapter(DacModel(config))
    tokens = adapter.encode(noise(1, 1, 24000))
    assert peer_wav(adapter, tokens.codes).shape[2] == 23992
    assert adapter.decode(tokens)[0].shape[2] == 24000


def test_chunks_equal_the_whole(foreign, monkeypatch):
    wav = noise(1, 1, foreign.spec.hop_samples * 80 + 77)
    tokens = foreign.encode(wav)
    audio = foreign.decode(tokens)[0]
    calls = []
    original = base.windows

    def counted(total, core, halo):
        pieces = list(original(total, core, halo))
        calls.append(len(pieces))
        return pieces

    monkeypatch.setattr(base, "windows", counted)
    for name in ("_front_frames", "_back_frames", "_encoder_frames", "_decoder_frames"):
        if hasattr(foreign, name):
            monkeypatch.setitem(getattr(foreign, name), "core", 20)
    assert torch.equal(foreign.encode(wav).codes, tokens.codes)
    assert (foreign.decode(tokens)[0] - audio).abs().max() <= 1e-5 * audio.abs().max()
    assert isinstance(foreign, speechtokenizer.SpeechTokenizerAdapter) or (len(calls) == 2 and min(calls) > 2)


def test_stated_look_ahead_covers_what_the_decoder_hears(foreign):
    """Changing a frame changes no audio from before its look-ahead, once the stream has started."""
    tokens = foreign.encode(noise(1, 1, foreign.spec.hop_samples * 60))
    moved = tokens.codes.clone()
    moved[:, :, 40] = (moved[:, :, 40] + 7) % 64
    change = (foreign.decode(tokens)[0] - foreign.decode(replace(tokens, codes=moved))[0])[0, 0]
    first = int(change.nonzero()[0]) // foreign.spec.hop_samples
    assert 40 - foreign.lookahead_frames <= first <= 40
    assert foreign.causal == (foreign.lookahead_frames == 0)


def test_features_are_the_latents_around_the_quantizer(foreign):
    assert isinstance(foreign, FrameFeatures)
    wav, lengths = noise(2, 1, 9000), torch.tensor([9000, 5000])
    before = foreign.extract(wav, "pre_vq", lengths=lengths)
    errors = []
    for n_q in range(1, foreign.spec.n_q + 1):
        after = foreign.extract(wav, "post_vq", n_q, lengths)
        assert after.values.shape == before.values.shape and torch.equal(after.lengths, before.lengths)
        again = foreign.extract(foreign.encode(wav, lengths), "post_vq", n_q)
        assert torch.equal(after.values, again.values)
        errors.append(float((after.values - before.values).square().sum()))
    assert before.lengths.tolist() == [foreign.frames(9000), foreign.frames(5000)]
    assert not before.values[1, :, before.lengths[1] :].any()
    assert before.frame_rate == foreign.spec.frame_rate and len(set(errors)) == foreign.spec.n_q
    with pytest.raises(TokenError, match="it has pre_vq, post_vq"):
        foreign.extract(wav, "ssl")
    with pytest.raises(TokenError, match="lost in tokens"):
        foreign.extract(foreign.encode(wav), "pre_vq")


def test_stays_in_eval_mode(foreign):
    foreign.train()
    assert not any(module.training for module in foreign.modules())


def test_stereo_encodec_is_refused():
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(
        sampling_rate=48000,
        audio_channels=2,
        normalize=True,
        chunk_length_s=1.0,
        overlap=0.01,
        num_filters=2,
        hidden_size=8,
        codebook_size=64,
        norm_type="time_group_norm",
        use_causal_conv=False,
    )
    with pytest.raises(ConfigError, match=r"48000 Hz, 2 channels, normalised.*stereo") as error:
        EncodecAdapter(EncodecModel(config))
    assert "24 kHz" in error.value.hint


def test_a_norm_over_time_keeps_the_whole_in_one_piece(monkeypatch):
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(
        num_filters=2, hidden_size=8, codebook_size=64, norm_type="time_group_norm", use_causal_conv=False
    )
    monkeypatch.setattr(models, "CHUNK_S", 0.2)
    adapter = EncodecAdapter(EncodecModel(config))
    tokens = adapter.encode(noise(1, 1, 48000))
    assert torch.equal(tokens.codes, peer_codes(adapter, noise(1, 1, 48000)))
    torch.testing.assert_close(adapter.decode(tokens)[0], peer_wav(adapter, tokens.codes))


# ---------------------------------------------------------------------- folders


@pytest.fixture
def folder(foreign, tmp_path):
    """An adapter's codec as its project publishes it."""
    if isinstance(foreign, speechtokenizer.SpeechTokenizerAdapter):
        (tmp_path / "config.json").write_text(json.dumps(foreign.config), encoding="utf-8")
        torch.save(foreign.model.state_dict(), tmp_path / "SpeechTokenizer.pt")
    else:
        foreign.model.save_pretrained(tmp_path)
    return tmp_path


def config_of(folder):
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def weights_of(folder):
    return next(file for file in folder.iterdir() if file.suffix in (".safetensors", ".pt"))


def test_a_loaded_codec_is_the_same(foreign, folder):
    loaded = load_adapter(folder, config_of(folder))
    wav = noise(1, 1, 5000)
    tokens = foreign.encode(wav)
    assert loaded.spec == foreign.spec
    assert torch.equal(loaded.encode(wav).codes, tokens.codes)
    assert torch.equal(loaded.decode(tokens)[0], foreign.decode(tokens)[0])


def test_decode_only_has_no_encoder_and_the_same_fingerprint(foreign, folder):
    loaded = load_adapter(folder, config_of(folder), decode_only=True)
    tokens = foreign.encode(noise(1, 1, 5000))
    assert torch.equal(loaded.decode(tokens)[0], foreign.decode(tokens)[0])
    assert sum(p.numel() for p in loaded.parameters()) < 0.8 * sum(p.numel() for p in foreign.parameters())
    with pytest.raises(TokenError, match="decode_only"):
        loaded.encode(noise(1, 1, 5000))
    with pytest.raises(TokenError, match="decode_only"):
        loaded.extract(noise(1, 1, 5000), "pre_vq")


def test_fingerprint_is_of_the_encode_side(foreign, folder):
    original = foreign.spec.fingerprint
    loaded = load_adapter(folder, config_of(folder))
    data = config_of(folder)
    prints = []
    for side in ("decoder", "encoder"):
        with torch.no_grad():
            next(p for name, p in loaded.model.named_parameters() if name.startswith(side)).add_(0.1)
        rebuilt = type(foreign)(loaded.model, data) if hasattr(foreign, "config") else type(foreign)(loaded.model)
        prints.append(rebuilt.spec.fingerprint)
    assert prints[0] == original != prints[1]


def test_damaged_weights_are_an_error(folder):
    file = weights_of(folder)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(XcodecLMError, match=r"cannot be read|damaged|not a whole"):
        load_adapter(folder, config_of(folder))


def test_a_config_without_weights_is_an_error(folder):
    weights_of(folder).unlink()
    with pytest.raises(XcodecLMError, match=r"no model.safetensors|0 files of weights"):
        load_adapter(folder, config_of(folder))


def rewrite(file, change):
    from safetensors.torch import load_file, save_file

    tensors = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    tensors = change(dict(tensors))
    save_file(tensors, file, metadata={"format": "pt"}) if file.suffix == ".safetensors" else torch.save(tensors, file)


@pytest.mark.parametrize("fault", ["missing", "extra", "size"])
def test_weights_that_do_not_fit_are_an_error(folder, fault):
    def change(tensors):
        key = next(key for key in sorted(tensors) if key.startswith("decoder"))
        if fault == "missing":
            del tensors[key]
        elif fault == "extra":
            tensors["surplus.weight"] = torch.zeros(3)
        else:
            tensors[key] = torch.zeros(*tensors[key].shape, 2)
        return tensors

    rewrite(weights_of(folder), change)
    with pytest.raises(XcodecLMError, match=str(folder)):
        load_adapter(folder, config_of(folder))


def test_a_config_that_makes_no_sense_is_an_error(foreign, folder):
    data = config_of(folder)
    key = next(key for key in ("num_filters", "encoder_hidden_size", "n_filters") if key in data)
    (folder / "config.json").write_text(json.dumps(data | {key: 3}), encoding="utf-8")
    with pytest.raises(XcodecLMError, match=str(folder)):
        load_adapter(folder, config_of(folder))


def test_kinds_are_told_by_the_config(tmp_path):
    assert [adapter_kind({"model_type": kind}) for kind in ("encodec", "dac", "mimi")] == ["encodec", "dac", "mimi"]
    assert adapter_kind(dict.fromkeys(("semantic_dimension", "strides", "n_q", "codebook_size", "sample_rate"))) == (
        "speechtokenizer"
    )
    assert adapter_kind({}) is None
    with pytest.raises(XcodecLMError, match="'bert' model has no adapter"):
        load_adapter(tmp_path, {"model_type": "bert"})


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(speechtokenizer, "PACKAGE", "a_package_that_nobody_has")
    with pytest.raises(XcodecLMError, match="not installed") as error:
        speechtokenizer.speechtokenizer_class()
    assert "pip install" in error.value.hint
