"""The table of known codecs: its numbers agree with the codecs themselves, and it says what is missing here."""

import json
import shutil

import pytest
import torch
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel, MimiConfig, MimiModel

from xcodec_lm.codec import load_codec, registry
from xcodec_lm.codec.adapters.models import DacAdapter, EncodecAdapter, MimiAdapter
from xcodec_lm.codec.registry import FOREIGN, codec_rows, codec_table, known_codecs, missing
from xcodec_lm.configs.errors import XcodecLMError


def named(name):
    return next(codec for codec in FOREIGN if codec.name == name)


def published(name):
    """The architecture that is published under a name, without weights."""
    dac = {
        "dac-16k": ((2, 4, 5, 8), 12, 16000),
        "dac-24k": ((2, 4, 5, 8), 32, 24000),
        "dac-44k": ((2, 4, 8, 8), 9, 44100),
    }
    if name in dac:
        ratios, books, rate = dac[name]
        return DacAdapter, DacModel(DacConfig(downsampling_ratios=ratios, n_codebooks=books, sampling_rate=rate))
    if name == "mimi-24k":
        return MimiAdapter, MimiModel(MimiConfig())
    return EncodecAdapter, EncodecModel(EncodecConfig())


@pytest.mark.parametrize("name", ["encodec-24k", "dac-16k", "dac-24k", "dac-44k", "mimi-24k"])
def test_numbers_are_those_of_the_published_architecture(name, monkeypatch):
    monkeypatch.setattr("xcodec_lm.codec.adapters.models._fingerprint", lambda model: "not hashed")
    with torch.device("meta"):
        adapter_class, model = published(name)
    adapter, entry = adapter_class(model), named(name)
    for field in ("name", "sample_rate", "output_sample_rate", "hop_samples", "codebook_sizes"):
        assert getattr(adapter.spec, field) == getattr(entry, field), field
    assert adapter.causal == entry.causal
    counted = sum(p.numel() for p in model.parameters())
    counted += sum(b.numel() for key, b in model.named_buffers() if key.endswith((".embed", ".embed_sum")))
    assert counted / 1e6 == pytest.approx(entry.parameters_m, abs=0.1)


def test_names_are_unique_and_rates_known():
    assert len({codec.name for codec in FOREIGN}) == len({codec.source for codec in FOREIGN}) == len(FOREIGN) == 14
    rates = {codec.name: float(codec.spec.frame_rate) for codec in FOREIGN}
    assert rates["mimi-24k"] == 12.5 and rates["encodec-24k"] == 75 and rates["higgs-v2"] == 25
    assert named("xcodec-hubert-general").spec.bitrate_kbps == 4
    assert named("neucodec").spec.bitrate_kbps == pytest.approx(0.8)


def test_says_what_is_missing(tmp_path, monkeypatch):
    encodec = named("encodec-24k")
    assert "facebook/encodec_24khz" in missing(encodec, tmp_path)
    weights = tmp_path / "models--facebook--encodec_24khz" / "snapshots" / "abc" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    (weights.parent / "config.json").write_text("{}", encoding="utf-8")
    assert missing(encodec, tmp_path)  # a config alone is not enough
    weights.write_bytes(b"")
    assert missing(encodec, tmp_path) == ""
    assert missing(named("higgs-v2"), tmp_path) == "no adapter in this release"
    monkeypatch.setattr(registry, "_importable", lambda module: module != "einops")
    assert missing(named("speechtokenizer"), tmp_path).startswith("package einops: pip install")


def test_a_dangling_link_in_the_cache_is_not_weights(tmp_path):
    snapshot = tmp_path / "models--kyutai--mimi" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(tmp_path / "gone")
    assert missing(named("mimi-24k"), tmp_path)


def test_shipped_codecs_come_first_with_their_own_numbers(twin_folder, teacher_folder, tmp_path):
    for folder in (twin_folder, teacher_folder):
        shutil.copytree(folder, tmp_path / folder.name)
    (tmp_path / "some-teacher").mkdir()
    (tmp_path / "some-teacher" / "config.json").write_text('{"model_type": "hubert"}', encoding="utf-8")
    first, second, *rest = known_codecs(tmp_path)
    assert (first.name, second.name) == ("tiny-teacher", "tiny-twin") and tuple(rest) == FOREIGN
    codec = load_codec(twin_folder)
    assert second.codebook_sizes == codec.spec.codebook_sizes and second.hop_samples == codec.spec.hop_samples
    books = sum(book.embed.numel() for book in codec.quantizer.codebooks())
    assert second.parameters_m == pytest.approx((sum(p.numel() for p in codec.parameters()) + books) / 1e6)
    assert missing(second, tmp_path) == ""
    assert tuple(known_codecs(tmp_path / "nowhere")) == FOREIGN


def test_a_damaged_shipped_codec_is_an_error(twin_folder, tmp_path):
    shutil.copytree(twin_folder, tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(XcodecLMError, match="broken"):
        known_codecs(tmp_path)


def test_table_shows_every_codec_on_a_line(tmp_path):
    lines = codec_table(FOREIGN, tmp_path).splitlines()
    assert lines[0].split()[:3] == ["codec", "Hz", "frames/s"]
    for codec, line in zip(FOREIGN, lines[1:], strict=False):
        assert line.startswith(codec.name) and codec.licence in line
    text = "\n".join(lines)
    assert "16000 -> 24000" in text and "86.13" in text and "12.5 " in text and "8 x 1024" in text
    rows = codec_rows(FOREIGN, tmp_path)
    assert json.loads(json.dumps(rows))[0]["n_q"] == 8 and all(row["missing"] for row in rows)
