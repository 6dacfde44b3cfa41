"""The CLAP of a run: named in its model's config.json, found again, and checked to be the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xcodec_lm.configs.errors import XcodecLMError

if TYPE_CHECKING:
    from xcodec_lm.tasks.sound.clap import TextAudioEmbedder


def embedder_facts(source: str, clap: TextAudioEmbedder, folder: Path) -> dict[str, Any]:
    """What a model's config.json says of its CLAP; a folder or file is named relative to the run, so both can move.

    Args:
        source: as `load_clap` was given it.
        clap: what that gave.
        folder: of the run.
    """
    back_end, path = _parts(source)
    if Path(path).exists():
        path = os.path.relpath(Path(path).resolve(), folder.resolve())
    facts = {"name": clap.name, "dim": clap.dim, "fingerprint": clap.fingerprint, "ancestry": clap.ancestry}
    return {"source": back_end + path, **facts}


def load_embedder(
    model_folder: Path, facts: Any, clap: TextAudioEmbedder | str | Path | None, device: str
) -> TextAudioEmbedder:
    """The CLAP that a model was trained with.

    Args:
        model_folder: of the model.
        facts: of `embedder_facts`.
        clap: the CLAP or its source, where it is no longer where the facts say; None looks there.
        device: where it computes.

    Raises:
        XcodecLMError: it cannot be found, or what was given is another.
    """
    if not isinstance(facts, dict) or "fingerprint" not in facts:
        raise XcodecLMError(f"{model_folder / 'config.json'} names no CLAP", "give a model that sound train made")
    hint = f"it was trained with {facts['name']}, fingerprint {facts['fingerprint'][:12]}: give that with --clap"
    if clap is None:
        back_end, path = _parts(str(facts["source"]))
        local = (model_folder.resolve().parent / path).resolve()
        if local.exists():
            path = str(local)
        elif path.startswith(("..", "/")):
            raise XcodecLMError(f"the CLAP of {model_folder} is not at {local}, where its config.json says", hint)
        clap = back_end + path
    if isinstance(clap, (str, Path)):
        from xcodec_lm.tasks.sound.clap import load_clap

        found = load_clap(clap, device)
    else:
        found = clap
    if found.dim != facts["dim"]:
        raise XcodecLMError(
            f"{found.name} gives vectors of {found.dim}, but {model_folder} was trained with vectors of {facts['dim']}",
            hint,
        )
    if found.fingerprint != facts["fingerprint"]:
        raise XcodecLMError(
            f"{found.name} (fingerprint {found.fingerprint[:12]}) is not the CLAP that {model_folder} was "
            "trained with: its vectors mean something else",
            hint,
        )
    return found


def _parts(source: str) -> tuple[str, str]:
    """The back end in front of a source, with its colon, and the path or name."""
    back_end, colon, path = source.partition("laion-clap:")
    return (colon, path) if colon and not back_end else ("", source)
