"""Writing files so that a full disk or a killed process leaves the old ones whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError

from xcodec_lm.configs.errors import XcodecLMError


def write_files(folder: Path, writers: Mapping[str, Callable[[Path], object]]) -> None:
    """Writes several files of a folder: all of them, or none.

    Each is written beside its place under another name and flushed to disk; only when all are there do they take their
    places, which needs no more room.

    Args:
        folder: made if needed; other files in it stay.
        writers: file name -> function that writes the file that it is given.

    Raises:
        XcodecLMError: the folder cannot be written, or the disk is full. What was there before is still there.
    """
    temporary = {name: folder / f".tmp-{os.getpid()}-{name}" for name in writers}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, write in writers.items():
            write(temporary[name])
            temporary[name].chmod(0o644)  # safetensors leaves its files to their owner alone
            flush(temporary[name])
        for name, path in temporary.items():
            path.replace(folder / name)
        flush(folder)
    except (OSError, SafetensorError) as error:
        raise XcodecLMError(
            f"cannot write {folder}: {error}; what was there before is unchanged",
            "make room, or choose a folder that can be written",
        ) from None
    finally:
        for path in temporary.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` when the block ends without an error.

    What is in it is flushed to disk first. After an error nothing of it is left, and `folder` is as it was.

    Args:
        folder: not there yet, or empty.

    Raises:
        XcodecLMError: it cannot be written, or the disk is full.
    """
    temporary = folder.with_name(f".tmp-{folder.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for path in [*temporary.iterdir(), temporary]:
            flush(path)
        if folder.is_dir():
            folder.rmdir()
        temporary.rename(folder)
        flush(folder.parent)
    except (OSError, SafetensorError) as error:
        raise XcodecLMError(f"cannot write {folder}: {error}", "choose a folder that can be written") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def flush(path: Path) -> None:
    """Has the system write a file or a folder's entries to disk now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
