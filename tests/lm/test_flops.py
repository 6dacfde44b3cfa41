"""FLOPs: the count of a real model, peaks by name, a measured peak, MFU."""

import time
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from xcodec_lm.configs.lm import GPTConfig
from xcodec_lm.lm import flops
from xcodec_lm.lm.flops import find_peak, flops_per_position, matmul_parameters, measure_peak, mfu, peak_by_name
from xcodec_lm.lm.gpt import GPT


@pytest.mark.parametrize("block, batch", [(32, 3), (255, 1)])
def test_count_is_that_of_the_operations_of_a_step(block, batch):
    config = GPTConfig(layers=3, heads=2, dim=48, block=block)
    model = GPT(config, vocab_size=192)
    ids = torch.zeros(batch, block, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    parameters = matmul_parameters(model, model.wte.weight)
    counted = batch * block * flops_per_position(parameters, config.layers, config.dim, block)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.03)
    # Without the tied output matrix, or without attention, it would not be.
    assert batch * block * flops_per_position(matmul_parameters(model), 3, 48, block) < 0.97 * counted
    assert batch * block * 6 * parameters < 0.97 * counted


def test_a_shared_matrix_counts_once():
    model = torch.nn.Module()
    model.emb, model.head = torch.nn.Embedding(10, 4), torch.nn.Linear(4, 10)
    assert matmul_parameters(model) == 40
    model.head.weight = model.emb.weight
    assert matmul_parameters(model, model.emb.weight) == 40


@pytest.mark.parametrize(
    "name, peak",
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 3090", 71e12),
        ("NVIDIA RTX A6000", 155e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("Tesla T4", 65e12),
        # Relatives with almost the same name, and a part of one: not the same peak.
        ("NVIDIA L40", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Tesla V100-PCIE-16GB", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_peaks_are_found_by_the_name_of_the_gpu(name, peak):
    assert peak_by_name(name) == peak


def test_the_peak_is_looked_up_for_16_bits_and_else_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(flops, "measure_peak", lambda device, dtype: 1e9)
    assert find_peak("cuda:0") == (989e12, "looked up")
    assert find_peak("cuda:0", torch.float32) == (1e9, "measured")
    assert find_peak("cpu") == (1e9, "measured")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce GTX 1080")
    assert find_peak("cuda") == (1e9, "measured")


def test_a_measured_peak_is_soon_there_and_no_product_is_much_faster(monkeypatch):
    state = torch.get_rng_state()
    measure_peak("cpu", torch.float32, 0.01)
    start = time.perf_counter()
    peak = measure_peak("cpu", torch.float32)
    assert time.perf_counter() - start < 2.0  # half a second and room for a busy machine
    assert 1e8 < peak < 1e14
    assert torch.equal(torch.get_rng_state(), state)
    # With a clock that says how long a device of 5 GFLOP/s takes, it finds those 5 GFLOP/s.
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(flops.time, "perf_counter", lambda: now.seconds)

    def product(a):
        now.seconds += (taken := 2 * a.shape[0] ** 3 / 5e9)
        return taken

    monkeypatch.setattr(flops, "_timed_product", product)
    assert measure_peak("cpu", torch.float32) == pytest.approx(5e9) and now.seconds < 0.5


def test_mfu_is_the_share_of_the_peak():
    assert mfu(4e12, 2.0, 8e12) == 0.25
