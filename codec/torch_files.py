"""Tensors out of files that others wrote, without running anything that such a file may ask for.

A file of `torch.save` is a pickle: a small program that can name any function of the machine. `load_tensors` tries
safetensors, then `torch.load(weights_only=True)`, and last the restricted unpickler below, for the files that
`weights_only` refuses because of stray objects beside the weights. The unpickler never imports what a file names: a
name is looked up in one table of stand-ins that can only hold data, and a name outside of it ends the loading.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from xcodec_lm.configs.errors import XcodecLMError

WRAPPERS = ("codec_model", "state_dict", "model_state_dict", "best_state", "model")
"""Keys under which training programs put a model's weights, beside optimizers and counters."""
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""First value of a file that PyTorch wrote before 1.6."""
_EXTENSIONS = ("EXT1", "EXT2", "EXT4")
"""Opcodes whose targets come out of a table of the process, past `find_class`."""


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights in a file, and what else it holds.

    Args:
        path: safetensors, or a file of `torch.save`: a state dict, or a training state that wraps one (see `WRAPPERS`).

    Returns:
        Tensors on the CPU by name, without a common `module.` prefix; and everything that is not a tensor of the model,
        by name.

    Raises:
        XcodecLMError: the file is missing, damaged, not a file of weights, or asks for objects that are not data.
    """
    path = Path(path)
    content = _read(path)
    other: dict[str, Any] = {}
    if not isinstance(content, Mapping):
        raise XcodecLMError(f"{path} holds a {type(content).__name__}, not named tensors")
    for _ in range(4):  # a file may hold itself
        if (inner := _wrapped(content)) is None:
            break
        other |= {str(key): value for key, value in content.items() if key != inner}
        content = content[inner]
    tensors: dict[str, Tensor] = {}
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            tensors[key] = value.detach()
        else:
            other[str(key)] = value
    if not tensors:
        raise XcodecLMError(f"{path} holds no tensors; its keys are {', '.join(map(str, list(content)[:5])) or 'none'}")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors, other


def describe(value: Any) -> str:
    """What a value beside the weights is, in a few words."""
    if isinstance(value, InertBytes):
        return f"BytesIO of {len(value.content)} bytes, not read"
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    if isinstance(value, (Mapping, list, tuple, set)):
        return f"{'dict' if isinstance(value, Mapping) else type(value).__name__} of {len(value)}"
    return f"{type(value).__name__} {str(value)[:40]}" if value is not None else "None"


def _wrapped(content: Mapping[Any, Any]) -> str | None:
    """The key of the mapping that holds the model's tensors, or None if `content` holds them itself."""
    inner = [key for key, value in content.items() if isinstance(value, Mapping) and _has_tensors(value)]
    for key in WRAPPERS:
        if key in inner and content[key] is not content:
            return key
    return inner[0] if len(inner) == 1 and not _has_tensors(content, 0) else None


def _has_tensors(content: Mapping[Any, Any], depth: int = 2) -> bool:
    if any(isinstance(value, Tensor) for value in content.values()):
        return True
    inner = [content[key] for key in WRAPPERS if depth and isinstance(content.get(key), Mapping)]
    return any(_has_tensors(value, depth - 1) for value in inner)


