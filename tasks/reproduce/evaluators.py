"""Who judges: published backbones that the user names with --weights, else nobody, and the cell says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xcodec_lm.configs.errors import UsageError
from xcodec_lm.tasks.eval import registry
from xcodec_lm.tasks.eval.plugins import SpeakerEmbedder, Transcriber
from xcodec_lm.tasks.eval.speaker import load_speaker_embedder
from xcodec_lm.tasks.eval.transcribers import load_transcriber
from xcodec_lm.tasks.reproduce.settings import Settings

PAPER = {
    "wer": ("hubert-ctc", "whisper"), "sim": ("wavlm-ecapa", "hf-xvector", "resemblyzer"), "utmos": ("utmos22",),
    "fd": ("cnn14-16k", "cnn14-32k"), "fad": ("vggish",), "fd_mert": ("mert-layer9",), "is": ("cnn14-16k", "cnn14-32k"),
    "clap": ("clap",),
}  # fmt: skip
"""Column -> plug-ins that measure it, the paper's first."""


def check_weights(weights: Mapping[str, str]) -> None:
    """Refuses names that are no plug-in.

    Raises:
        UsageError: as said.
    """
    for name in weights:
        registry.find(name)


def chosen(settings: Settings, column: str) -> str | None:
    """The plug-in of a column that the user has given weights for."""
    return next((name for name in PAPER[column] if name in settings.weights), None)


def load(settings: Settings, column: str) -> Any | None:
    """The plug-in of a column, or None where no weights are given.

    Raises:
        XcodecLMError: the weights are not there, or do not fit.
    """
    name = chosen(settings, column)
    return None if name is None else registry.find(name).load(settings.weights[name], settings.device)


def listeners(settings: Settings, folder: Path | None) -> tuple[Transcriber | None, SpeakerEmbedder | None]:
    """A recogniser and a judge of voices: published ones, else those of a folder of `eval train-evaluators`; None where
    there is none.

    Raises:
        XcodecLMError: weights or a judge are not there, or do not fit.
    """
    recogniser, voices = load(settings, "wer"), load(settings, "sim")
    if folder is not None:
        recogniser = recogniser or load_transcriber(folder, settings.device)
        if voices is None and (folder / "speaker").is_dir():
            voices = load_speaker_embedder(folder, settings.device)
    return recogniser, voices


def reason(column: str, head: str) -> str:
    """Why a column stays empty."""
    name = PAPER[column][0]
    if column in ("wer", "sim"):
        return f"nobody listens: --weights {name}=PATH, or --judges FOLDER of eval train-evaluators"
    return f"{head} needs published weights, which nothing here may be trained in place of: --weights {name}=PATH"


def parse_weights(entries: Sequence[str]) -> dict[str, str]:
    """`NAME=PATH` entries.

    Raises:
        UsageError: an entry has no `=`, a name comes twice or is no plug-in.
    """
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not (name and equals and path):
            raise UsageError(
                f"--weights {entry!r} has no name or no path", "write NAME=PATH; names: xcodec-lm eval list"
            )
        if name in found:
            raise UsageError(f"--weights names {name} twice")
        found[name] = path
    check_weights(found)
    return found


def facts(judges: Mapping[str, Any]) -> dict[str, Any]:
    """Who judged which column, and what each descends from."""
    return {
        f"{column}[{judge.name}]": {"fingerprint": getattr(judge, "fingerprint", "") or None, **judge.ancestry}
        for column, judge in judges.items()
    }
