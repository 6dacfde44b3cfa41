"""Audio files and the guards before an encoder."""
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import numpy as np
import pytest
import soundfile as sf
import torch

from xcodec_lm.codec.audio import MAX_LEVEL, check_wav, load_audio, resample, save_audio
from xcodec_lm.configs.errors import AudioError, XcodecLMError

RATE = 16_000


def snr_db(estimate, target):
    length = min(len(estimate), len(target))
    edge = length // 10  # filters ring at the ends
    estimate, target = estimate[edge : length - edge], target[edge : length - edge]
    return 10 * np.log10((target**2).sum() / ((estimate - target) ** 2).sum())


# ------------------------------------------------------------------ loading


@pytest.mark.parametrize(
    ("name", "subtype", "worst_db"),
    [
        ("a.wav", "PCM_U8", 30), ("a.wav", "PCM_16", 80), ("a.wav", "PCM_24", 120), ("a.wav", "PCM_32", 120),
        ("a.wav", "FLOAT", 120), ("a.wav", "DOUBLE", 120), ("a.flac", "PCM_16", 80), ("a.flac", "PCM_24", 120),
        ("a.ogg", "VORBIS", 15), ("a.ogg", "OPUS", 10), ("a.aiff", "PCM_16", 80),
    ],
)  # fmt: skip
def test_formats_are_read(write_wav, name, subtype, worst_db):
    path = write_wav(name, 0.5, subtype=subtype)
    audio = load_audio(path, RATE)
    expected = 0.5 * np.sin(2 * np.pi * 220 * np.arange(8000) / RATE)
    assert audio.wav.shape[0] == 1 and audio.wav.dtype == torch.float32 and audio.sample_rate == RATE
    assert abs(audio.wav.shape[1] - 8000) <= 1000 * (subtype in ("OPUS", "VORBIS"))
    assert snr_db(audio.wav[0].numpy(), expected) > worst_db
    assert audio.conversions == ()


@pytest.mark.skipif("MP3" not in sf.available_formats(), reason="this libsndfile has no MP3")
def test_mp3_is_read(write_wav):
    audio = load_audio(write_wav("a.mp3", 0.5), RATE)
    assert abs(audio.wav.shape[1] - 8000) < 2500  # the format adds silence at its ends
    spectrum = np.abs(np.fft.rfft(audio.wav[0].numpy()))
    assert spectrum.argmax() * RATE / audio.wav.shape[1] == pytest.approx(220, abs=5)


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000])
def test_rates_are_converted_and_said(write_wav, rate):
    audio = load_audio(write_wav(seconds=0.5, rate=rate, subtype="FLOAT"), RATE)
    assert audio.conversions == (f"resampled {rate} to {RATE} Hz",)
    assert abs(audio.wav.shape[1] - 8000) <= 1
    assert snr_db(audio.wav[0].numpy(), 0.5 * np.sin(2 * np.pi * 220 * np.arange(8000) / RATE)) > 50


@pytest.mark.parametrize("channels", [2, 6])
def test_channels_are_mixed_and_said(write_wav, channels):
    path = write_wav(channels=channels, subtype="FLOAT", seconds=0.1)
    audio = load_audio(path, RATE)
    assert audio.conversions == (f"mixed {channels} channels to mono",)
    np.testing.assert_allclose(audio.wav[0].numpy(), sf.read(path)[0].mean(1), atol=1e-6)


def test_all_conversions_are_said_in_order(write_wav):
    audio = load_audio(write_wav(rate=8000, channels=2), RATE)
    assert audio.conversions == ("mixed 2 channels to mono", "resampled 8000 to 16000 Hz")


def test_parts_are_read(write_wav):
    path = write_wav(seconds=1.0, kind="noise", subtype="FLOAT")
    whole = load_audio(path, RATE).wav
    assert torch.equal(load_audio(path, RATE, start_s=0.25, duration_s=0.5).wav, whole[:, 4000:12_000])
    assert torch.equal(load_audio(path, RATE, start_s=0.75, duration_s=9).wav, whole[:, 12_000:])
    assert torch.equal(load_audio(path, RATE, duration_s=0.5).wav, whole[:, :8000])


@pytest.mark.parametrize("rate", [RATE, 8000, 48_000])
def test_one_sample_is_audio(write_wav, rate):
    audio = load_audio(write_wav(seconds=1 / rate, rate=rate), RATE)
    assert audio.wav.shape[1] >= 1 and torch.isfinite(audio.wav).all()


@pytest.mark.parametrize(("count", "source", "target"), [(1, 48_000, 8000), (2, 44_100, 16_000), (5, 8000, 16_000)])
def test_resampling_never_gives_nothing(count, source, target):
    signal = np.full(count, 0.5, dtype=np.float32)
    result = resample(signal, source, target)
    assert len(result) >= 1 and result.dtype == np.float32
    assert resample(signal, source, source) is signal


# ------------------------------------------------------------------ refusals


def refused(path, said):
    with pytest.raises(AudioError, match=said) as caught:
        load_audio(path, RATE)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, (XcodecLMError, ValueError)) and caught.value.exit_code == 1


def test_missing_file_and_folder_are_refused(tmp_path):
    refused(tmp_path / "nowhere.wav", "file not found")
    refused(tmp_path, "file not found")


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.txt"])
@pytest.mark.parametrize("content", [b"these are words, not audio\n" * 99, b"", b"RIFF", bytes(5000)])
def test_other_files_are_refused_whatever_their_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "not readable as audio|empty|truncated")


@pytest.mark.parametrize("kept", [0.05, 0.3, 0.6, 0.9, 0.999])
def test_truncated_flac_is_refused(write_wav, kept):
    path = write_wav("a.flac", 2.0, kind="noise")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    refused(path, "not readable|truncated")


