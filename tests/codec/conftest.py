"""Every kind of codec in miniature, with random weights: what holds for one must hold for all."""

import importlib.util
import warnings

import numpy as np
import pytest
import soundfile as sf
import torch
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel, MimiConfig, MimiModel

from xcodec_lm.codec.adapters.models import DacAdapter, EncodecAdapter, MimiAdapter
from xcodec_lm.codec.adapters.speechtokenizer import SpeechTokenizerAdapter, speechtokenizer_class
from xcodec_lm.codec.clips import write_manifest

FOREIGN = ["encodec", "dac-16k", "dac-44k", "mimi"]
if importlib.util.find_spec("speechtokenizer") and importlib.util.find_spec("einops"):
    FOREIGN.append("speechtokenizer")

SPEECHTOKENIZER = {
    "sample_rate": 16000,
    "strides": [8, 5, 4, 2],
    "n_filters": 2,
    "dimension": 8,
    "semantic_dimension": 8,
    "codebook_size": 64,
    "n_q": 4,
    "lstm_layers": 2,
    "bidirectional": True,
    "dilation_base": 2,
    "residual_kernel_size": 3,
    "n_residual_layers": 1,
    "activation": "ELU",
}


def build_foreign(kind: str, seed: int = 0):
    """A small codec of another project behind its adapter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapter = _build(kind)
        latents = adapter.extract(0.2 * torch.randn(1, 1, adapter.spec.sample_rate), "pre_vq").values[0]  # (D, T)
        mean, std = latents.mean(1), latents.std(1)
        for name, buffer in adapter.model.named_buffers():
            if name.endswith((".embed", ".embed_sum")):  # codebooks start at zero, where every code is the nearest
                books = torch.randn(buffer.shape)
                buffer.copy_(books if kind == "mimi" else mean + std * books)
                mean = torch.zeros_like(mean)
    return type(adapter)(adapter.model, *([SPEECHTOKENIZER] if kind == "speechtokenizer" else []))


def _build(kind: str):
    if kind == "encodec":
        config = EncodecConfig(
            num_filters=2, hidden_size=8, codebook_dim=8, codebook_size=64, target_bandwidths=[0.45, 1.8]
        )
        return EncodecAdapter(EncodecModel(config))
    if kind.startswith("dac"):
        rate, ratios = {"dac-16k": (16000, (2, 4, 5, 8)), "dac-44k": (44100, (2, 4, 8, 8))}[kind]
        config = DacConfig(
            encoder_hidden_size=2,
            decoder_hidden_size=32,
            downsampling_ratios=ratios,
            n_codebooks=4,
            codebook_size=64,
            sampling_rate=rate,
        )
        model = DacModel(config)
        for name, module in model.named_modules():  # its own initialisation shrinks signals to nothing
            if isinstance(module, (torch.nn.Conv1d, torch.nn.ConvTranspose1d)):
                inside = "res_unit" in name and name.endswith("conv2")
                torch.nn.init.xavier_normal_(module.weight, gain=0.3 if inside else 1.0)
        return DacAdapter(model)
    if kind == "mimi":
        config = MimiConfig(
            num_filters=2,
            hidden_size=16,
            codebook_size=64,
            codebook_dim=8,
            vector_quantization_hidden_dimension=8,
            num_quantizers=4,
            num_hidden_layers=2,
            intermediate_size=32,
            num_attention_heads=2,
            num_key_value_heads=2,
            upsample_groups=16,
            sliding_window=20,
        )
        return MimiAdapter(MimiModel(config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return SpeechTokenizerAdapter(speechtokenizer_class()(SPEECHTOKENIZER), SPEECHTOKENIZER)


@pytest.fixture(scope="session")
def chords(tmp_path_factory):
    """Writes second-long chords in noise, the last of them for validation, and returns their manifest."""

    def write(clips: int, rate: int):
        folder = tmp_path_factory.mktemp("corpus")
        rng = np.random.default_rng(0)
        rows = []
        for index in range(clips):
            time_s = np.arange(rate) / rate
            chord = sum(np.sin(2 * np.pi * f * time_s) for f in rng.uniform(100, 4000, 4)) * 0.1
            name = f"clip{index}.wav"
            sf.write(folder / name, (chord + 0.01 * rng.standard_normal(rate)).astype(np.float32), rate)
            split = "dev" if index == clips - 1 else "train"
            rows.append({"id": name, "audio": name, "duration": 1.0, "split": split})
        write_manifest(rows, folder / "clips.jsonl")
        return folder / "clips.jsonl"

    return write


@pytest.fixture(scope="session", params=FOREIGN)
def foreign(request):
    """Each adapter in turn."""
    return build_foreign(request.param)


@pytest.fixture(scope="session", params=[*FOREIGN, "twin", "xcodec"])
def any_codec(request):
    """Each adapter, the twin and an X-Codec in turn."""
    if request.param in FOREIGN:
        return build_foreign(request.param)
    from xcodec_lm.codec import load_codec

    return load_codec(request.getfixturevalue("twin_folder" if request.param == "twin" else "teacher_folder"))
