"""The command `codec convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from xcodec_lm.tasks.commands.common import OutFile, Result


def codec_convert(
    source: Positional[str],
    /,
    out: OutFile,
    to: Literal["ours", "transformers", "original"] = "ours",
    config: Annotated[Path | None, arg(help="JSON or YAML with sizes that tensors do not show")] = None,
    teacher: Annotated[str, arg(help="the self-supervised model, for files that leave it out")] = "",
) -> Result:
    """Converts X-Codec, X-Codec 2 and NeuCodec checkpoints between the original code, transformers and ours.

    Names are checked strictly, nothing in a file is run, and the result is checked by loading it.

    Args:
        source: an original checkpoint file, or a run folder, model folder, shipped name or hub id.
        out: the folder to write; for --to original the file.
        to: the layout to write.
        config: sizes that tensors do not show, named as in transformers' config.json, such as
            semantic_model_config: {num_attention_heads: 12}.
        teacher: folder or hub id of the self-supervised model, for files that leave it out (NeuCodec).
    """
    from xcodec_lm.codec.convert.files import convert_checkpoint, read_sizes

    done = convert_checkpoint(source, out, to, read_sizes(config), teacher)
    lines = [f"read: {done.kind}, {done.layout}"]
    groups: dict[tuple[str, str], list[str]] = {}
    for name, why in done.left_aside.items():
        groups.setdefault((name.split(".")[0], why), []).append(name)
    for (start, why), names in groups.items():
        lines.append(f"left aside: {names[0] if len(names) == 1 else f'{start}.* ({len(names)})'}: {why}")
    lines += [f"note: {text}" for text in done.notes]
    lines.append(f"wrote: {done.out}, layout {to}, {done.parameters / 1e6:.2f} M parameters")
    if done.fingerprint:
        lines.append(f"fingerprint: {done.fingerprint}")
    data = {
        "kind": done.kind, "layout": done.layout, "out": str(done.out), "to": to, "tensors": done.tensors,
        "parameters": done.parameters, "left_aside": done.left_aside, "notes": list(done.notes),
        "fingerprint": done.fingerprint,
    }  # fmt: skip
    return Result("\n".join(lines), data)
