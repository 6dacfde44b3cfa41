"""The quantizer: gradients, moving averages, dead codes, k-means."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xcodec_lm.codec.nn.rvq import ResidualVectorQuantizer, kmeans
from xcodec_lm.configs.codec import QuantizerConfig


def quantizer(n_q=4, size=16, dim=6, seed=0, **options) -> ResidualVectorQuantizer:
    rvq = ResidualVectorQuantizer(QuantizerConfig(n_q=n_q, codebook_size=size, dim=dim, n_q_choices=(n_q,), **options))
    rng = torch.Generator().manual_seed(seed)
    for layer, book in enumerate(rvq.codebooks()):
        book.restart(torch.randn(size, dim, generator=rng) * 0.7**layer, slice(None), 1.0)
    return rvq


def latents(batch=2, frames=40, dim=6, seed=1):
    return torch.randn(batch, dim, frames, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(n_q=st.integers(1, 4), frames=st.integers(1, 9), seed=st.integers(0, 99))
def test_codes_of_few_layers_are_a_prefix_and_decode_adds_up(n_q, frames, seed):
    rvq, x = quantizer(), latents(frames=frames, seed=seed)
    codes = rvq.encode(x)
    assert torch.equal(rvq.encode(x, n_q), codes[:, :n_q])
    total = sum(book.embed[codes[:, i]].permute(0, 2, 1) for i, book in enumerate(rvq.codebooks(n_q)))
    torch.testing.assert_close(rvq.decode(codes[:, :n_q]), total)


def test_each_layer_takes_the_nearest_code():
    rvq, x = quantizer(), latents()
    codes = rvq.encode(x)
    residual = x.permute(0, 2, 1).reshape(-1, 6)
    for layer, book in enumerate(rvq.codebooks()):
        assert torch.equal(codes[:, layer].flatten(), torch.cdist(residual, book.embed).argmin(1))
        residual = residual - book.embed[codes[:, layer].flatten()]


def test_training_and_inference_give_the_same_codes():
    rvq, x = quantizer(), latents()
    output = rvq(x, 4)
    assert torch.equal(output.codes, rvq.encode(x))
    torch.testing.assert_close(output.quantized, rvq.decode(output.codes))


@pytest.mark.parametrize("layer", range(4))
def test_commitment_has_a_gradient_from_every_layer(layer):
    """Per-layer straight-through estimators cancel it beyond the first."""
    rvq = quantizer()
    x = latents().requires_grad_()
    rvq(x, layer + 1).commitment.backward(retain_graph=True)
    with_layer = x.grad.clone() * (layer + 1)
    without = torch.zeros_like(with_layer)
    if layer:
        x.grad = None
        rvq(x, layer).commitment.backward()
        without = x.grad * layer
    assert (with_layer - without).abs().max() > 1e-3


def test_reconstruction_gradient_passes_straight_through():
    rvq = quantizer()
    x = latents().requires_grad_()
    weights = torch.randn(x.shape)
    (rvq(x, 3).quantized * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights)


def test_averages_move_codes_to_the_mean_of_their_vectors():
    rvq = quantizer(n_q=1, size=2, dim=1, decay=0.5, dead_fraction=0.0)
    book = rvq.codebooks()[0]
    book.restart(torch.tensor([[-1.0], [1.0]]), slice(None), 2.0)
    rvq.train()
    rvq(torch.tensor([[[-3.0, -1.0, 2.0, 2.0]]]), 1)
    rvq.update_codebooks(0, 0)
    # averages: (0.5 * (2 * -1) + 0.5 * (-4)) / 2 and (0.5 * 2 + 0.5 * 4) / 2
    torch.testing.assert_close(book.embed, torch.tensor([[-1.5], [1.5]]))


def test_update_does_not_depend_on_micro_batches():
    whole, parts = quantizer(), quantizer()
    x = latents(batch=4)
    whole.train()(x, 4)
    for part in x.split(1):
        parts.train()(part, 4)
    assert whole.update_codebooks(3, 7) == parts.update_codebooks(3, 7)
    for a, b in zip(whole.codebooks(), parts.codebooks(), strict=True):
        torch.testing.assert_close(a.embed, b.embed, rtol=0, atol=1e-6)


def test_evaluation_leaves_codebooks_alone():
    rvq = quantizer().eval()
    before = [book.embed.clone() for book in rvq.codebooks()]
    rvq(latents(), 4)
    assert rvq.update_codebooks(0, 0) == []
    assert all(torch.equal(a, book.embed) for a, book in zip(before, rvq.codebooks(), strict=True))


def test_dead_code_restarts_with_its_averages_and_survives_the_next_step():
    """A code whose averages kept their old sums would be pulled back to its dead value at once."""
    rvq = quantizer(n_q=1, size=8, dim=2, dead_fraction=0.5).train()
    book = rvq.codebooks()[0]
    book.embed[0], book.embed_avg[0], book.cluster_size[0] = 100.0, 0.01, 1e-4
    x = latents(batch=4, frames=50, dim=2)
    rvq(x, 1)
    assert rvq.update_codebooks(0, 0)[0] >= 1
    vectors = x.permute(0, 2, 1).reshape(-1, 2)
    assert (vectors - book.embed[0]).norm(dim=1).min() < 1e-6  # one of the batch's vectors
    assert torch.allclose(book.embed_avg[0], book.embed[0] * book.cluster_size[0])
    placed = book.embed[0].clone()
    rvq(x, 1)
    rvq.update_codebooks(0, 1)
    assert (book.embed[0] - placed).norm() < 1


def test_threshold_is_relative_to_the_frames_per_code():
    """With fewer frames than codes a step, an absolute threshold would replace nearly every code every step."""
    rvq = quantizer(n_q=1, size=256, dim=2, decay=0.9).train()
    replaced = 0
    for step in range(50):
        x = latents(batch=1, frames=64, dim=2, seed=step)
        if step == 0:
            rvq.initialize(torch.randn(2000, 2, generator=torch.Generator().manual_seed(5)), 0)
        rvq(x, 1)
        replaced = rvq.update_codebooks(0, step)[0]
    assert replaced < 256 * 0.2


def test_kmeans_finds_separated_clusters_and_handles_few_vectors():
    rng = torch.Generator().manual_seed(0)
    means = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = (means[:, None] + 0.1 * torch.randn(3, 200, 2, generator=rng)).reshape(-1, 2)
    centers = kmeans(points, 12, 20, rng)
    assert (torch.cdist(points, centers).min(1).values < 1).all()
    few = kmeans(points[:5], 12, 5, rng)
    assert few.isfinite().all() and len(few.unique(dim=0)) == 12


def test_codebooks_are_used_after_kmeans():
    rvq = quantizer(size=64)
    x = latents(batch=8, frames=200)
    rvq.initialize(x.permute(0, 2, 1).reshape(-1, 6), seed=0)
    codes = rvq.encode(x)
    assert all(len(codes[:, layer].unique()) > 48 for layer in range(4))
    errors = [float((x - rvq.decode(codes[:, :n])).square().mean()) for n in range(1, 5)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.2 * float(x.square().mean())


def test_quantizer_computes_in_fp32_under_autocast():
    rvq, x = quantizer(), latents()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = rvq(x, 4)
    assert output.quantized.dtype == torch.float32
    assert torch.equal(output.codes, rvq.encode(x))
