"""`xcodec-lm demo`: every stage of the toolkit on a small corpus, each an ordinary run made by the ordinary functions.

    corpus/ codec/ (from scratch only) tokens/ music/ samples/ report.html  speech/ speak.html (with speech models)
    sound/ sound.html (with a model of sounds)

Steps are fixed, never stopped by the clock. A second call continues where the first stopped, and repeats nothing.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from xcodec_lm import configs
from xcodec_lm.codec.clips import read_manifests
from xcodec_lm.codec.load import load_codec
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.codec.runtime.run import RunOptions
from xcodec_lm.codec.train import train as train_codec
from xcodec_lm.configs import CodecTrainConfig, LMTrainConfig, XcodecLMError
from xcodec_lm.lm.train import train as train_lm
from xcodec_lm.tasks.data.synth import synth
from xcodec_lm.tasks.data.tokenize import tokenize
from xcodec_lm.tasks.demo.page import write_page
from xcodec_lm.tasks.demo.scores import score
from xcodec_lm.tasks.demo.sound import write_sound_page
from xcodec_lm.tasks.demo.speak import speak, speech_models
from xcodec_lm.tasks.tts.evaluate import load_judges


@dataclass(frozen=True)
class Size:
    """How large a demo is.

    Attributes:
        codec: preset of the codec that is trained from scratch.
        music: preset of the language model.
        music_clips: pieces of the synthetic corpus.
        clip_s: their length.
        excerpts: held-out excerpts that are continued.
    """

    codec: str
    music: str
    music_clips: int
    clip_s: float
    excerpts: int


FULL = Size("xcodec/demo", "music/tiny", music_clips=60, clip_s=12.0, excerpts=16)
QUICK = Size("xcodec/quick", "music/quick", music_clips=12, clip_s=6.0, excerpts=2)
PROMPT_S, CONTINUATION_S = 2.0, 4.0
SOUND_CLIPS = 4
SHIPPED_CODEC = "xcodec-tiny"


def run_demo(
    out: Path, corpus: Path | None = None, quick: bool = False, from_scratch: bool = False, seed: int = 0,
    speech: Sequence[str] = (), judges: Path | None = None,
) -> tuple[Path, Path | None]:  # fmt: skip
    """Runs all stages and returns the report, and the page of speech if there is one.

    Args:
        out: the demo's folder.
        corpus: a manifest of real recordings; None makes a synthetic corpus.
        quick: the size of a minute.
        from_scratch: train a codec on the corpus instead of taking the shipped one.
        seed: of every stage.
        speech: speech models that speak, folders or shipped names; without any the shipped one, if there is one.
        judges: folder of `eval train-evaluators`, which listens to them.

    Raises:
        XcodecLMError: the corpus has no held-out recording of six seconds, `out` holds a demo of other settings, or a
            speech model or the judges are not where they should be.
    """
    size = QUICK if quick else FULL
    speakers, listeners = speech_models(speech), load_judges(judges)
    stages = Stages(total=4 + from_scratch + bool(speakers))
    commands = []
    with stages.next("making a synthetic corpus" if corpus is None else "reading the corpus"):
        if corpus is None:
            clips = {"music_clips": size.music_clips, "sound_clips": SOUND_CLIPS, "clip_s": size.clip_s}
            manifest = synth(out / "corpus", seed=seed, **clips).music
            origin = "synthetic music, made by `xcodec-lm data synth`"
            flags = [f"--{key.replace('_', '-')}={value:g}" for key, value in clips.items()]
            commands.append(command("data", "synth", "-o", out / "corpus", f"--seed={seed}", *flags))
        else:
            manifest, origin = corpus, f"the recordings of {corpus.name}"
        split = held_out_split(manifest)

    spoken = None
    if speakers:
        with stages.next("speaking"):
            spoken = speak(out, speakers, listeners, corpus, seed)

    source: str | Path = SHIPPED_CODEC
    if from_scratch:
        with stages.next("training the codec"):
            data = {"data.manifests": [str(manifest)], "run.seed": seed}
            source = out / "codec"
            settings = ["--data.manifests", manifest, "--seed", seed, "--device", "cpu", "--out", source]
            commands.append(command("codec", "train", size.codec, *settings))
            # On a CPU wherever it runs, so that the same command gives the same demo.
            options = RunOptions(source, command=commands[-1], device="cpu")
            train_codec(configs.load(size.codec, CodecTrainConfig, data), options)

    with stages.next("encoding the corpus"):
        commands.append(command("data", "tokenize", manifest, "--codec", source, "--out", out / "tokens"))
        tokenize([manifest], load_codec(source), out / "tokens", codec_path=source)

    with stages.next("training the language model"):
        data = {"data.tokens": [str(out / "tokens")], "run.seed": seed}
        folder = out / "music"
        settings = ["--data.tokens", out / "tokens", "--seed", seed, "--device", "cpu", "--out", folder]
        commands.append(command("music", "train", size.music, *settings))
        options = RunOptions(folder, command=commands[-1], device="cpu")
        train_lm(configs.load(size.music, LMTrainConfig, data), options)

    with stages.next("continuing held-out prompts, scoring, writing the report"):
        scores = score(out, manifest, split, size.excerpts, PROMPT_S, CONTINUATION_S, seed)
        pages = {"Speech": spoken.name} if spoken else {}
        heard = write_sound_page(out, seed, **({"seconds": 1.0, "samples": 1} if quick else {}))
        pages |= {"Text to sound": heard.name} if heard else {}
        return write_page(out, scores, origin, commands, from_scratch, pages), spoken


def command(*words: object) -> str:
    """A line for a shell that makes the same as the function call beside it."""
    return shlex.join(["xcodec-lm", *map(str, words)])


def held_out_split(manifest: Path) -> str:
    """The split whose recordings are continued: test, or dev where there is no test.

    Raises:
        XcodecLMError: neither holds a recording as long as prompt and continuation.
    """
    for split in ("test", "dev"):
        if any(clip.duration_s >= PROMPT_S + CONTINUATION_S for clip in read_manifests([manifest], split)):
            return split
    raise XcodecLMError(
        f"{manifest}: no row with split: test or dev lasts {PROMPT_S + CONTINUATION_S:g} s",
        "hold some recordings out: xcodec-lm data scan writes splits",
    )


class Stages:
    """Numbers the stages and says how long each took.

    Args:
        total: how many there are.
    """

    def __init__(self, total: int):
        self.total, self.number = total, 0

    @contextlib.contextmanager
    def next(self, what: str) -> Iterator[None]:
        """Announces a stage and says at its end how long it took."""
        self.number += 1
        start = time.monotonic()
        say(f"[{self.number}/{self.total}] {what}")
        yield
        say(f"[{self.number}/{self.total}] done in {time.monotonic() - start:.0f} s")
