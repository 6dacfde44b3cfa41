"""Optimizers: what they compute, which parameters they take, exact resume, refusal of shards."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xcodec_lm.codec.runtime.checkpoint import load_checkpoint, save_checkpoint
from xcodec_lm.configs.codec import CodecTrainConfig
from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.configs.hubert import HubertTrainConfig
from xcodec_lm.configs.lm import GPTConfig, LayoutConfig
from xcodec_lm.configs.run import OptimConfig
from xcodec_lm.configs.xcodec2 import Xcodec2TrainConfig
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.muon import Muon, orthogonalize
from xcodec_lm.lm.optimizers import ScaledAdam, hidden_matrices, make_optimizer

RECIPES = {
    "adamw": OptimConfig(steps=40, lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, schedule="cosine"),
    "muon": OptimConfig(
        steps=40, name="muon", lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, schedule="cosine"
    ),
    "scaled_adam": OptimConfig(
        steps=40, name="scaled_adam", lr=0.05, betas=(0.9, 0.95), eps=1e-8, schedule="eden", clipping_steps=8
    ),
}


def tiny():
    torch.manual_seed(0)
    return GPT(GPTConfig(layers=2, heads=2, dim=32, block=16, layout=LayoutConfig(specials="none")), 16)


def train(model, optimizer, optim, steps):
    """Steps on sequences that count upwards; returns the losses."""
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        ids = (torch.arange(17) + torch.randint(16, (8, 1), generator=generator)) % 16
        for group in optimizer.param_groups:
            group["lr"] = optim.lr_at(step) * group.get("lr_scale", 1)
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), optim.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


# ------------------------------------------------------------------ all of them


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_learns(name):
    model, optim = tiny(), RECIPES[name]
    losses = train(model, make_optimizer(model, optim), optim, range(40))
    assert losses[0] == pytest.approx(math.log(16), rel=0.05) and losses[-1] < 0.4 * losses[0]


@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, name):
    optim = RECIPES[name]
    whole = tiny()
    expected = train(whole, make_optimizer(whole, optim), optim, range(12))
    first = tiny()
    first_optimizer = make_optimizer(first, optim)
    got = train(first, first_optimizer, optim, range(5))
    path = save_checkpoint(
        tmp_path, 5, {"model": first.state_dict()}, {"optimizer": first_optimizer.state_dict()}, {}, keep=1
    )
    second = tiny()
    with torch.no_grad():
        second.wte.weight.zero_()
    second_optimizer = make_optimizer(second, optim)
    train(second, second_optimizer, optim, range(2))  # what a checkpoint replaces may have been used
    load_checkpoint(path, {"model": second}, {"optimizer": second_optimizer})
    got += train(second, second_optimizer, optim, range(5, 12))
    assert got == expected
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize("name", RECIPES)
def test_frozen_parameters_stay(name):
    model = tiny()
    model.wpe.weight.requires_grad_(False)
    optimizer = make_optimizer(model, RECIPES[name])
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


# ------------------------------------------------------------------ AdamW and Muon


def test_weight_decay_is_on_matrices_only():
    for name in ("adamw", "muon"):
        model = tiny()
        groups = make_optimizer(model, RECIPES[name]).param_groups
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        assert len(decay) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
        assert all(decay[id(p)] == (0.1 if p.dim() >= 2 else 0.0) for p in model.parameters())


def test_muon_takes_hidden_matrices_alone():
    model = tiny()
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)] for p in hidden_matrices(model)}
    layers = ("attn.qkv", "attn.proj", "fc", "proj")
    assert found == {f"blocks.{i}.{layer}.weight" for i in range(2) for layer in layers}
    other = nn.Module()
    other.emb, other.tied, other.lm_head = nn.Embedding(8, 4), nn.Linear(4, 8), nn.Linear(4, 8)
    other.tied.weight = other.emb.weight
    other.heads, other.multihead = nn.ModuleList([nn.Linear(4, 8)]), nn.Linear(4, 4)
    other.grouped = nn.Parameter(torch.zeros(2, 4, 4))
    assert [id(p) for p in hidden_matrices(other)] == [id(other.multihead.weight)]


def test_muon_beside_adamw_is_both_apart():
    optim = RECIPES["muon"]
    model, apart = tiny(), tiny()
    hidden = {id(p) for p in hidden_matrices(apart)}
    rest = [p for p in apart.parameters() if id(p) not in hidden]
    groups = [{"params": [p for p in rest if p.dim() > 1]}, {"params": [p for p in rest if p.dim() == 1]}]
    groups[1]["weight_decay"] = 0.0
    muon = Muon(hidden_matrices(apart), optim.lr, 0.1)
    adamw = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=0.1, fused=True)
    both = torch.optim.Optimizer([*muon.param_groups, *adamw.param_groups], {})  # for `train` to set the rate
    both.step = lambda: (muon.step(), adamw.step())
    assert train(model, make_optimizer(model, optim), optim, range(4)) == train(apart, both, optim, range(4))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), apart.parameters(), strict=True))


@pytest.mark.parametrize("shape", [(24, 24), (12, 40), (40, 12)])
def test_muon_makes_all_singular_values_alike(shape):
    generator = torch.Generator().manual_seed(1)
    matrices = torch.randn(3, *shape, generator=generator) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    made = orthogonalize(matrices)
    assert made.dtype == torch.float32
    for before, after in zip(matrices.double(), made.double(), strict=True):
        u, _, v = torch.linalg.svd(before, full_matrices=False)
        inner = u.T @ after @ v.T  # in the bases of the singular vectors
        assert ((inner.diagonal() > 0.3) & (inner.diagonal() < 1.3)).all()
        assert (inner - inner.diagonal().diag()).abs().max() < 1e-3
    assert torch.equal(orthogonalize(torch.zeros(1, *shape)), torch.zeros(1, *shape))


def test_muon_steps_as_pytorchs_does_but_for_its_rounding():
    torch.manual_seed(3)
    start = [torch.randn(16, 48), torch.randn(16, 48), torch.randn(20, 20)]
    ours, theirs = ([nn.Parameter(value.clone()) for value in start] for _ in range(2))
    pair = Muon(ours, 0.01, 0.1), torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in pair:
            optimizer.step()
    for a, b, begun in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() < 0.03 * (b - begun).norm()  # they iterate in bfloat16


# ------------------------------------------------------------------ ScaledAdam


def scaled_adam_by_hand(tensors, gradients, lr, betas, eps, scale, window):
    """An independent ScaledAdam in float64; `tensors` are changed in place."""
    (b1, b2), norms, memory = betas, [], [dict.fromkeys("mvns", 0.0) for _ in tensors]
    for t, step_gradients in enumerate(gradients, start=1):
        sizes = [max(math.sqrt(np.mean(w**2)), 1e-5) if w.size > 1 else 1.0 for w in tensors]
        norms.append(math.sqrt(sum((r**2 * g**2).sum() for r, g in zip(sizes, step_gradients, strict=True))))
        recent = sorted(norms[-window:])
        clip = min(1.0, scale * recent[(len(recent) - 1) // 2] / norms[-1])
        for w, g, r, s in zip(tensors, step_gradients, sizes, memory, strict=True):
            g = g * clip
            true_r = math.sqrt(np.mean(w**2))
            h = (g * w).sum()
            s["m"], s["v"] = b1 * s["m"] + (1 - b1) * g, b2 * s["v"] + (1 - b2) * g**2
            s["n"], s["s"] = b1 * s["n"] + (1 - b1) * h, b2 * s["s"] + (1 - b2) * h**2
            bias = math.sqrt(1 - b2**t) / (1 - b1**t)
            step = bias * s["m"] / (np.sqrt(s["v"]) + eps)
            if w.size == 1:
                w -= 0.1 * lr * step
                continue
            growth = -bias * s["n"] / (math.sqrt(s["s"]) + eps)
            growth = 1.0 if true_r < 1e-5 else -1.0 if true_r > 3 else growth
            w += 0.1 * lr * growth * w - lr * min(r, 3.0) * step


def test_scaled_adam_is_its_formula():
    rng = np.random.default_rng(0)
    shapes = [(4, 3), (5,), (1,), (2, 3), (4,)]
    start = [rng.standard_normal(shape) for shape in shapes]
    start[3] *= 10  # larger than the bounds allow
    start[4] *= 0  # smaller
    gradients = [[rng.standard_normal(shape) * (30 if t in (3, 11) else 1) for shape in shapes] for t in range(15)]
    expected = [w.copy() for w in start]
    scaled_adam_by_hand(expected, gradients, 0.05, (0.9, 0.95), 1e-8, 2.0, 6)
    params = [nn.Parameter(torch.from_numpy(w.copy())) for w in start]
    optimizer = ScaledAdam(params, 0.05, clipping_steps=6)
    for step_gradients in gradients:
        for param, gradient in zip(params, step_gradients, strict=True):
            param.grad = torch.from_numpy(gradient)
        optimizer.step()
    for param, value in zip(params, expected, strict=True):
        # The remembered norms are fp32.
        np.testing.assert_allclose(param.detach().numpy(), value, rtol=1e-6, atol=1e-9)


def descend(weight, target, factor, steps=10):
    """Weights after steps of ScaledAdam on `factor` times the squared distance."""
    param = nn.Parameter(weight.clone())
    optimizer = ScaledAdam([param], eps=1e-30)
    for _ in range(steps):
        optimizer.zero_grad()
        (factor * (param - target).square().sum()).backward()
        optimizer.step()
    return param.detach()


@settings(max_examples=8, deadline=None)
@given(st.sampled_from([2.0**n for n in range(-10, 11)]), st.sampled_from([0.25, 0.5, 2.0]), st.integers(0, 99))
def test_scaled_adam_minds_neither_the_scale_of_the_loss_nor_of_the_tensor(factor, size, seed):
    generator = torch.Generator().manual_seed(seed)
    weight, target = (0.1 * torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    plain = descend(weight, target, 1.0)
    torch.testing.assert_close(descend(weight, target, factor), plain)
    torch.testing.assert_close(descend(size * weight, size * target, 1.0), size * plain)


def test_scaled_adam_clips_an_outlier_to_twice_the_median():
    def after(last):
        param = nn.Parameter(torch.ones(10))
        optimizer = ScaledAdam([param], 0.0)  # the rate of zero keeps the weights, and so the norms
        for size in [1.0] * 9 + [last]:
            param.grad = torch.full((10,), size)
            optimizer.step()
        return optimizer.state[param]["exp_avg"][0].item()

    assert after(100.0) == pytest.approx(after(2.0)) and after(1.9) < after(2.0)


def test_scaled_adam_grows_zeros_and_holds_tensors_near_its_bounds():
    zero, huge = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.full((8,), 10.0))
    optimizer = ScaledAdam([zero, huge], 0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(500):
        # Always the same direction for the zeros; nothing but noise for the others.
        zero.grad, huge.grad = torch.full((8,), -1.0), torch.randn(8, generator=generator)
        optimizer.step()
    assert (zero > 3).all() and (
        zero < 30.1
    ).all()  # the way back at 30, lr 0.1 30, is as fast as the largest step, lr 3
    assert huge.square().mean().sqrt() < 4


# ------------------------------------------------------------------ configuration and failure


@pytest.mark.parametrize("config", [CodecTrainConfig, Xcodec2TrainConfig, HubertTrainConfig])
def test_codecs_train_with_adamw_only(config):
    assert config().optim.name == "adamw"
    with pytest.raises(ConfigError, match="muon is for language models"):
        config(optim=OptimConfig(name="muon"))


def test_eden_falls_with_steps_and_with_epochs():
    eden = OptimConfig(lr=0.05, schedule="eden", warmup_steps=200)
    assert eden.lr_at(0) == 0.025 and eden.lr_at(100) == pytest.approx(0.0375, rel=1e-3)
    assert eden.lr_at(5000) == pytest.approx(0.05 * 2**-0.25)
    assert eden.lr_at(500_000) == pytest.approx(0.05 * 0.1, rel=1e-3)
    epochs = OptimConfig(lr=0.05, schedule="eden", epoch_steps=1000, eden_epochs=3, eden_steps=6000)
    assert epochs.lr_at(3500) == pytest.approx(0.05 * (1 + (3500 / 6000) ** 2) ** -0.25 * 2**-0.25)
    for wrong in ({"eden_steps": 0}, {"epoch_steps": -1}, {"clipping_scale": 0}, {"clipping_steps": 0}):
        with pytest.raises(ConfigError, match=f"optim.{next(iter(wrong))}"):
            OptimConfig(**wrong)


def test_sharded_parameters_are_refused_but_by_adamw():
    from torch.distributed.tensor import DTensor, Shard, init_device_mesh

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Linear(4, 4, bias=False)
        late = {name: make_optimizer(model, RECIPES[name]) for name in ("muon", "scaled_adam")}
        shard = DTensor.from_local(model.weight.data, init_device_mesh("cpu", (1,)), [Shard(0)])
        model.weight = nn.Parameter(shard)
        for name, optimizer in late.items():
            with pytest.raises(ConfigError, match=f"optim.name: {name} needs whole parameters"):
                make_optimizer(model, RECIPES[name])
            optimizer.param_groups[0]["params"][0] = model.weight  # as accelerate does when it shards
            with pytest.raises(ConfigError, match=f"optim.name: {name} needs whole parameters"):
                optimizer.step()
        adamw = make_optimizer(model, RECIPES["adamw"])
        before = model.weight.to_local().clone()
        model.weight.square().sum().backward()
        adamw.step()
        assert not torch.equal(model.weight.to_local(), before)
    finally:
        torch.distributed.destroy_process_group()
