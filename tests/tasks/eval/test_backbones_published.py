"""Published files become plug-ins: same numbers as the papers' arithmetic, and every wrong name is told."""

import json

import numpy as np
import pytest
import torch
from backbone_references import (
    cnn14_outputs,
    cnn14_state,
    ecapa_embedding,
    ecapa_shapes,
    ecapa_vector,
    random_state,
    slaney_bank,
    ssl_shapes,
    utmos_score,
    utmos_shapes,
    vggish_patches,
    vggish_state,
    vggish_vectors,
)

from xcodec_lm.codec.semantic import quiet_transformers
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.eval.backbones import cnn14, hf_xvector, logmel_stats, mert, utmos22, vggish, wavlm_ecapa
from xcodec_lm.tasks.eval.backbones.mel import slaney_filters
from xcodec_lm.tasks.eval.backbones.ssl_models import equal_pieces, model_folder
from xcodec_lm.tasks.eval.texture import texture

RATE = 16_000


def noise(seconds, rate=RATE, seed=0, level=0.1):
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * rate))).astype(np.float32)


def saved(state, path, wrapper=None):
    torch.save({wrapper: state, "iteration": 3} if wrapper else state, path)
    return path


@pytest.fixture(scope="module")
def states():
    return {
        "cnn14": cnn14_state(), "vggish": vggish_state(), "utmos": random_state(utmos_shapes(), 1),
        "ecapa": random_state(ecapa_shapes(), 2),
    }  # fmt: skip


LOADERS = {"cnn14": cnn14.load_16k, "vggish": vggish.load, "utmos": utmos22.load, "ecapa": wavlm_ecapa.load}
FILES = {"cnn14": "model", "vggish": None, "utmos": None, "ecapa": "model"}
"""Key under which a published file holds the weights."""


# ------------------------------------------------------------------ against a second computation


