"""The command `export`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

from tyro.conf import Positional

from xcodec_lm.tasks.commands.common import OutFile, Result


def export(source: Positional[str], /, out: OutFile, to: Literal["transformers"] = "transformers") -> Result:
    """Exports a language model as a folder that transformers loads and that vLLM and SGLang can serve.

    The folder is loaded again and its logits are compared with the model's own. docs/serving.md says how to serve it.

    Args:
        source: run folder of a language model, or the model folder in it.
        out: the folder to write; new or empty.
        to: whose layout.
    """
    from xcodec_lm.tasks.export import export_transformers

    done = export_transformers(source, out)
    text = "\n".join(
        [
            f"wrote: {done.folder}, {done.architecture}, {done.parameters / 1e6:.2f} M parameters, "
            f"{done.vocab_size} ids",
            f"largest difference of logits: {done.difference:.2g} over {done.positions} positions",
        ]
    )
    return Result(text, asdict(done) | {"folder": str(done.folder), "to": to})
