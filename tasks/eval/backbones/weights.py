"""Published weights into modules: nothing is missing, nothing is left over, every difference is named."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xcodec_lm.codec.convert.state_dicts import check_state
from xcodec_lm.codec.torch_files import load_tensors
from xcodec_lm.configs.errors import XcodecLMError


def read_published(source: str | Path | None, what: str) -> tuple[Path, dict[str, Tensor]]:
    """The tensors of a published file, by its own names.

    Args:
        source: the file, as published.
        what: which file is meant, for the error.

    Returns:
        Its path, and its tensors on the CPU.

    Raises:
        XcodecLMError: no file is given, or it cannot be read.
    """
    if source is None:
        raise XcodecLMError(f"no weights are given; {what} is needed", "give its path; nothing is downloaded")
    path = Path(source)
    return path, load_tensors(path)[0]


def fill(
    module: nn.Module, weights: Mapping[str, Tensor], where: str | Path, name: Callable[[str], str] = str,
    absent: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Puts weights into a module, in float32, and freezes it in eval mode.

    Args:
        module: may lie on the meta device.
        weights: by the module's names.
        where: the file, for errors.
        name: from a name of the module's to the one in the file, for errors.
        absent: endings of names that a file may lack, beside counters of batches: what acts on nothing here.

    Raises:
        XcodecLMError: a tensor is missing, left over or of another shape.
    """
    expected = module.state_dict()
    complete = dict(weights)
    for key, value in expected.items():
        if key.endswith(("num_batches_tracked", *absent)):
            complete.setdefault(key, torch.zeros(value.shape, dtype=value.dtype))
    check_state(complete, expected, str(where), name)
    ready = {key: value.float() if value.is_floating_point() else value for key, value in complete.items()}
    module.load_state_dict({key: value.contiguous().clone() for key, value in ready.items()}, assign=True)
    module.eval().requires_grad_(False)


def need_package(module: str, install: str) -> Any:
    """A module of an optional package.

    Raises:
        XcodecLMError: it is not installed, or does not import.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == module.split(".")[0]
        state = "is not installed" if missing else f"cannot be imported: {error}"
        raise XcodecLMError(f"the package {module} {state}", install) from None


def package_folder(name: str, install: str) -> Path:
    """Where an installed package's files lie; it is not imported.

    Raises:
        XcodecLMError: it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise XcodecLMError(f"the package {name} is not installed", install)
    return Path(next(iter(spec.submodule_search_locations)))