@pytest.mark.parametrize("rate", [16_000, 32_000])
def test_cnn14_equals_its_definition(rate, tmp_path):
    state = cnn14_state(rate, seed=3)
    load = {16_000: cnn14.load_16k, 32_000: cnn14.load_32k}[rate]
    judge = load(saved(state, tmp_path / "Cnn14.pth", "model"))
    assert (judge.name, judge.sample_rate) == (f"cnn14-{rate // 1000}k", rate)
    for seconds in (0.7, 2.3):
        wav = noise(seconds, rate) + np.float32(0.02)  # the offset has to go
        vector, logits = cnn14_outputs(state, wav, rate)
        np.testing.assert_allclose(judge.clip(wav), vector, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(judge.class_logits(wav), logits, rtol=1e-3, atol=1e-4)
        assert judge.frames(wav).shape == (1, len(vector))


def test_cnn14_of_the_other_rate_is_refused(tmp_path):
    path = saved(cnn14_state(32_000), tmp_path / "Cnn14_mAP=0.431.pth", "model")
    with pytest.raises(XcodecLMError, match="model at 32 kHz, not Cnn14 at 16 kHz"):
        cnn14.load_16k(path)


@pytest.mark.parametrize("key", ["logmel_extractor.melW", "spectrogram_extractor.stft.conv_imag.weight"])
def test_cnn14_with_another_spectrum_is_refused(key, states, tmp_path):
    changed = states["cnn14"] | {key: states["cnn14"][key] * 1.5}
    with pytest.raises(XcodecLMError, match=key):
        cnn14.load_16k(saved(changed, tmp_path / "other.pth", "model"))


def test_vggish_equals_its_definition(states, tmp_path):
    judge = vggish.load(saved(states["vggish"], tmp_path / "vggish.pth"))
    wav = noise(2.2)
    expected = vggish_vectors(states["vggish"], wav)
    assert expected.min() < 0  # a last ReLU would show
    np.testing.assert_allclose(judge.frames(wav), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(judge.clip(wav), expected.mean(axis=0), rtol=1e-4, atol=1e-5)
    pca = {"pproc.pca_matrix": torch.zeros(2, 2), "pproc.pca_means": torch.zeros(2, 1)}
    again = vggish.load(saved(states["vggish"] | pca, tmp_path / "with-pca.pth"))
    assert again.fingerprint == judge.fingerprint


@pytest.mark.parametrize(
    ("samples", "patches"),
    [(1600, 1), (15_599, 1), (15_600, 1), (30_959, 1), (30_960, 2), (160_000, 10), (960_000, 62)],
)
def test_vggish_patches(samples, patches):
    """One for every whole 0.96 s, the last one with the 15 ms that its window reaches beyond."""
    found = vggish.log_mel_patches(torch.from_numpy(noise(samples / RATE)))
    assert found.shape == (patches, 96, 64)
    if 15_600 <= samples <= 30_960:
        np.testing.assert_allclose(found, np.stack(vggish_patches(noise(samples / RATE))), atol=1e-5)


def test_utmos_equals_its_definition(states, tmp_path):
    judge = utmos22.load(saved(states["utmos"], tmp_path / "utmos.pt"))
    clips = [noise(seconds, seed=seed) for seed, seconds in enumerate((1.0, 1.013))]  # 49 frames and 50
    for found, wav in zip(judge.predict(clips), clips, strict=True):
        assert found["utmos"] == pytest.approx(utmos_score(states["utmos"], torch.from_numpy(wav)), abs=1e-4)


def test_utmos_maps_its_output_to_opinions(states, tmp_path):
    """Times 2 plus 3: -1 is the worst opinion, 1 the best."""
    for output in (-1.0, 0.0, 1.0):
        state = dict(states["utmos"])
        state["projection.2.weight"] = torch.zeros_like(state["projection.2.weight"])
        state["projection.2.bias"] = torch.tensor([output])
        judge = utmos22.load(saved(state, tmp_path / "constant.pt"))
        assert judge.predict([noise(0.5)]) == [{"utmos": pytest.approx(3 + 2 * output)}]


def test_wavlm_ecapa_equals_its_definition(states, tmp_path):
    judge = wavlm_ecapa.load(saved(states["ecapa"], tmp_path / "wavlm_large_finetune.pth", "model"))
    assert judge.ssl.config.do_stable_layer_norm  # so the last state needs its norm
    clips = [noise(1.3, seed=1), noise(2.0, seed=2)]
    expected = [ecapa_embedding(states["ecapa"], torch.from_numpy(clip)) for clip in clips]
    found = judge.embed(clips)
    np.testing.assert_allclose(found, np.stack(expected), atol=2e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    short = noise(0.3, seed=3)
    repeated = np.tile(short, 4)[:RATE]
    np.testing.assert_allclose(judge.embed([short]), judge.embed([repeated]), atol=1e-6)


def test_ecapa_hears_repeated_frames_as_the_same_voice(states):
    """Convolutions see a seam; in the middle of long repetitions nothing changes, so more repetitions say the same."""
    weights = states["ecapa"]
    head = wavlm_ecapa.wavlm_ecapa_from_published(weights, "file")[1]
    frames = torch.randn(40, 128, generator=torch.Generator().manual_seed(0))
    once, many, more = (head(frames.repeat(times, 1)) for times in (1, 8, 32))
    assert 0 < float((many - more).norm()) < 0.3 * float((once - more).norm())  # seams weigh less and less
    assert torch.allclose(head(frames), ecapa_vector(weights, frames), rtol=1e-3, atol=1e-3)
    constant = frames[:1]
    pooled = head.pooling(constant.repeat(9, 1).T[None, :1].repeat(1, 24, 1))
    assert torch.allclose(pooled[0, :24], constant[0, 0].expand(24))  # the mean of a constant, without deviation
    assert float(pooled[0, 24:].max()) <= 1e-3


def test_paper_size_of_wavlm_ecapa_has_711_tensors():
    """As many as the published file."""
    ssl = ssl_shapes("feature_extract.model.", 1024, 512, 4096, 24, 128, 16, wavlm_heads=16, buckets=320)
    head = {name: shape for name, shape in ecapa_shapes().items() if not name.startswith("feature_extract.")}
    assert len(ssl) == 488
    assert len(ssl) + len(head) == 711


# ------------------------------------------------------------------ MERT and x-vectors, by transformers' own forward


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
         "conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}  # fmt: skip


def mert_folder(folder, **changes):
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(4)
    sizes = SIZES | {"num_hidden_layers": 3}
    with quiet_transformers():
        model = HubertModel(HubertConfig(**sizes)).eval()
    spelling = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = {}
    for name, value in model.state_dict().items():
        for ours, theirs in spelling.items():
            name = name.replace(ours, theirs)
        state[name] = value
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "pytorch_model.bin")
    config = {**model.config.to_dict(), "model_type": "mert_model", "architectures": ["MERTModel"],
              "auto_map": {"AutoModel": "modeling_MERT.MERTModel"}, "sample_rate": 24_000, "deepnorm": False,
              "feature_extractor_cqt": False, "feature_extractor_cqt_bins": 84, "attention_relax": -1.0,
              **changes}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "sampling_rate": 24_000}))
    return folder, model


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_mert_equals_a_hubert(layer, tmp_path):
    folder, model = mert_folder(tmp_path / "mert")
    judge = mert.load(folder, layer=layer)
    wav = noise(1.0, 24_000)
    normal = torch.from_numpy((wav - wav.mean()) / np.sqrt(wav.var() + 1e-7))
    with torch.inference_mode():
        expected = model(normal[None], output_hidden_states=True).hidden_states[layer][0].numpy()
    assert (judge.name, judge.sample_rate, judge.dim) == (f"mert-layer{layer}", 24_000, 32)
    found = judge.frames(wav)
    assert found.shape == (74, 32)  # 75 frames a second, less the front end's reach
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(judge.clip(wav), expected.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("change", [{"deepnorm": True}, {"attention_relax": 32.0}, {"feature_extractor_cqt": True}])
def test_mert_of_another_architecture_is_refused(change, tmp_path):
    folder, _ = mert_folder(tmp_path / "mert", **change)
    with pytest.raises(XcodecLMError, match=next(iter(change))):
        mert.load(folder)


def test_mert_names_what_does_not_fit(tmp_path):
    folder, _ = mert_folder(tmp_path / "mert")
    with pytest.raises(XcodecLMError, match=r"layer 9 .* 0\.\.3"):
        mert.load(folder)  # the tiny one has three
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    state["encoder.extra"] = state.pop("encoder.layer_norm.bias")
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(XcodecLMError, match=r"missing: encoder\.layer_norm\.bias"):
        mert.load(folder, layer=1)


def xvector_folder(folder, **changes):
    from transformers import WavLMConfig, WavLMForXVector

    torch.manual_seed(5)
    sizes = SIZES | {"tdnn_dim": [16, 16, 16, 16, 24], "xvector_output_dim": 20, "num_labels": 7}
    with quiet_transformers():
        model = WavLMForXVector(WavLMConfig(**sizes | changes)).eval()
        model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    return folder, model


@pytest.mark.parametrize("weighted", [False, True])
def test_xvector_equals_transformers(weighted, tmp_path):
    folder, model = xvector_folder(tmp_path / "xvector", use_weighted_layer_sum=weighted)
    judge = hf_xvector.load(folder)
    wav = noise(1.4)
    normal = torch.from_numpy((wav - wav.mean()) / np.sqrt(wav.var() + 1e-7))
    with torch.inference_mode():
        expected = model(normal[None]).embeddings[0].numpy()
    np.testing.assert_allclose(judge.embed([wav])[0], expected / np.linalg.norm(expected), atol=1e-4)


def test_xvector_refuses_missing_weights_and_other_models(tmp_path):
    from safetensors.torch import load_file, save_file

    folder, _ = xvector_folder(tmp_path / "xvector")
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({key: value for key, value in weights.items() if key != "projector.bias"}, path, {"format": "pt"})
    with pytest.raises(XcodecLMError, match=r"missing weights: projector\.bias"):
        hf_xvector.load(folder)
    with pytest.raises(XcodecLMError, match="not a WavLM"):
        hf_xvector.load(mert_folder(tmp_path / "mert")[0])


# ------------------------------------------------------------------ what does not fit


@pytest.mark.parametrize("kind", list(LOADERS))
def test_missing_extra_and_misshapen_weights_are_named(kind, states, tmp_path):
    state = states[kind]
    plain = [key for key in state if not key.startswith(("spectrogram", "logmel", "loss", "mask_emb"))]
    rng = np.random.default_rng(0)
    for key in rng.choice([key for key in plain if key.endswith("bias")], 3, replace=False):
        path = saved({name: value for name, value in state.items() if name != key}, tmp_path / "less.pth", FILES[kind])
        with pytest.raises(XcodecLMError, match=str(key).replace(".", r"\.")):
            LOADERS[kind](path)
    prefix = {"utmos": "wav2vec2.", "ecapa": "feature_extract.model."}.get(kind, "")
    for key in {"stranger.weight", f"{prefix}stranger.weight"}:
        path = saved(state | {key: torch.zeros(2)}, tmp_path / "more.pth", FILES[kind])
        with pytest.raises(XcodecLMError, match=r"stranger\.weight"):
            LOADERS[kind](path)
    key = next(name for name in plain if name.endswith("bias"))
    path = saved(state | {key: torch.zeros(len(state[key]) + 1)}, tmp_path / "wide.pth", FILES[kind])
    with pytest.raises(XcodecLMError, match="shape"):
        LOADERS[kind](path)


@pytest.mark.parametrize("kind", list(LOADERS))
def test_no_file_a_folder_and_a_damaged_file_are_told(kind, tmp_path):
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04 and no more")
    for source in (None, tmp_path / "nothing.pth", tmp_path, tmp_path / "broken.pth"):
        with pytest.raises(XcodecLMError):
            LOADERS[kind](source)


def test_a_pickle_with_code_is_not_run(tmp_path):
    import os

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"model": {"features.0.weight": Evil()}}, tmp_path / "evil.pth")
    with pytest.raises(XcodecLMError, match="not loaded"):
        vggish.load(tmp_path / "evil.pth")
    assert not (tmp_path / "made").exists()


