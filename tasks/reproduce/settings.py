"""What a reproduction is made of: the user's choices, and the sizes of the demo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from xcodec_lm.configs.errors import UsageError

DEFAULT_CODECS = ("xcodec-tiny", "baseline-tiny")
ROOTS: dict[str, str] = {
    "librispeech": "LibriSpeech, the folder that holds test-clean/ (https://www.openslr.org/12)",
    "libritts": "LibriTTS, the folder that holds test-clean/ and, for training, train-clean-100/ and the others "
    "(https://www.openslr.org/60)",
    "musdb": "MUSDB18-HQ, the folder that holds train/ and test/ (https://zenodo.org/records/3338373)",
    "audiocaps": "the audio of AudioCaps, with its lists or with --captions "
    "(https://github.com/cdjkim/audiocaps; every clip is fetched by yourself)",
    "captions": "test.csv of AudioCaps, where it is not in --audiocaps",
    "arch_root": "the folder that holds the ARCH data sets, one folder each "
    "(https://github.com/MorenoLaQuatra/ARCH lists where each is from)",
    "items": "ABX items of LibriSpeech, test-clean.item (Libri-light's ABX data, "
    "https://github.com/facebookresearch/libri-light)",
}
"""Local data: option -> what it is and where it comes from."""


@dataclass(frozen=True)
class Scale:
    """How large the demo is.

    Attributes:
        music_clips: pieces of the synthetic corpus; a tenth is for testing.
        music_s: their length.
        sound_clips: sounds of it; a tenth is for testing.
        speech_clips: utterances of digits; a tenth is for testing.
        voices: that say single words, for ABX and probes.
        takes: of each word by each voice.
        clips: most recordings that are reconstructed.
        per_class: most clips of a class in probes.
        judge_steps: training steps of each judge.
        speech_steps: of the AR; the NAR takes half as many.
        music_steps: of each music model.
        sound_steps: of each sound model.
        prompts: most prompts that a model continues or speaks after.
    """

    music_clips: int = 120
    music_s: float = 12.0
    sound_clips: int = 150
    speech_clips: int = 400
    voices: int = 12
    takes: int = 3
    clips: int = 60
    per_class: int = 60
    judge_steps: int = 400
    speech_steps: int = 400
    music_steps: int = 200
    sound_steps: int = 200
    prompts: int = 24


FULL = Scale()
QUICK = Scale(
    music_clips=12, music_s=6.0, sound_clips=36, speech_clips=20, voices=3, takes=2, clips=4, per_class=10,
    judge_steps=6, speech_steps=6, music_steps=6, sound_steps=6, prompts=4,
)  # fmt: skip
"""Every stage at a size of seconds, for trying a machine; its figures say nothing."""


@dataclass(frozen=True)
class Settings:
    """The user's choices.

    Attributes:
        demo: the small corpus in place of the paper's data sets.
        corpus: folder with speech.jsonl, music.jsonl and sound.jsonl, for the demo; None makes a synthetic one.
        quick: the demo at a size of seconds.
        librispeech: see `ROOTS`, as for the other roots.
        libritts: see `ROOTS`.
        musdb: see `ROOTS`.
        audiocaps: see `ROOTS`.
        captions: see `ROOTS`.
        arch_root: see `ROOTS`.
        items: see `ROOTS`.
        train_data: manifests that language models are trained on, where they are not the paper's public ones.
        codecs: `SOURCE` or `NAME=SOURCE` each; the first is compared with the others.
        runs: `NAME=RUN` each, trained language models by the name of their codec.
        weights: evaluator -> folder or file of its published weights.
        judges: folder of `eval train-evaluators`, for evaluators without weights; the demo trains its own.
        clap: the CLAP that conditions models of sound; the demo conditions them on classes without one.
        preset: of the language models; empty takes the paper's, or the demo's.
        steps: training steps of the language models; None takes the preset's.
        split: of MUSDB18: all tracks, or those of train or test.
        datasets: of ARCH; empty takes those that are there.
        seed: of every draw.
        device: where to compute; not part of what a result is known by.
    """

    demo: bool = False
    corpus: Path | None = None
    quick: bool = False
    librispeech: Path | None = None
    libritts: Path | None = None
    musdb: Path | None = None
    audiocaps: Path | None = None
    captions: Path | None = None
    arch_root: Path | None = None
    items: Path | None = None
    train_data: tuple[Path, ...] = ()
    codecs: tuple[str, ...] = DEFAULT_CODECS
    runs: tuple[str, ...] = ()
    weights: Mapping[str, str] = field(default_factory=dict)
    judges: Path | None = None
    clap: str | None = None
    preset: str = ""
    steps: int | None = None
    split: str = "all"
    datasets: tuple[str, ...] = ()
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self):
        if self.demo:
            given = [name for name in ROOTS if getattr(self, name) is not None]
            if given:
                raise UsageError(
                    f"--demo takes no data set, but --{given[0].replace('_', '-')} is given",
                    "leave out one of the two; recordings of your own go into the demo with --corpus",
                )
        elif self.corpus is not None:
            raise UsageError("--corpus is for --demo", "add --demo, or name the data sets that the table needs")
        elif self.quick:
            raise UsageError("--quick is for --demo", "add --demo")
        if not self.codecs:
            raise UsageError("--codecs names no codec")
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"--steps must be at least 1, got {self.steps}")

    @property
    def scale(self) -> Scale:
        """Sizes of the demo."""
        return QUICK if self.quick else FULL

    def facts(self, names: tuple[str, ...]) -> dict[str, Any]:
        """The named choices as plain values, by which a result is known; paths are absolute."""
        known = {item.name for item in fields(self)}
        assert set(names) <= known, set(names) - known
        return {name: plain(getattr(self, name)) for name in names}


def plain(value: Any) -> Any:
    """A choice as a value for JSON."""
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def named(entries: tuple[str, ...], what: str) -> dict[str, str]:
    """`NAME=SOURCE` entries by name; without a name the source's last part is the name.

    Raises:
        UsageError: a name is used twice, or an entry is empty.
    """
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, source = entry.partition("=")
        if not equals:
            name, source = Path(entry).name, entry
        if not name or not source:
            raise UsageError(f"{what} {entry!r} has no name or no source", "write NAME=SOURCE, or SOURCE alone")
        if name in found:
            raise UsageError(f"{what}: the name {name!r} is used twice", "write NAME=SOURCE with names of your own")
        found[name] = source
    return found
