"""Who judges made sounds: a CLAP other than the conditioner, and a judge of classes; and whether they may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xcodec_lm.codec.audio import resample
from xcodec_lm.codec.clips import Clip
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.data.provenance import hash_ids
from xcodec_lm.tasks.eval.ancestry import has_heard, related
from xcodec_lm.tasks.eval.judge_audio import is_silent
from xcodec_lm.tasks.sound.sound_class import (
    FOLDER,
    SoundClassJudge,
    class_of,
    learnable,
    load_sound_class,
    save_sound_class,
    train_sound_class,
)

if TYPE_CHECKING:
    from xcodec_lm.tasks.sound.clap import TextAudioEmbedder


@dataclass
class Judges:
    """Who judges.

    Attributes:
        clap: scores sounds against captions; None leaves that out.
        classes: hears what a sound is; None leaves that out.
        doubts: `clap` or `class` -> why its figures give no verdict.
    """

    clap: TextAudioEmbedder | None = None
    classes: SoundClassJudge | None = None
    doubts: dict[str, str] = field(default_factory=dict)

    @property
    def features(self) -> str:
        """Whose embeddings sets are compared by: `clap`, where it is independent of what it judges, else `class`."""
        independent = self.clap is not None and ("clap" not in self.doubts or self.classes is None)
        return "clap" if independent else "class"

    def facts(self) -> dict[str, Any]:
        """Names and ancestries, for reports."""
        found: dict[str, Any] = {"features": self.features}
        if self.clap is not None:
            found |= {"clap": self.clap.name, "clap_fingerprint": self.clap.fingerprint,
                      "clap_ancestry": self.clap.ancestry}  # fmt: skip
        if self.classes is not None:
            found |= {"classes": list(self.classes.classes), "class_ancestry": self.classes.ancestry}
        return found


@dataclass
class Heard:
    """What the judges heard of some sounds.

    Attributes:
        silent: (n,) whether there is nothing to hear.
        shares: (n, classes) probabilities; None without a judge of classes.
        vectors: (n, dim) of unit length, of the judge whose features are used.
        matches: (n, dim) of unit length in the space of captions; None without a CLAP.
    """

    silent: np.ndarray
    vectors: np.ndarray
    shares: np.ndarray | None = None
    matches: np.ndarray | None = None


def hear(judges: Judges, wavs: Sequence[np.ndarray], rate: int) -> Heard:
    """Lets the judges hear sounds (N,) of one rate."""
    import torch

    silent = np.array([is_silent(torch.from_numpy(wav)) for wav in wavs])
    shares = vectors = matches = None
    if judges.classes is not None:
        own = judges.classes.sample_rate
        shares, vectors = judges.classes.judge([resample(wav, rate, own) for wav in wavs])
    if judges.clap is not None:
        own = judges.clap.sample_rate
        matches = np.concatenate([judges.clap.embed_audio([resample(wav, rate, own)]).numpy() for wav in wavs])
    chosen = matches if judges.features == "clap" else vectors
    if chosen is None:
        raise XcodecLMError("there is neither a CLAP nor a judge of classes", "give a folder with a CLAP: --judges")
    return Heard(silent, chosen, shares, matches)


def load_judges(
    folder: Path | None, training: Sequence[Clip], keep: Path | None, seed: int = 0, device: str = "cpu"
) -> Judges:
    """The judges of a folder; a judge of classes that is not there is trained.

    Args:
        folder: with `clap/` and perhaps `sound_class/`; or a CLAP's own folder or file. None has neither.
        training: clips of split train, whose classes are learnt.
        keep: folder in which a trained judge of classes is kept, and found again.
        seed: of its training.
        device: where they compute.

    Raises:
        XcodecLMError: neither can be had, or a folder is damaged.
    """
    from xcodec_lm.tasks.sound.clap import load_clap

    clap = classes = None
    if folder is not None:
        if not folder.exists():
            raise XcodecLMError(f"{folder} does not exist", "give a folder that holds clap/, a run of clap train")
        own = folder / "clap"
        if own.is_dir():
            clap = load_clap(own, device)
        elif not (folder / FOLDER).is_dir():
            clap = load_clap(folder, device)
        if (folder / FOLDER).is_dir():
            classes = load_sound_class(folder / FOLDER, device)
    if classes is None:
        classes = _class_judge(training, None if keep is None else keep / FOLDER, seed, device)
    if clap is None and classes is None:
        raise XcodecLMError(
            "there is no judge: no CLAP was given, and too few clips have a `label` to train a judge of classes",
            "train a CLAP with another seed and split, clap train ... --data.split-seed 1, and give it with --judges",
        )
    if clap is None:
        say("no CLAP to judge with was given (--judges): CLAP scores are left out")
    return Judges(clap, classes)


def _class_judge(training: Sequence[Clip], keep: Path | None, seed: int, device: str) -> SoundClassJudge | None:
    known = learnable(training)
    if len({class_of(clip) for clip in known}) < 2:
        say("too few clips have a class: agreement of classes is left out")
        return None
    digest = hash_ids(clip.id for clip in known)
    if keep is not None and (keep / "config.json").is_file():
        kept = load_sound_class(keep, device)
        origin = kept.ancestry.get("trained_on") or [{}]
        if origin[0].get("ids_sha256") == digest and kept.ancestry.get("seed") == seed:
            return kept
        say(f"{keep} was trained on other clips; it is replaced")
    judge = train_sound_class(training, seed)
    if keep is not None:
        save_sound_class(judge, keep)
    judge.model.to(device)
    return judge


def check_judges(judges: Judges, conditioners: Sequence[tuple[str, Any]], tested: Sequence[Clip]) -> None:
    """Refuses a CLAP that conditions what it is to judge, and notes in `doubts` what else forbids a verdict.

    Args:
        judges: who judges.
        conditioners: name of a run and its CLAP, or None for a run of labels.
        tested: the clips whose captions are used.

    Raises:
        XcodecLMError: the CLAP is that of a run.
    """
    rows = [clip.row for clip in tested]
    if judges.clap is not None:
        for name, clap in conditioners:
            if clap is None:
                continue
            if clap.fingerprint == judges.clap.fingerprint:
                raise XcodecLMError(
                    f"{judges.clap.name} is the CLAP that {name} is conditioned on: it cannot judge it",
                    "train another with a seed and split of its own: clap train ... --seed 1 --data.split-seed 1",
                )
            if related(judges.clap.ancestry, clap.ancestry):
                judges.doubts["clap"] = f"{judges.clap.name} has the ancestry of the CLAP that {name} is conditioned on"
        if why := has_heard(judges.clap.ancestry, rows):
            judges.doubts["clap"] = f"{judges.clap.name} {why}"
    if judges.classes is not None and (why := has_heard(judges.classes.ancestry, rows)):
        judges.doubts["class"] = f"the judge of classes {why}"
    for why in judges.doubts.values():
        say(f"note: {why}: its figures give no verdict")
