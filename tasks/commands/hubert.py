"""The commands `hubert train` and `hubert probe`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from xcodec_lm.configs.errors import ConfigError, UsageError
from xcodec_lm.tasks.commands.common import Device, Result, device_of, load_codec_for, train_command


def hubert_train(argv: list[str]) -> Result | int:
    """The command `hubert train`."""
    return train_command("hubert", "hubert", argv)


def hubert_probe(
    hubert: Positional[str], manifests: Positional[tuple[Path, ...]], /,
    codec: str | None = None, per_class: int = 150, device: Device = "auto", seed: int = 0,
) -> Result:  # fmt: skip
    """Shows what a teacher has learnt: linear probes for spoken words, speakers and sound classes.

    Its frames are compared with those of an untrained model of the same sizes and with a codec's own latents. Units
    (speakers, original recordings) that a probe is tested on are never among those that it was fitted on.

    Args:
        hubert: run folder, model folder, shipped name or hub id of a teacher.
        manifests: JSON lines with `text`, `speaker`, `label` and `recording` where known; all splits are used.
        codec: whose latents are compared, such as the one that gave the labels.
        per_class: at most so many recordings of a class.
        device: where to compute.
        seed: of choices, folds and intervals.
    """
    from xcodec_lm.codec.clips import read_manifests
    from xcodec_lm.codec.semantic import TeacherFeatures
    from xcodec_lm.tasks.eval.teacher_probe import SAMPLE_RATE, extractors, format_rows, probe

    if not manifests:
        raise UsageError("hubert probe needs at least one manifest")
    if per_class < 1:
        raise UsageError(f"--per-class must be at least 1, got {per_class}")
    clips = read_manifests(manifests)
    other = None if codec is None else load_codec_for(codec, device)
    if other is not None and other.spec.sample_rate != SAMPLE_RATE:
        raise ConfigError(
            f"--codec {codec}: {other.spec.sample_rate} Hz; the teacher and the probes hear {SAMPLE_RATE}",
            "choose a codec of that rate",
        )
    teacher = TeacherFeatures(hubert, device=device_of(device))
    rows = probe(clips, extractors(teacher, other, seed), per_class, seed)
    return Result(format_rows(rows), rows)