def _read(path: Path) -> Any:
    if path.is_dir():
        raise XcodecLMError(f"{path} is a folder, not a file of weights", "name the file in it")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise XcodecLMError(f"cannot read {path}: {error.strerror}") from None
    if size == 0:
        raise XcodecLMError(f"{path} is empty", "download or copy it again")
    if path.suffix == ".safetensors" or (head[8:] == b"{" and not head.startswith((b"PK", b"\x80"))):
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise XcodecLMError(f"{path} is not a whole safetensors file: {error}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # many kinds; the reader below either reads the file or says what is wrong with it
        return read_restricted(path)


# ---------------------------------------------------------------------- the restricted reader


def read_restricted(path: Path) -> Any:
    """What a file of `torch.save` holds, by the restricted unpickler alone.

    Args:
        path: of either format, the zip archive of today or the plain pickles before PyTorch 1.6.

    Returns:
        The object, made of tensors, dicts, lists, tuples, sets, numbers, text, bytes and `InertBytes`.

    Raises:
        XcodecLMError: the file names something outside the allowed, or is damaged, or is no such file.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                return _read_archive(path)
            file.seek(0)
            return _read_legacy(file, path.stat().st_size)
    except _Refused as error:
        raise XcodecLMError(
            f"{path}: the file asks for {error}, which is not data; it was not loaded and nothing of it was run",
            "a file that holds weights alone needs no such thing; if you trust where it comes from, load it there and "
            "save its state dict as safetensors",
        ) from None
    except XcodecLMError as error:
        raise XcodecLMError(f"{path}: {error.message}", error.hint) from None
    except Exception as error:  # whatever bytes that are no pickle, or half of one, lead to
        raise XcodecLMError(
            f"{path} is damaged, cut off, or not a file of torch.save ({type(error).__name__}: {error})",
            "download or copy it again",
        ) from None


class _Refused(Exception):
    """A global outside of the table."""


class InertBytes:
    """Stands for an `io.BytesIO` in a file: its bytes are kept and never looked into."""

    __slots__ = ("content",)

    def __init__(self, content: bytes = b""):
        self.content = content
        if not isinstance(content, bytes):
            raise pickle.UnpicklingError("a BytesIO of something else than bytes")

    def __setstate__(self, state: tuple[bytes, int, Any]):
        self.__init__(state[0])


class _StateDict(dict):
    """A dict whose attributes a file cannot set; `OrderedDict` pickles carry some (`_metadata`)."""

    __slots__ = ()

    def __setstate__(self, state: Any):
        pass


class _StorageType:
    """Stands for `torch.FloatStorage` and its like."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype

    def __setstate__(self, state: Any):
        raise pickle.UnpicklingError("a state for a type")


class _NumpyType:
    """Stands for a `numpy.dtype` of plain numbers."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, *_: Any):
        self.code, self.order = str(code), "="

    def __setstate__(self, state: tuple[Any, ...]):
        self.order = state[1] if state[1] in ("<", ">") else "="

    def number(self, raw: bytes) -> Any:
        """The Python number that a numpy scalar's bytes are."""
        dtype = np.dtype(self.code).newbyteorder(self.order)
        if dtype.kind not in "biufc":
            raise pickle.UnpicklingError(f"a numpy scalar of type {self.code}")
        return np.frombuffer(raw, dtype)[0].item()


class _Maker:
    """A function that a file may call. It has no attributes, so a file cannot change the function behind it."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]):
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, state: Any):
        raise pickle.UnpicklingError("a state for a function")


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if not isinstance(storage, Tensor) or math.prod(size) > storage.numel():
        raise pickle.UnpicklingError("a tensor that is larger than its storage")
    return torch.as_strided(storage, size, stride, offset)  # refuses to look beyond the storage


def _numpy_scalar(dtype: Any, raw: Any = b"") -> Any:
    if not isinstance(dtype, _NumpyType) or not isinstance(raw, bytes):
        raise pickle.UnpicklingError("a numpy scalar without type or bytes")
    return dtype.number(raw)


def _encode(text: Any, encoding: Any) -> bytes:
    """`_codecs.encode`, by which old pickles write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"text encoded as {encoding}")
    return text.encode("latin1")


STORAGE_TYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Maker(_StateDict),
    ("collections", "Counter"): _Maker(_StateDict),
    ("collections", "defaultdict"): _Maker(lambda *_: _StateDict()),
    ("torch", "Size"): _Maker(tuple),
    ("torch", "device"): _Maker(lambda *where: ":".join(map(str, where))),
    ("torch._utils", "_rebuild_tensor"): _Maker(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Maker(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Maker(lambda data, *_: data),
    ("torch._utils", "_rebuild_parameter_with_state"): _Maker(lambda data, *_: data),
    ("_codecs", "encode"): _Maker(_encode),
    ("numpy", "dtype"): _Maker(_NumpyType),
    ("io", "BytesIO"): InertBytes,
    ("_io", "BytesIO"): InertBytes,
    **{(module, "scalar"): _Maker(_numpy_scalar) for module in ("numpy.core.multiarray", "numpy._core.multiarray")},
    **{
        (module, kind.__name__): _Maker(kind)
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset, complex, list, dict, int, float)
    },
    **{(module, "bytes"): _Maker(lambda: b"") for module in ("builtins", "__builtin__")},  # how empty ones are written
    **{("torch", name): _StorageType(dtype) for name, dtype in STORAGE_TYPES.items()},
    **{("torch", str(dtype).removeprefix("torch.")): str(dtype) for dtype in STORAGE_TYPES.values()},
}
"""Every global that a file may name, and what it gets instead. None of them reaches a module, class or function that
exists outside of this file, and none but the inert ones has attributes that a file could set."""


