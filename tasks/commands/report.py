"""The command `report`: runs and results as one page."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from xcodec_lm.configs.errors import UsageError
from xcodec_lm.tasks.commands.common import OutFile, Result


def report(
    sources: Positional[tuple[Path, ...]], /, out: OutFile = Path("report.html"), title: str = "",
    twins: tuple[Path, ...] = (), listen: Path | None = None, split: str = "test", clips: int = 2,
) -> Result:  # fmt: skip
    """Writes run folders and results of evaluations as one HTML page that opens from disk without a network.

    Args:
        sources: run folders of any `train` command, folders or JSON files that `tts eval`, `sound eval`, `music eval`,
            `codec eval`, `compare`, `reproduce` and `eval run` wrote.
        out: the page.
        title: of the page.
        twins: two codec runs, X-Codec's first, that should differ in the semantic path alone: what differs is shown.
        listen: manifest of recordings to hear: original, twin and X-Codec at 1, 2, 4 and 8 codebooks; needs --twins.
        split: of these recordings.
        clips: how many of them.
    """
    from xcodec_lm.tasks.report.collect import Listening, collect
    from xcodec_lm.tasks.report.render import render

    if not sources and not twins:
        raise UsageError("report needs a run folder or a result", "xcodec-lm report RUN_OR_RESULT... -o report.html")
    if twins and len(twins) != 2:
        raise UsageError(f"--twins takes two runs, got {len(twins)}", "give X-Codec's and its twin's")
    if listen is not None and not twins:
        raise UsageError("--listen needs --twins, the codecs that are heard")
    heard = None if listen is None else Listening(listen, split, clips)
    page = collect(list(sources), title, (twins[0], twins[1]) if twins else None, heard)
    path = render(page, out)
    size = path.stat().st_size
    return Result(
        f"{path}: {len(page.sections)} sections, {size / 1e6:.2f} MB",
        {"report": str(path), "sections": [section.title for section in page.sections], "bytes": size},
    )
