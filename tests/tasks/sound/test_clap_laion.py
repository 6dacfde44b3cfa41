"""The `laion-clap` package itself beside our back end, on the same random weights."""

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.sound.clap import load_clap

ROOT = Path(__file__).resolve().parents[3]

COMPARE = """
import importlib, json, socket, sys
from pathlib import Path
import numpy as np, torch
from transformers import RobertaConfig
from transformers.convert_slow_tokenizer import bytes_to_unicode
from xcodec_lm.tasks.sound.clap import load_clap
from xcodec_lm.tasks.sound.clap_laion import offline
from xcodec_lm.tasks.sound.clap_laion_files import roberta_tokenizer

def refuse(*_):
    raise RuntimeError("the network was asked")

socket.socket.connect = refuse
torch.set_num_threads(1)
folder, tower = Path(sys.argv[1]), sys.argv[2]
symbols = ["<s>", "<pad>", "</s>", "<unk>", *bytes_to_unicode().values(), "<mask>"]
(folder / "vocab.json").write_text(json.dumps({symbol: index for index, symbol in enumerate(symbols)}))
(folder / "merges.txt").write_text("#version: 0.2\\n")
torch.manual_seed(0)
sizes = RobertaConfig(vocab_size=300, hidden_size=768, num_hidden_layers=2, num_attention_heads=12,
                      intermediate_size=256, max_position_embeddings=514, layer_norm_eps=1e-5)
with offline(roberta_tokenizer(folder), sizes):
    package = importlib.import_module("laion_clap")
    theirs = package.CLAP_Module(enable_fusion=False, device="cpu", amodel=tower)
state = theirs.model.state_dict()
for name, value in state.items():
    made_of_sizes = name.startswith(("audio_branch.spectrogram", "audio_branch.logmel")) or "attn_mask" in name
    if value.is_floating_point() and not made_of_sizes:
        value.add_(0.02 * torch.randn(value.shape))  # biases and norms begin as constants
state["audio_branch.bn0.running_mean"].fill_(-30)
state["audio_branch.bn0.running_var"].fill_(300)
path = folder / f"{tower}.pt"
torch.save({"epoch": 1, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
ours, other = load_clap(path), load_clap(f"laion-clap:{path}")
rng = np.random.default_rng(0)
wavs = [(0.3 * rng.uniform(-1, 1, round(48_000 * seconds))).astype(np.float32) for seconds in (0.1, 3, 10, 12)]
wavs[1] *= np.hanning(len(wavs[1])).astype(np.float32)
texts = ["a dog barking", "rain on a roof " * 40, "дождь"]
theirs.eval()
heard = ours.embed_audio(wavs)
found = {
    "audio": float((heard - other.embed_audio(wavs)).abs().max()),
    "text": float((ours.embed_texts(texts) - other.embed_texts(texts)).abs().max()),
    "apart": float((heard[0] - heard[1]).abs().max()),
    "same": ours.fingerprint == other.fingerprint,
}
theirs.double(), ours.model.double()
with torch.no_grad():
    found["double"] = max(
        float((ours.audio_vectors([wav]) - theirs.get_audio_embedding_from_data([wav], use_tensor=True)).abs().max())
        for wav in (torch.from_numpy(wav).double() for wav in wavs[:3])
    )
print(json.dumps(found))
"""


def test_without_the_package_the_install_line_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(XcodecLMError) as error:
        load_clap(f"laion-clap:{tmp_path / 'file.pt'}")
    assert "pip install 'xcodec-lm[clap]'" in error.value.hint


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A Python with laion-clap: this one, or one in an environment of its own that sees this one's packages."""
    if importlib.util.find_spec("laion_clap") is not None:
        return sys.executable
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    query = [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    site = subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
    Path(site, "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "laion-clap>=1.1.7"], check=True
    )
    return str(python)


@pytest.mark.slow
@pytest.mark.net
@pytest.mark.parametrize("tower", ["HTSAT-tiny", "HTSAT-base"])
def test_both_back_ends_give_the_same_embeddings(python, tmp_path, tower):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / ".typing"), environment.get("PYTHONPATH", "")])
    command = [python, "-c", COMPARE, str(tmp_path), tower]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"] and found["apart"] > 1e-3
    assert max(found["text"], found["audio"], found["double"]) < 2e-6, found
