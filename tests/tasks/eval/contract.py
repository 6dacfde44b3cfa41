"""What every plug-in promises (tasks/eval/plugins.py), as one function that tests call with a plug-in."""

import numpy as np
import pytest
import torch

from xcodec_lm.configs.errors import AudioError
from xcodec_lm.tasks.eval import plugins

BAD = (
    (np.array([0.1, np.nan], np.float32), "nan"),
    (np.array([0.1, np.inf], np.float32), "inf"),
    (np.zeros((2, 100), np.float32), "one-dimensional"),
    (np.zeros(100, np.int16), "floats"),
    (np.zeros(0, np.float32), "empty"),
    (np.full(100, 3000.0, np.float32), "16-bit"),
)


def clips_of(rate, longest_s=60.0):
    """Silence, 0.1 s, a second of tones, and the longest clip."""
    rng = np.random.default_rng(0)
    time = np.arange(rate) / rate
    tones = sum(np.sin(2 * np.pi * hz * time) for hz in (180, 410, 900)) / 6 + 0.01 * rng.standard_normal(rate)
    long = (
        0.1 * rng.standard_normal(round(longest_s * rate)) * np.abs(np.sin(np.arange(round(longest_s * rate)) / rate))
    )
    clips = [np.zeros(rate), tones[: rate // 10], tones, long]
    return [clip.astype(np.float32) for clip in clips]


def functions_of(plugin, kind):
    """Name -> function from one clip to an array."""
    if kind == "transcriber":
        return {"transcribe": lambda wav: np.array(plugin.transcribe([wav])[0])}
    if kind == "speaker":
        return {"embed": lambda wav: plugin.embed([wav])[0]}
    if kind == "mos":
        return {"predict": lambda wav: np.array([plugin.predict([wav])[0][name] for name in plugin.scores])}
    if kind == "clap":
        return {"embed_audio": lambda wav: plugin.embed_audio([wav])[0].numpy()}
    found = {"frames": plugin.frames, "clip": plugin.clip}
    return found | ({"class_logits": plugin.class_logits} if hasattr(plugin, "class_logits") else {})


def together(plugin, kind, clips):
    """The same clips in one call, as a list of arrays."""
    if kind == "transcriber":
        return [np.array(text) for text in plugin.transcribe(clips)]
    if kind == "mos":
        return [np.array([scores[name] for name in plugin.scores]) for scores in plugin.predict(clips)]
    return list(plugin.embed_audio(clips).numpy() if kind == "clap" else plugin.embed(clips))


def check_contract(plugin, kind, longest_s=60.0):
    """Batch independence, silence, 0.1 s, 60 s, NaN and other bad clips, the same again in a second call."""
    protocol = {"transcriber": plugins.Transcriber, "speaker": plugins.SpeakerEmbedder, "embedder": plugins.Embedder,
                "mos": plugins.MosPredictor, "clap": plugins.PlugIn}[kind]  # fmt: skip
    assert isinstance(plugin, protocol)
    assert plugin.name and isinstance(plugin.ancestry, dict) and plugin.sample_rate >= 8000
    assert plugin.fingerprint == "" or (len(plugin.fingerprint) == 64 and int(plugin.fingerprint, 16) >= 0)
    assert plugin.fingerprint == plugin.fingerprint
    clips = clips_of(plugin.sample_rate, longest_s)
    leading = "clip" if kind == "embedder" else next(iter(functions_of(plugin, kind)))
    alone = {name: [f(clip) for clip in clips] for name, f in functions_of(plugin, kind).items()}
    for name, values in alone.items():
        for value in values:
            if kind != "transcriber":
                assert np.isfinite(value).all(), name
                assert len({v.shape[-1] for v in map(np.atleast_1d, values)}) == 1, name
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        for place, value in zip(order, together(plugin, kind, [clips[place] for place in order]), strict=True):
            if kind == "transcriber":
                assert value == alone[leading][place]
            else:
                np.testing.assert_array_equal(value, alone[leading][place])
    if kind == "transcriber":
        assert str(alone["transcribe"][0]) == "" and plugin.transcribe([]) == []
    if kind in ("speaker", "clap"):
        for value in alone[leading]:
            assert np.linalg.norm(value) == pytest.approx(1, abs=1e-4)
    if kind == "embedder":
        assert all(frames.ndim == 2 and frames.shape[1] == plugin.dim for frames in alone["frames"])
        assert all(clip.shape == (plugin.dim,) for clip in alone["clip"])
        assert plugin.embed([]).shape == (0, plugin.dim)
        if "class_logits" in alone and plugin.classes:
            assert all(logits.shape == (len(plugin.classes),) for logits in alone["class_logits"])
    for bad, what in BAD:
        for name, function in functions_of(plugin, kind).items():
            with pytest.raises(AudioError, match=what):
                function(bad)
            assert name
    with torch.random.fork_rng(devices=[]):  # no hidden draw: the same after other random numbers were drawn
        torch.rand(7)
        again = functions_of(plugin, kind)[leading](clips[2])
    assert np.array_equal(again, alone[leading][2])
