"""Spectra, losses, discriminators and distances."""

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank

from xcodec_lm.codec import distances
from xcodec_lm.codec.nn import losses
from xcodec_lm.codec.nn.discriminators import MultiFrequencyDiscriminator
from xcodec_lm.codec.nn.spectra import mel_filters, pqmf_bands, stft_magnitude

RATE = 16000


def tones(count=3, seconds=1.0, seed=0):
    rng = np.random.default_rng(seed)
    time = np.arange(int(RATE * seconds)) / RATE
    rows = [sum(np.sin(2 * np.pi * f * time) for f in rng.uniform(80, 5000, 4)) * 0.1 for _ in range(count)]
    return torch.tensor(np.stack(rows), dtype=torch.float32)


@pytest.mark.parametrize("norm", [None, "slaney"])
def test_mel_filters_are_those_of_transformers(norm):
    peer = mel_filter_bank(257, 40, 0.0, RATE / 2, RATE, norm=norm, mel_scale="htk").T
    ours = mel_filters(RATE, 512, 40, torch.device("cpu"), norm == "slaney")
    np.testing.assert_allclose(ours.numpy(), peer, atol=1e-6)


def test_magnitudes_are_those_of_a_plain_transform():
    wav = tones(1)
    ours = stft_magnitude(wav, 512, 128, 512)[0]
    frame = 20
    padded = np.pad(wav[0].numpy(), 256, mode="reflect")
    window = np.hanning(513)[:-1]
    expected = np.abs(np.fft.rfft(padded[frame * 128 : frame * 128 + 512] * window))
    np.testing.assert_allclose(ours[:, frame].numpy(), expected, atol=1e-3)


def test_pqmf_keeps_energy_and_separates_bands():
    for band in range(6):
        frequency = (band + 0.5) * RATE / 12
        tone = torch.sin(2 * torch.pi * frequency * torch.arange(RATE) / RATE)[None]
        energy = pqmf_bands(tone).square().sum(-1)[0]
        assert energy.argmax() == band and energy[band] > 0.95 * energy.sum()
    noise = torch.randn(1, RATE)
    assert 0.8 < 6 * float(pqmf_bands(noise).square().sum() / noise.square().sum()) < 1.2


TERMS = {
    "stft": lambda x, y: losses.stft_loss(x, y, losses.full_band_shapes((480, 960))),
    "subband": losses.subband_stft_loss,
    "mel": lambda x, y: losses.mel_loss(x, y, RATE, (256, 1024), (40, 80)),
}


@pytest.mark.parametrize("name", TERMS)
def test_loss_is_zero_on_itself_grows_with_noise_and_has_finite_gradients(name):
    term, target = TERMS[name], tones()
    assert float(term(target, target)) < 1e-4
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    steps = [float(term(target + level * noise, target)) for level in (0.001, 0.01, 0.1)]
    assert steps == sorted(steps)
    estimate = torch.zeros_like(target).requires_grad_()
    term(estimate, target).backward()
    assert estimate.grad.isfinite().all()


@pytest.mark.parametrize("name", TERMS)
def test_loss_of_a_batch_is_the_mean_over_its_clips(name):
    """One norm over the batch would let loud clips outweigh quiet ones, and depend on the number of processes."""
    term, target = TERMS[name], tones()
    target = target * torch.tensor([[1.0], [0.1], [0.01]])
    estimate = target + 0.01 * torch.randn(target.shape)
    singles = [float(term(estimate[i : i + 1], target[i : i + 1])) for i in range(3)]
    assert float(term(estimate, target)) == pytest.approx(np.mean(singles), rel=1e-4)


def test_discriminator_learns_to_tell_noise_from_tones():
    torch.manual_seed(0)
    disc = MultiFrequencyDiscriminator(RATE, (64, 128), (32, 32))
    optimizer = torch.optim.AdamW(disc.parameters(), lr=5e-3)
    real, fake = tones(4, 0.3)[:, None], 0.1 * torch.randn(4, 1, 4800)
    first = losses.discriminator_loss(disc(real), disc(fake)).item()
    for _ in range(30):
        optimizer.zero_grad()
        loss = losses.discriminator_loss(disc(real), disc(fake))
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first


def test_adversarial_losses_by_hand():
    real, fake = [[torch.zeros(1, 2), torch.full((1, 3), 0.5)]], [[torch.ones(1, 2), torch.full((1, 3), 0.25)]]
    assert float(losses.discriminator_loss(real, fake)) == pytest.approx(0.25 + 0.0625)
    assert float(losses.generator_adversarial_loss(fake)) == pytest.approx(0.5625)
    assert float(losses.feature_matching_loss(real, fake)) == pytest.approx(1.0)  # the verdict does not count


def test_feature_matching_moves_only_the_generator():
    real, fake = torch.ones(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    losses.feature_matching_loss([[real, real]], [[fake, fake]]).backward()
    assert real.grad is None and fake.grad.abs().sum() > 0


def test_anchors_are_ordered_as_they_should_be():
    """Noise that follows the clip's own envelope is nearer than white noise, which is nearer than silence."""
    wav = tones(1, 2.0)[0] * torch.linspace(0, 1, 2 * RATE) * 0.8 + 0.001 * torch.randn(2 * RATE)
    found = {name: distances.distances(signal, wav, RATE) for name, signal in distances.anchors(wav, RATE).items()}
    for metric in ("mel", "stft"):
        assert 0 < found["shaped noise"][metric] < found["white noise"][metric] < found["silence"][metric]
    assert distances.mel_distance(wav, wav, RATE) == 0
    light = distances.mel_distance(wav + 0.0005 * torch.randn_like(wav), wav, RATE)
    assert light < found["shaped noise"]["mel"]


@pytest.mark.parametrize("samples", [1, 100, 700])
def test_distances_and_anchors_of_short_signals_are_finite(samples):
    wav = torch.rand(samples) * 0.1
    for signal in distances.anchors(wav, RATE).values():
        assert signal.shape == wav.shape
        assert all(np.isfinite(value) for value in distances.distances(signal, wav, RATE).values())


def test_shaped_noise_has_the_clips_energy_at_every_moment():
    wav = torch.cat([torch.zeros(RATE), tones(1, 1.0)[0]])
    noise = distances.shaped_noise(wav, RATE)
    assert noise[: RATE - 512].abs().max() < 1e-3
    assert float(noise[RATE:].square().mean() / wav[RATE:].square().mean()) == pytest.approx(1.0, abs=0.25)
