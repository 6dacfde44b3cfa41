"""`xcodec-lm demo`: every stage of the toolkit on a small corpus, each an ordinary run made by the ordinary functions.

    corpus/ codec/ tokens/ music/ samples/ report.html

Steps are fixed, never stopped by the clock. A second call continues where the first stopped, and repeats nothing.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
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


@dataclass(frozen=True)
class Size:
    """How large a demo is.

    Attributes:
        preset: size part of the presets, `xcodec/SIZE` and `music/SIZE`.
        music_clips: pieces of the synthetic corpus.
        clip_s: their length.
        excerpts: held-out excerpts that are continued.
    """

    preset: str
    music_clips: int
    clip_s: float
    excerpts: int


FULL = Size("tiny", music_clips=60, clip_s=12.0, excerpts=16)
QUICK = Size("quick", music_clips=12, clip_s=6.0, excerpts=2)
PROMPT_S, CONTINUATION_S = 2.0, 4.0


def run_demo(out: Path, corpus: Path | None = None, quick: bool = False, seed: int = 0) -> Path:
    """Runs all stages and returns the report.

    Args:
        out: the demo's folder.
        corpus: a manifest of real recordings; None makes a synthetic corpus.
        quick: the size of a minute.
        seed: of every stage.

    Raises:
        XcodecLMError: the corpus has no held-out recording of six seconds, or `out` holds a demo of other settings.
    """
    size = QUICK if quick else FULL
    stages = Stages(total=5)
    if corpus is None:
        with_stage = stages.begin("making a synthetic corpus")
        made = synth(out / "corpus", seed=seed, music_clips=size.music_clips, sound_clips=4, clip_s=size.clip_s)
        manifest, origin = made.music, "synthetic music, made by xcodec-lm data synth"
        commands = [f"xcodec-lm data synth {shlex.quote(str(out / 'corpus'))} --seed {seed} --music-clips {size.music_clips} --sound-clips 4 --clip-s {size.clip_s:g}"]
    else:
        with_stage = stages.begin("reading the corpus")
        manifest, origin, commands = corpus, f"recordings of {corpus.name}", []
    held_out_split(manifest)
    with_stage()

    with_stage = stages.begin("training the codec")
    codec_config = configs.load(
        f"xcodec/{size.preset}", CodecTrainConfig, {"data.manifests": [str(manifest)], "run.seed": seed}
    )
    commands.append(
        f"xcodec-lm codec train xcodec/{size.preset} --data.manifests {shlex.quote(str(manifest))} --seed {seed} "
        f"--device cpu --out {shlex.quote(str(out / 'codec'))}"
    )
    # On a CPU wherever it runs, so that the same command gives the same demo.
    train_codec(codec_config, RunOptions(out / "codec", command=commands[-1], device="cpu"))
    codec = load_codec(out / "codec")
    with_stage()

    with_stage = stages.begin("encoding the corpus")
    commands.append(
        f"xcodec-lm data tokenize {shlex.quote(str(manifest))} --codec {shlex.quote(str(out / 'codec'))} "
        f"--out {shlex.quote(str(out / 'tokens'))}"
    )
    tokenize([manifest], codec, out / "tokens", codec_path=out / "codec")
    with_stage()

    with_stage = stages.begin("training the language model")
    lm_config = configs.load(
        f"music/{size.preset}", LMTrainConfig, {"data.tokens": str(out / "tokens"), "run.seed": seed}
    )
    commands.append(
        f"xcodec-lm music train music/{size.preset} --data.tokens {shlex.quote(str(out / 'tokens'))} --seed {seed} "
        f"--device cpu --out {shlex.quote(str(out / 'music'))}"
    )
    train_lm(lm_config, RunOptions(out / "music", command=commands[-1], device="cpu"))
    with_stage()

    with_stage = stages.begin("continuing held-out prompts, scoring, writing the report")
    scores = score(out, manifest, held_out_split(manifest), size.excerpts, PROMPT_S, CONTINUATION_S, seed)
    report = write_page(out, scores, origin, commands)
    with_stage()
    return report


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

    def begin(self, what: str) -> Callable[[], None]:
        """Announces a stage; the result is called at its end."""
        self.number += 1
        number, start = self.number, time.monotonic()
        say(f"[{number}/{self.total}] {what}")
        return lambda: say(f"[{number}/{self.total}] done in {time.monotonic() - start:.0f} s")
