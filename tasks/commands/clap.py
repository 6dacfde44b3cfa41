"""The command `clap train`."""

from __future__ import annotations

from xcodec_lm.tasks.commands.common import Result, train_command

SHORT = "--data"
"""What stands for `--data.manifests`, which is all that most runs set."""


def clap_train(argv: list[str]) -> Result | int:
    """The command `clap train PRESET --data captions.jsonl ... --out RUN`."""
    full = f"{SHORT}.manifests"
    return train_command(
        "clap", "clap", [full if word == SHORT else word.replace(f"{SHORT}=", f"{full}=", 1) for word in argv]
    )
