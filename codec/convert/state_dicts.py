"""State dicts of other programs: renaming by tables, weight norm in every spelling, and strict comparison.

Names are "module.leaf"; a table maps the modules of one layout to those of another, one to one, so that it reads the
same in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from xcodec_lm.configs.errors import XcodecLMError

SPELLINGS = {
    "split": ("weight_g", "weight_v"),
    "parametrized": ("parametrizations.weight.original0", "parametrizations.weight.original1"),
}
"""Leaves of length and direction: of `torch.nn.utils.weight_norm`, and of its successor in `parametrizations`."""
INCOMPLETE = "the file is damaged or was edited; download or copy it again"
KIND = "is the file of the kind that it is taken for?"


def owners_of_norm(keys: Iterable[str]) -> set[str]:
    """The modules whose weights are stored as length and direction, in either spelling."""
    ends = tuple("." + lengths for lengths, _ in SPELLINGS.values())
    return {key.removesuffix(end) for key in keys for end in ends if key.endswith(end)}


def fold_weight_norm(tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict with plain weights.

    The arithmetic is that of torch's own hooks, bit by bit. The dimension that keeps its lengths is read off the
    shapes: 0 for convolutions (transposed ones too), 2 for a teacher's positional convolution.

    Args:
        tensors: weights in any spelling, or plain.
        where: the file, for errors.

    Returns:
        The plain state dict; and names of stale plain weights that lay beside a split one, which are left out.

    Raises:
        XcodecLMError: half of a pair is missing, or shapes that no weight norm has.
    """
    folded, stale = dict(tensors), []
    for owner in sorted(owners_of_norm(tensors)):
        for lengths, direction in SPELLINGS.values():
            if f"{owner}.{lengths}" not in tensors:
                continue
            length = folded.pop(f"{owner}.{lengths}")
            vectors = folded.pop(f"{owner}.{direction}", None)
            if vectors is None:
                raise XcodecLMError(f"{where}: {owner}.{lengths} is there, {owner}.{direction} is missing", INCOMPLETE)
            if f"{owner}.weight" in tensors:
                stale.append(f"{owner}.weight")
            dims = [dim for dim in (0, vectors.dim() - 1) if length.shape == _length_shape(vectors, dim)]
            if not dims:
                raise XcodecLMError(
                    f"{where}: {owner}.{lengths} has shape {tuple(length.shape)}, which does not fit a direction of "
                    f"{tuple(vectors.shape)}",
                    INCOMPLETE,
                )
            weight = torch._weight_norm(_wide(vectors), _wide(length), dims[0])
            folded[f"{owner}.weight"] = weight.to(vectors.dtype)
    for key in tensors:
        for _, direction in SPELLINGS.values():
            if key.endswith(f".{direction}") and key in folded:
                raise XcodecLMError(f"{where}: {key} is there, but not the lengths that belong to it", INCOMPLETE)
    return folded, stale


def split_weight_norm(
    tensors: Mapping[str, Tensor], owners: Iterable[str], dim: int = 0, spelling: str = "split"
) -> dict[str, Tensor]:
    """A state dict in which some plain weights are stored as length and direction.

    The direction is the weight itself and the length its norm, so folding gives the same bits again.

    Args:
        tensors: with plain weights.
        owners: the modules to split.
        dim: the dimension that keeps its lengths.
        spelling: a key of `SPELLINGS`.
    """
    lengths, direction = SPELLINGS[spelling]
    split = dict(tensors)
    for owner in owners:
        weight = split.pop(f"{owner}.weight")
        wide = _wide(weight).contiguous()
        # torch's own norm: one computed otherwise differs in the last bit, and the weight with it
        length = torch._weight_norm_interface(wide, wide.new_ones(_length_shape(wide, dim)), dim)[1]
        split[f"{owner}.{lengths}"] = length.to(weight.dtype)
        split[f"{owner}.{direction}"] = torch.where(length == 0, torch.ones_like(weight), weight)  # 0 / 0 otherwise
    return split


