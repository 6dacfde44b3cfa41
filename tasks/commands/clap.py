"""Commands of the noun `clap`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from xcodec_lm.tasks.commands.common import OutFile, Result, read_text, train_command

SHORT = "--data"
"""What stands for `--data.manifests`, which is all that most runs set."""


def clap_train(argv: list[str]) -> Result | int:
    """The command `clap train PRESET --data captions.jsonl ... --out RUN`."""
    full = f"{SHORT}.manifests"
    return train_command(
        "clap", "clap", [full if word == SHORT else word.replace(f"{SHORT}=", f"{full}=", 1) for word in argv]
    )


def clap_card(
    run: Positional[Path], /, out: OutFile, evaluation: Path | None = None, notes: Path | None = None
) -> Result:
    """Writes a CLAP as a folder for others: half precision, a card, what it was trained on.

    Args:
        run: finished run of clap train.
        out: folder to write; its name becomes the model's.
        evaluation: figures as text, to go into the card; those of the last validation are in it anyway.
        notes: Markdown about limits, to go into the card.
    """
    from xcodec_lm.tasks.report.card_sound import write_clap_model

    size = write_clap_model(run, out, *(read_text(path) for path in (evaluation, notes)))
    return Result(f"{out}: {size / 1e6:.2f} MB", {"folder": str(out), "bytes": size})
