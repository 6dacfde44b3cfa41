"""The judge of sound classes: what it learns, what it does not hear, its file."""

import numpy as np
import pytest
import torch

from xcodec_lm.codec.clips import Clip, read_manifests
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.sound.sound_class import (
    class_of,
    learnable,
    load_sound_class,
    save_sound_class,
    sound_frames,
    train_sound_class,
)


def test_it_knows_sounds_that_it_has_not_heard(class_judge, make_sound):
    rng = np.random.default_rng(9)
    kinds = ["hum", "whistle", "clicks"] * 4
    shares, vectors = class_judge.judge([make_sound(kind, rng, seconds=float(rng.uniform(0.3, 2))) for kind in kinds])
    heard = [class_judge.classes[best] for best in shares.argmax(axis=1)]
    assert np.mean([one == other for one, other in zip(heard, kinds, strict=True)]) >= 0.8
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_it_hears_no_level_and_clips_do_not_depend_on_company(class_judge, make_sound):
    wav = make_sound("whistle", np.random.default_rng(3))
    alone = class_judge.judge([wav])[0][0]
    np.testing.assert_allclose(class_judge.judge([0.05 * wav])[0][0], alone, atol=2e-3)
    np.testing.assert_array_equal(class_judge.judge([np.zeros(9000, np.float32), wav])[0][1], alone)


def test_frames_lie_between_0_and_1_for_any_length():
    for samples in (1, 399, 16_000, 400_000):
        frames = sound_frames(0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(samples)))
        assert frames.shape[0] >= 48 and float(frames.min()) >= 0 and float(frames.max()) == 1
    assert len(sound_frames(torch.ones(400_000))) == len(sound_frames(torch.ones(330_000)))  # 20 s are heard


def test_a_judge_comes_back_from_its_folder(class_judge, make_sound, tmp_path):
    save_sound_class(class_judge, tmp_path / "judges" / "sound_class")
    again = load_sound_class(tmp_path / "judges")
    wav = make_sound("hum", np.random.default_rng(4))
    np.testing.assert_array_equal(again.judge([wav])[0], class_judge.judge([wav])[0])
    assert again.classes == ("clicks", "hum", "whistle") and again.ancestry == class_judge.ancestry
    (origin,) = again.ancestry["trained_on"]
    assert origin["rows"] == 18 and "r0" in origin["recording"] and "r18" not in origin["recording"]
    (tmp_path / "judges" / "sound_class" / "config.json").write_text('{"model_type": "clap"}')
    with pytest.raises(XcodecLMError, match="no judge of sound classes"):
        load_sound_class(tmp_path / "judges")


def test_classes_of_few_recordings_are_not_learnt(sounds):
    clips = read_manifests([sounds], "train")
    assert len(learnable(clips)) == 18
    assert learnable(clips[:15]) == []  # five of each
    assert [class_of(clip) for clip in learnable(clips[:16])] == ["hum"] * 6
    one = [Clip(clip.id, clip.path, 1.0, "train", {**clip.row, "recording": "same"}) for clip in clips]
    with pytest.raises(XcodecLMError, match="0 classes have 6 recordings"):
        train_sound_class(one)
    assert class_of(Clip("a", clips[0].path, 1.0, None, {"class": "dog", "label": "x: bark (2)"})) == "dog"
    assert class_of(Clip("a", clips[0].path, 1.0, None, {"label": "x: bark (2)"})) == "bark"