def respell_weight_norm(tensors: Mapping[str, Tensor], owner: str, dim: int, spelling: str) -> dict[str, Tensor]:
    """A state dict in which one module's weight norm has a given spelling; a plain weight is split.

    Args:
        tensors: with the module in any spelling.
        owner: the module; a state dict without it comes back as it is.
        dim: the dimension that keeps its lengths, for a plain weight.
        spelling: a key of `SPELLINGS`.
    """
    if f"{owner}.weight" in tensors and owner not in owners_of_norm(tensors):
        return split_weight_norm(tensors, [owner], dim, spelling)
    names = {
        f"{owner}.{old}": f"{owner}.{new}"
        for pair in SPELLINGS.values()
        for old, new in zip(pair, SPELLINGS[spelling], strict=True)
    }
    return {names.get(key, key): value for key, value in tensors.items()}


def rename_modules(
    tensors: Mapping[str, Tensor], modules: Mapping[str, str], prefixes: Mapping[str, str]
) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict under other names.

    Args:
        tensors: plain, see `fold_weight_norm`.
        modules: module here -> module there.
        prefixes: beginnings of names under which everything keeps the rest of its name.

    Returns:
        The renamed, and the names that neither table knows.
    """
    renamed: dict[str, Tensor] = {}
    unknown = []
    for key, value in tensors.items():
        module, _, leaf = key.rpartition(".")
        prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
        if prefix is not None:
            renamed[prefixes[prefix] + key.removeprefix(prefix)] = value
        elif module in modules:
            renamed[f"{modules[module]}.{leaf}"] = value
        else:
            unknown.append(key)
    return renamed, unknown


def inverted(table: Mapping[str, str]) -> dict[str, str]:
    """A one-to-one table read the other way."""
    return {value: key for key, value in table.items()}


def indices_after(keys: Iterable[str], prefix: str) -> list[int]:
    """The numbers that follow a prefix in names, in order: [0, 1] for `block.0.x` and `block.1.y` after `block.`."""
    found = {key.removeprefix(prefix).split(".")[0] for key in keys if key.startswith(prefix)}
    return sorted(int(index) for index in found if index.isdigit())


def check_state(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str, name: Callable[[str], str] = str
) -> None:
    """Refuses a state dict that is not exactly a model's.

    Args:
        tensors: what was read.
        expected: the model's own state dict; only names and shapes are looked at.
        where: the file, for errors.
        name: from a name of the model's to the one in the file.

    Raises:
        XcodecLMError: missing or unknown names, or other shapes; the first few and how many.
    """
    if missing := [key for key in expected if key not in tensors]:
        refuse(f"{where}: weights are missing", [name(key) for key in missing])
    if unknown := [key for key in tensors if key not in expected]:
        refuse(f"{where}: weights that this model does not have", [name(key) for key in unknown])
    for key, value in expected.items():
        if tensors[key].shape != value.shape:
            raise XcodecLMError(
                f"{where}: {name(key)} has shape {tuple(tensors[key].shape)}, expected {tuple(value.shape)}",
                "give the sizes that shapes cannot tell with --config",
            )


def refuse(what: str, names: list[str]) -> None:
    """Raises an error that lists the first few names and says how many there are."""
    raise XcodecLMError(f"{what}: {', '.join(names[:3])} ({len(names)} in all)", KIND)


def shape_of(tensors: Mapping[str, Tensor], key: str, where: str) -> tuple[int, ...]:
    """The shape of a tensor that has to be there.

    Raises:
        XcodecLMError: it is not.
    """
    if key not in tensors:
        raise XcodecLMError(f"{where}: {key} is missing", KIND)
    return tuple(tensors[key].shape)


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _length_shape(vectors: Tensor, dim: int) -> tuple[int, ...]:
    return tuple(size if i == dim else 1 for i, size in enumerate(vectors.shape))
