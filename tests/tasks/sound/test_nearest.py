"""Copies of training clips: found at any shift, told from other clips of their kind."""

import numpy as np
import pytest

from xcodec_lm.tasks.sound.nearest import mel_image, nearest_by_mel, waveform_correlation

RATE = 16_000


@pytest.fixture(scope="module")
def training(make_sound):
    rng = np.random.default_rng(5)
    return [make_sound(kind, rng, 1.5) for kind in ("clicks", "hum", "clicks", "whistle", "clicks")]


def test_a_shifted_quieter_noisy_copy_is_found(training, make_sound):
    rng = np.random.default_rng(6)
    copy = 0.3 * np.concatenate([np.zeros(3200, np.float32), training[2]])
    part = training[4][6000:18_000]
    other = make_sound("clicks", rng, 1.5)
    noisy = (copy + 0.001 * rng.standard_normal(len(copy))).astype(np.float32)
    images = [mel_image(wav, RATE) for wav in training]
    found = nearest_by_mel([mel_image(wav, RATE) for wav in (copy, noisy, part, other)], images)
    assert [one.index for one in found[:3]] == [2, 2, 4]
    assert found[0].mel > 0.9 and found[2].mel > 0.9 and found[1].mel > 0.9 > found[3].mel
    assert all(one.mel <= 1 for one in found)


def test_a_clip_is_itself(training):
    images = [mel_image(wav, RATE) for wav in training]
    found = nearest_by_mel(images, images)
    assert [one.index for one in found] == list(range(5)) and all(
        one.mel == pytest.approx(1, abs=1e-3) for one in found
    )


def test_what_does_not_move_is_like_nothing(training):
    images = [mel_image(wav, RATE) for wav in training]
    steady = np.sin(2 * np.pi * 1000 * np.arange(16_000) / RATE).astype(np.float32)
    found = nearest_by_mel([mel_image(np.zeros(8000, np.float32), RATE), mel_image(steady, RATE)[:, 8:-8]], images)
    assert all(one.mel <= 0 for one in found)
    assert mel_image(np.ones(1, np.float32), RATE).shape[0] == 32


def test_waveforms(training):
    copy = -0.2 * np.concatenate([np.zeros(100), training[0]])
    assert waveform_correlation(copy, training[0]) == pytest.approx(1, abs=1e-6)
    assert waveform_correlation(training[0], training[2]) < 0.6
    assert waveform_correlation(np.zeros(10), training[0]) == 0
