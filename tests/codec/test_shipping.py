"""Codecs as they ship: half precision, without moving averages, readable by transformers; old files survive errors."""

import errno
import json

import pytest
import torch
from safetensors import safe_open
from transformers import XcodecModel

from xcodec_lm.codec import load as loading
from xcodec_lm.codec.load import load_codec, save_codec, verify_fingerprint
from xcodec_lm.configs.errors import TokenError, XcodecLMError


def noise(samples=8000):
    return torch.randn(1, 1, samples, generator=torch.Generator().manual_seed(1)) * 0.1


@pytest.mark.parametrize("kind", ["twin_folder", "teacher_folder"])
def test_half_precision_is_smaller_and_verifies(kind, request, tmp_path):
    codec = load_codec(request.getfixturevalue(kind))
    save_codec(codec, tmp_path / "whole")
    save_codec(codec, tmp_path / "half", name="small", half=True)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.55 * sizes[0]
    stated, computed = verify_fingerprint(tmp_path / "half")
    again = load_codec(tmp_path / "half")
    assert stated == computed == again.spec.fingerprint and again.spec.name == "small"
    assert again.fc.weight.dtype == torch.float32 and again.quantizer.codebooks()[0].cluster_size.sum() > 0


def test_transformers_reads_what_ships(teacher_folder, tmp_path):
    save_codec(load_codec(teacher_folder), tmp_path / "half", half=True)
    ours = load_codec(tmp_path / "half")
    peer = XcodecModel.from_pretrained(tmp_path / "half", dtype=torch.float32).eval()
    with torch.no_grad():
        codes = peer.encode(noise(), return_dict=True).audio_codes
    assert torch.equal(ours.encode(noise(), n_q=codes.shape[1]).codes, codes)


def test_a_full_disk_leaves_the_old_codec(twin_folder, tmp_path, monkeypatch):
    codec = load_codec(twin_folder)
    save_codec(codec, tmp_path, name="old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(tensors, path, metadata=None):
        path.write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loading, "save_file", full)
    with pytest.raises(XcodecLMError, match=r"No space left.*unchanged"):
        save_codec(codec, tmp_path, name="new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert load_codec(tmp_path).spec.name == "old"


def test_decoding_only_reads_only_what_it_needs(teacher_folder, tmp_path, monkeypatch):
    whole = load_codec(teacher_folder)
    tokens = whole.encode(noise())
    read = []
    original = safe_open

    class Spy:
        def __init__(self, *args, **options):
            self.handle = original(*args, **options)

        def __enter__(self):
            self.handle.__enter__()
            return self

        def __exit__(self, *error):
            return self.handle.__exit__(*error)

        def keys(self):
            return self.handle.keys()

        def get_tensor(self, key):
            read.append(key)
            return self.handle.get_tensor(key)

    monkeypatch.setattr("xcodec_lm.codec.fingerprints.safe_open", Spy)
    codec = load_codec(teacher_folder, decode_only=True)
    assert read and all(key.startswith(("acoustic_decoder.", "fc2.", "quantizer.")) for key in read)
    assert not hasattr(codec, "semantic_model") and codec.spec == whole.spec
    torch.testing.assert_close(codec.decode(tokens)[0], whole.decode(tokens)[0], rtol=0, atol=0)
    with pytest.raises(TokenError, match="decode_only"):
        codec.encode(noise())
    with pytest.raises(XcodecLMError, match="decode_only"):
        save_codec(codec, tmp_path)


def test_damaged_folders_are_refused(twin_folder, tmp_path):
    codec = load_codec(twin_folder)
    save_codec(codec, tmp_path / "a")
    weights = tmp_path / "a" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(XcodecLMError, match="cannot be read"):
        load_codec(tmp_path / "a")
    weights.unlink()
    with pytest.raises(XcodecLMError, match=r"no model\.safetensors"):
        load_codec(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config["xcodec_lm"]["model"]["latent_dim"] += 1
    weights.write_bytes(whole)
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    with pytest.raises(XcodecLMError, match="do not fit"):
        load_codec(tmp_path / "a")