def test_file_without_samples_is_refused(tmp_path):
    for name in ("a.wav", "a.flac"):
        sf.write(tmp_path / name, np.zeros(0, dtype=np.float32), RATE)
        refused(tmp_path / name, "empty, it has no samples|not readable")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [1, 2])
def test_values_that_are_not_finite_are_refused_with_their_place(tmp_path, value, channels):
    data = np.zeros((100, channels), dtype=np.float32)
    data[42, -1] = value
    sf.write(tmp_path / "a.wav", data, RATE, subtype="FLOAT")
    refused(tmp_path / "a.wav", "sample 42 is -?(nan|inf), not a finite number")


def test_floats_on_the_scale_of_integers_are_refused(tmp_path):
    data = (20_000 * np.sin(np.arange(100))).astype(np.float32)
    sf.write(tmp_path / "a.wav", data, RATE, subtype="FLOAT")
    refused(tmp_path / "a.wav", r"beyond 1.5(.|\n)*hint: divide 16-bit integers by 32768")
    sf.write(tmp_path / "a.wav", data / 8000, RATE, subtype="FLOAT")
    refused(tmp_path / "a.wav", r"samples reach 2\.4.*beyond 1.5(.|\n)*hint: lower the level")


def test_overshoot_of_resampling_is_no_reason_to_refuse(tmp_path):
    square = np.sign(np.sin(np.arange(4410) * 2 * np.pi * 1000 / 44_100)).astype(np.float32)
    sf.write(tmp_path / "a.wav", square, 44_100, subtype="FLOAT")
    audio = load_audio(tmp_path / "a.wav", RATE)
    check_wav(audio.wav[None], None, RATE, RATE)
    assert 1 < audio.wav.abs().max() <= MAX_LEVEL


# ------------------------------------------------------------------ saving


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_what_is_saved_is_loaded_again_to_16_bits(tmp_path, name):
    wav = torch.rand(1, 1000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert save_audio(tmp_path / name, wav, 22_050) == 0
    info = sf.info(tmp_path / name)
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (22_050, 1, 1000, "PCM_16")
    assert (load_audio(tmp_path / name, 22_050).wav - wav).abs().max() <= 1.01 / 32_768


def test_values_beyond_full_scale_are_clipped_and_counted(tmp_path):
    wav = torch.tensor([0.0, 1.0, -1.0, 1.2, -7.0, 0.5])
    assert save_audio(tmp_path / "a.wav", wav, RATE) == 2
    assert load_audio(tmp_path / "a.wav", RATE).wav[0].tolist() == pytest.approx([0, 1, -1, 1, -1, 0.5], abs=1e-4)


@pytest.mark.parametrize("name", ["no/a.wav", "file/a.wav", "a.xyz", "a", "."])
def test_place_that_cannot_be_written_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(AudioError, match="cannot write"):
        save_audio(tmp_path / name, torch.zeros(10), RATE)


# ------------------------------------------------------------------ the guard of the Python API


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 500)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_guard_lets_audio_pass_and_gives_lengths(shape, dtype):
    wav = torch.zeros(shape, dtype=dtype)
    assert check_wav(wav, None, RATE, None).tolist() == [shape[2]] * shape[0]
    lengths = check_wav(wav, torch.ones(shape[0], dtype=torch.int32), RATE, RATE)
    assert lengths.tolist() == [1] * shape[0] and lengths.dtype == torch.int64
    assert check_wav(torch.full(shape, MAX_LEVEL), None, RATE, None).shape == shape[:1]


def spoilt(value):
    wav = torch.zeros(2, 1, 100)
    wav[1, 0, 7] = value
    return wav


@pytest.mark.parametrize(
    ("wav", "lengths", "rate", "said"),
    [
        (torch.zeros(1, 1, 9), None, 8000, "the audio has 8000 Hz, the codec needs 16000 Hz"),
        (np.zeros((1, 1, 9), dtype=np.float32), None, None, "floating-point tensor, got ndarray"),
        (torch.zeros(1, 1, 9, dtype=torch.int16), None, None, "floating-point tensor, got torch.int16"),
        (torch.zeros(9), None, None, r"shape \(B, 1, N\), got \(9,\)"),
        (torch.zeros(1, 9), None, None, r"shape \(B, 1, N\), got \(1, 9\)"),
        (torch.zeros(1, 2, 9), None, None, "must be mono, got 2 channels"),
        (torch.zeros(1, 1, 0), None, None, "wav is empty"),
        (torch.zeros(0, 1, 9), None, None, "wav is empty"),
        (torch.zeros(2, 1, 9), torch.tensor([9]), None, r"lengths must be 2 numbers in 1\.\.9, got \[9\]"),
        (torch.zeros(2, 1, 9), torch.tensor([9, 10]), None, r"in 1\.\.9, got \[9, 10\]"),
        (torch.zeros(2, 1, 9), torch.tensor([0, 9]), None, r"in 1\.\.9, got \[0, 9\]"),
        (spoilt(float("nan")), None, None, "row 1: sample 7 is nan"),
        (spoilt(float("-inf")), None, None, "row 1: sample 7 is -inf"),
        (spoilt(12_345.0), None, None, "row 1: samples reach 12345, beyond 1.5"),
        (spoilt(-1.6), None, None, "row 1: samples reach 1.6, beyond 1.5"),
    ],
)
def test_guard_refuses_and_says_where(wav, lengths, rate, said):
    with pytest.raises(AudioError, match=said):
        check_wav(wav, lengths, RATE, rate)


def test_guard_changes_nothing():
    wav = torch.linspace(-1, 1, 50)[None, None]
    before = wav.clone()
    check_wav(wav, None, RATE, RATE)
    assert torch.equal(wav, before)
