"""Several processes for one training command: `--gpus N`.

The command starts itself again under torchrun, which works on GPUs and on a CPU alike (`accelerate launch --cpu` with
two processes starts one), and accelerate joins the processes. `torchrun` and `accelerate launch` by hand stay valid.
"""

from __future__ import annotations

import os
import subprocess
import sys

from xcodec_lm.configs.errors import UsageError


def relaunch(argv: list[str], processes: int) -> int | None:
    """Runs `xcodec-lm ARGV` in several processes, unless this already is one of them.

    Args:
        argv: the command's arguments, without `--gpus`.
        processes: how many.

    Returns:
        The exit code of the processes, or None when the caller should go on itself.

    Raises:
        UsageError: fewer than one process is asked for.
    """
    if processes < 1:
        raise UsageError(f"--gpus must be at least 1, got {processes}")
    if processes == 1 or "WORLD_SIZE" in os.environ:
        return None
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run([*launcher, "-m", "xcodec_lm.tasks.cli", *argv], check=False).returncode