class _RestrictedUnpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], storage: Callable[..., Tensor]):
        super().__init__(file, encoding="latin1")
        self._storage = storage

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return ALLOWED[module_name, global_name]
        except KeyError:
            raise _Refused(f"{module_name}.{global_name}") from None

    def persistent_load(self, pid: Any) -> Tensor:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], _StorageType):
            raise pickle.UnpicklingError("a reference to something that is not a storage")
        if len(pid) > 5 and pid[5] is not None:
            raise pickle.UnpicklingError("a view of a storage")
        return self._storage(str(pid[2]), pid[1].dtype, int(pid[4]))


def _unpickle(file: IO[bytes], storage: Callable[..., Tensor]) -> Any:
    """One pickle from where `file` stands, which is then at its end."""
    start = file.tell()
    for opcode, _, _ in pickletools.genops(file):
        if opcode.name in _EXTENSIONS:
            raise _Refused("an extension of this process")
    file.seek(start)
    return _RestrictedUnpickler(file, storage).load()


def _no_storage(*_: Any) -> Tensor:
    raise pickle.UnpicklingError("a storage in the header")


def _read_archive(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info for info in archive.infolist()}
        programs = [name for name in sizes if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(programs) != 1:
            raise XcodecLMError("a zip archive, but not one of torch.save")
        folder = programs[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in sizes and archive.read(f"{folder}byteorder").decode() != sys.byteorder:
            raise XcodecLMError(f"written on a machine of the other byte order than this one ({sys.byteorder})")
        known: dict[str, Tensor] = {}

        def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
            if key not in known:
                info = sizes[f"{folder}data/{key}"]
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != count * dtype.itemsize:
                    raise pickle.UnpicklingError(f"storage {key} has not the size that is stated")
                known[key] = torch.frombuffer(bytearray(archive.read(info)), dtype=dtype) if count else _empty(dtype)
            return known[key]

        return _unpickle(io.BytesIO(archive.read(programs[0])), storage)


def _read_legacy(file: IO[bytes], size: int) -> Any:
    if _unpickle(file, _no_storage) != LEGACY_MAGIC:
        raise XcodecLMError("a pickle, but not one of torch.save")
    _unpickle(file, _no_storage)  # the protocol's version
    system = _unpickle(file, _no_storage)
    if system["little_endian"] != (sys.byteorder == "little"):
        raise XcodecLMError(f"written on a machine of the other byte order than this one ({sys.byteorder})")
    known: dict[str, Tensor] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        if key not in known:
            taken = sum(tensor.nbytes for tensor in known.values())
            if not 0 <= count * dtype.itemsize <= size - taken:
                raise pickle.UnpicklingError(f"storage {key} is larger than what the file holds")
            known[key] = torch.zeros(count, dtype=dtype)  # the numbers follow after the program
        return known[key]

    content = _unpickle(file, storage)
    for key in _unpickle(file, _no_storage):
        target = known[str(key)]
        (count,) = struct.unpack("<q", file.read(8))
        raw = file.read(count * target.dtype.itemsize)
        if count != target.numel() or len(raw) != target.nbytes:
            raise EOFError(f"storage {key} is cut off")
        if count:
            target.copy_(torch.frombuffer(bytearray(raw), dtype=target.dtype))
    return content


def _empty(dtype: torch.dtype) -> Tensor:
    return torch.empty(0, dtype=dtype)