def test_a_changed_weight_changes_the_fingerprint(states, tmp_path):
    before = vggish.load(saved(states["vggish"], tmp_path / "a.pth"))
    changed = states["vggish"] | {"features.0.bias": states["vggish"]["features.0.bias"] + 1e-3}
    assert before.fingerprint != vggish.load(saved(changed, tmp_path / "b.pth")).fingerprint
    again = vggish.load(saved(states["vggish"], tmp_path / "c.pth"))
    assert before.fingerprint == again.fingerprint and len(before.fingerprint) == 64


def test_a_hub_id_is_fetched_only_because_it_is_named(tmp_path, monkeypatch):
    import huggingface_hub

    folder, _ = mert_folder(tmp_path / "mert")
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(folder))
    assert model_folder(str(folder), "a folder") == folder
    with pytest.raises(XcodecLMError):
        model_folder(tmp_path / "nowhere", "a folder")
    with pytest.raises(XcodecLMError):
        model_folder(None, "a folder")
    assert asked == []
    assert mert.load("m-a-p/MERT-v1-95M", layer=1).ancestry["weights_from"] == "m-a-p/MERT-v1-95M"
    assert asked == ["m-a-p/MERT-v1-95M"]


# ------------------------------------------------------------------ parts


def test_slaney_filters_equal_their_definition():
    for rate, size, bands, low, high in ((16_000, 512, 64, 50, 8000), (16_000, 400, 40, 0, 8000)):
        found = slaney_filters(np.fft.rfftfreq(size, 1 / rate), bands, low, high)
        np.testing.assert_allclose(found, slaney_bank(rate, size, bands, low, high), atol=1e-12)


def test_long_clips_are_cut_evenly():
    pieces = equal_pieces(torch.arange(61 * RATE), RATE)
    assert [len(piece) for piece in pieces] == [325_334, 325_333, 325_333]
    assert torch.equal(torch.cat(pieces), torch.arange(61 * RATE))
    assert len(equal_pieces(torch.zeros(30 * RATE), RATE)) == 1


def test_logmel_stats_are_the_texture():
    judge, wav = logmel_stats.load(), noise(2.0)
    np.testing.assert_allclose(judge.frames(wav), texture(torch.from_numpy(wav), RATE), rtol=1e-6)
    assert judge.frames(wav).shape == (4, judge.dim) and judge.fingerprint == ""
    with pytest.raises(UsageError):
        logmel_stats.load("weights.pth")
