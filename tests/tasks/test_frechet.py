"""Fréchet distance and texture features."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xcodec_lm.tasks.eval.frechet import Projection, frechet_distance
from xcodec_lm.tasks.eval.texture import texture


def test_analytic_value_of_axis_aligned_gaussians():
    rng = np.random.default_rng(0)

    def exact(mean, scales, rows=400):  # sample moments equal to the asked ones
        x = rng.standard_normal((rows, len(scales)))
        x -= x.mean(0)
        x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
        return x * scales + mean

    x, y = exact([0, 0, 0], [1, 2, 3]), exact([1, 0, -2], [2, 2, 1])
    assert frechet_distance(x, y) == pytest.approx(1 + 4 + (1 + 0 + 4), rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), rows=st.integers(2, 40), dims=st.integers(1, 8))
def test_is_symmetric_not_negative_and_zero_on_itself(seed, rows, dims):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((rows, dims)), rng.standard_normal((rows + 3, dims)) + 1
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-6, abs=1e-8)
    assert frechet_distance(x, y) > -1e-9


def test_unusable_sets_are_refused():
    with pytest.raises(ValueError, match="two rows"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))


def test_projection_whitens_and_drops_empty_dimensions():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 3)) @ rng.standard_normal((3, 10)) + 5
    project = Projection.fit(x, dims=16)
    assert project(x).shape == (200, 3)
    np.testing.assert_allclose(np.cov(project(x), rowvar=False), np.eye(3), atol=1e-6)


def test_texture_tells_noise_tones_and_stillness_apart():
    rng = torch.Generator().manual_seed(0)
    time = torch.arange(64000) / 16000
    tone = 0.1 * torch.sin(2 * torch.pi * 400 * time)
    wavs = {
        "still": tone,
        "moving": tone * (0.5 + 0.5 * torch.sin(2 * torch.pi * 3 * time)),
        "noise": 0.1 * torch.randn(64000, generator=rng),
    }
    wavs, again = (
        {name: wav + 1e-3 * torch.randn(64000, generator=rng) for name, wav in wavs.items()} for _ in range(2)
    )
    project = Projection.fit(np.concatenate([texture(wav, 16000) for wav in (*wavs.values(), *again.values())]))
    features = {name: project(texture(wav, 16000)) for name, wav in wavs.items()}
    for name, wav in again.items():
        found = {other: frechet_distance(project(texture(wav, 16000)), values) for other, values in features.items()}
        assert min(found, key=found.get) == name, found


@pytest.mark.parametrize("samples", [1, 3000, 40000])
def test_texture_of_any_length_is_finite(samples):
    assert np.isfinite(texture(torch.zeros(samples), 16000)).all()
