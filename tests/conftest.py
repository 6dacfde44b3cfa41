"""What tests of several folders share: tiny codecs on disk, short recordings, the command line in process."""
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import settings

from xcodec_lm.codec.load import save_codec
from xcodec_lm.codec.runtime import progress
from xcodec_lm.codec.runtime.memory import keep_freed_memory
from xcodec_lm.codec.semantic import build_teacher, quiet_transformers
from xcodec_lm.codec.xcodec import XCodec
from xcodec_lm.configs.codec import CodecModelConfig, QuantizerConfig, SemanticConfig

torch.set_num_threads(1)  # small tensors gain nothing from more, and results then do not depend on the machine
keep_freed_memory()  # as training does; halves the time of long recordings
settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

RATE = 16_000


def build_tiny_codec(teacher: str, seed: int) -> XCodec:
    """A codec with random weights whose codebooks are seeded normals at the scale of what each layer quantizes."""
    quantizer = QuantizerConfig(n_q=4, codebook_size=64, dim=24, n_q_choices=(1, 2, 4))
    model = CodecModelConfig(encoder_channels=1, latent_dim=8, decoder_channels=16, quantizer=quantizer)
    semantic = SemanticConfig(teacher=teacher, dim=16)
    with quiet_transformers():
        built = None if teacher == "none" else build_teacher(semantic)
    torch.manual_seed(seed)
    codec = XCodec(model, semantic, built).eval().requires_grad_(False)
    rng = torch.Generator().manual_seed(seed)
    wav = 0.3 * torch.randn(1, 1, 2 * RATE, generator=rng)
    with torch.inference_mode():
        residual = codec.latents(wav, codec.teacher_features(wav))[0].T  # (T, D)
    for book in codec.quantizer.codebooks():
        book.embed.copy_(residual.mean(0) + residual.std(0) * torch.randn(book.embed.shape, generator=rng))
        residual = residual - book.embed[book.nearest(residual)]
    return codec


def _saved(teacher: str, seed: int, folder):
    save_codec(build_tiny_codec(teacher, seed), folder, name=folder.name)
    return folder


@pytest.fixture(scope="session")
def twin_folder(tmp_path_factory):
    """A saved codec without semantics."""
    return _saved("none", 1, tmp_path_factory.mktemp("codecs") / "tiny-twin")


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory):
    """A saved codec with an untrained teacher."""
    return _saved("random:0", 2, tmp_path_factory.mktemp("codecs") / "tiny-teacher")


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory):
    """A saved codec of the same sizes as `twin_folder` with other weights."""
    return _saved("none", 3, tmp_path_factory.mktemp("codecs") / "tiny-other")


@pytest.fixture(scope="session", params=["twin", "teacher"])
def codec_folder(request):
    """Each kind of codec in turn."""
    return request.getfixturevalue(f"{request.param}_folder")


@pytest.fixture
def write_wav(tmp_path):
    """Writes a recording below tmp_path: `write_wav("a.wav", seconds=1.0, rate=16_000, channels=1, kind="sine")`."""

    def write(name="a.wav", seconds=1.0, rate=RATE, channels=1, kind="sine", level=0.5, subtype=None):
        count = max(1, round(seconds * rate))
        if kind == "sine":
            time = np.arange(count)[:, None] / rate
            data = level * np.sin(2 * np.pi * 220 * (1 + np.arange(channels)) * time)
        else:
            data = level * np.random.default_rng(0).uniform(-1, 1, (count, channels))
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, data.astype(np.float32), rate, subtype=subtype)
        return path

    return write


@pytest.fixture
def cli(capsys):
    """Runs a command in this process: `code, out, err = cli("codec", "info", folder)`."""
    from xcodec_lm.tasks.cli import main

    def run(*argv):
        capsys.readouterr()
        code = main([str(word) for word in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(autouse=True)
def _not_quiet():
    """A `-q` of one test does not silence the next."""
    yield
    progress.set_quiet(False)
