"""Backbones with published weights keep the contract of plug-ins, and answer to the shortest and softest clips."""

import numpy as np
import pytest
import torch
from backbone_references import cnn14_state, ecapa_shapes, random_state, utmos_shapes, vggish_state
from contract import check_contract
from test_backbones_published import mert_folder, noise, saved, xvector_folder

from xcodec_lm.tasks.eval import plugins
from xcodec_lm.tasks.eval.backbones import cnn14, hf_xvector, logmel_stats, mert, utmos22, vggish, wavlm_ecapa

EMBEDDERS = ("cnn14-16k", "cnn14-32k", "vggish", "mert-layer1", "logmel-stats")
SPEAKERS = ("wavlm-ecapa", "hf-xvector")
ALL = (*EMBEDDERS, *SPEAKERS, "utmos22")


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")

    def file(state, wrapper=None):
        return saved(state, folder / "file.pth", wrapper)

    found = [
        cnn14.load_16k(file(cnn14_state(), "model")), cnn14.load_32k(file(cnn14_state(32_000), "model")),
        vggish.load(file(vggish_state())), mert.load(mert_folder(folder / "mert")[0], layer=1), logmel_stats.load(),
        wavlm_ecapa.load(file(random_state(ecapa_shapes()), "model")),
        hf_xvector.load(xvector_folder(folder / "xvector")[0]), utmos22.load(file(random_state(utmos_shapes()))),
    ]  # fmt: skip
    return {judge.name: judge for judge in found}


def values(judge, wavs):
    """Whatever the plug-in gives for clips, as one row each."""
    if isinstance(judge, plugins.MosPredictor):
        return np.array([[row[name] for name in judge.scores] for row in judge.predict(wavs)])
    return judge.embed(wavs)


def test_plugins_are_of_their_kinds(judges):
    assert set(judges) == set(ALL)
    for name, judge in judges.items():
        kind = plugins.Embedder if name in EMBEDDERS else plugins.SpeakerEmbedder
        assert isinstance(judge, plugins.MosPredictor if name == "utmos22" else kind)
        assert isinstance(judge, plugins.Classifier) == name.startswith("cnn14")
        assert judge.ancestry["weights_from"] and "base" in judge.ancestry


@pytest.mark.parametrize("name", ALL)
def test_the_contract_is_kept(name, judges):
    kind = "embedder" if name in EMBEDDERS else "mos" if name == "utmos22" else "speaker"
    check_contract(judges[name], kind, 3.0)


@pytest.mark.parametrize("name", ALL)
def test_short_and_silent_clips_have_finite_values(name, judges):
    judge, rate = judges[name], judges[name].sample_rate
    quiet = noise(0.5, rate, level=5e-4)
    clips = [
        noise(0.1, rate),
        quiet,
        np.zeros(rate // 2, np.float32),
        np.full(rate, 0.5, np.float32),
        noise(1 / rate, rate),
    ]
    found = values(judge, clips)
    assert len(found) == len(clips) and np.isfinite(found).all()
    if name in EMBEDDERS:
        for clip in clips:
            frames = judge.frames(clip)
            assert frames.dtype == np.float32 and frames.shape[0] >= 1 and frames.shape[1] == judge.dim
            assert judge.clip(clip).shape == (judge.dim,)
    if name in SPEAKERS:
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_minute_is_heard(name, judges):
    judge = judges[name]
    assert np.isfinite(values(judge, [noise(60.0, judge.sample_rate)])).all()


def test_values_need_no_gradients(judges):
    for judge in judges.values():
        modules = [value for value in vars(judge).values() if isinstance(value, torch.nn.Module)]
        assert all(not module.training for module in modules)
        assert not [p for module in modules for p in module.parameters() if p.requires_grad]
