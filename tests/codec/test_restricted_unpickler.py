"""Files of torch.save read without running them: what loads, what is refused, and that nothing refused was run."""

import builtins
import collections
import copyreg
import io
import os
import pickle
import subprocess
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from xcodec_lm.codec import torch_files
from xcodec_lm.codec.torch_files import InertBytes, describe, load_tensors, read_restricted
from xcodec_lm.configs.errors import XcodecLMError


def sample():
    rng = torch.Generator().manual_seed(0)
    base = torch.randn(6, 4, generator=rng)
    return {
        "float": base,
        "view": base[1:4, ::2],  # shares memory, with strides
        "half": base.half(),
        "bf16": base.bfloat16(),
        "long": torch.arange(5),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 7),
        "parameter": torch.nn.Parameter(base + 1),
    }


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def archive(request):
    return request.param


def saved(content, path, archive=True):
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    return path


def test_tensors_of_every_kind_come_back_equal_in_both_formats(tmp_path, archive):
    tensors = sample()
    back = read_restricted(saved(tensors, tmp_path / "x.pth", archive))
    assert list(back) == list(tensors)
    for key, value in tensors.items():
        assert torch.equal(back[key], value) and back[key].dtype == value.dtype, key
    assert all(not value.requires_grad for value in load_tensors(tmp_path / "x.pth")[0].values())


def test_state_dict_with_stray_objects_loads_where_weights_only_refuses(tmp_path, archive):
    stray = io.BytesIO(pickle.dumps(print))  # even a pickle inside stays bytes
    content = collections.OrderedDict(weight=torch.ones(2), stray=stray, lr=np.float64(2e-4), step=7, names={"a", "b"})
    content._metadata = {"": {"version": 1}}  # as Module.state_dict sets
    path = saved(content, tmp_path / "x.pth", archive)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    tensors, other = load_tensors(path)
    assert list(tensors) == ["weight"] and torch.equal(tensors["weight"], torch.ones(2))
    assert isinstance(other["stray"], InertBytes) and other["stray"].content == stray.getvalue()
    assert other["lr"] == 2e-4 and other["step"] == 7 and other["names"] == {"a", "b"}
    assert describe(other["stray"]) == f"BytesIO of {len(stray.getvalue())} bytes, not read"


@pytest.mark.parametrize(
    "number", [np.float32(1.5), np.int64(-3), np.bool_(True), np.complex64(1 + 2j), np.uint8(200), np.float16(0.5)]
)
def test_numpy_scalars_become_python_numbers(number, tmp_path):
    back = read_restricted(saved({"n": number, "t": torch.ones(1)}, tmp_path / "x.pth"))
    assert back["n"] == number.item() and type(back["n"]) is type(number.item())


def test_module_prefix_and_wrappers(tmp_path):
    inner = {f"module.{key}": value for key, value in sample().items()}
    wrapped = {"epoch": 3, "codec_model": inner, "optimizer_g": {"state": {0: {"exp_avg": torch.ones(3)}}}}
    tensors, other = load_tensors(saved(wrapped, tmp_path / "a.pth"))
    assert sorted(tensors) == sorted(sample())
    assert set(other) == {"epoch", "optimizer_g"}
    for key in ("state_dict", "model", "anything"):
        assert sorted(load_tensors(saved({key: inner, "lr": 0.1}, tmp_path / "b.pth"))[0]) == sorted(sample())
    deep = {"model": {"state_dict": inner, "version": "1"}}
    tensors, other = load_tensors(saved(deep, tmp_path / "c.pth"))
    assert sorted(tensors) == sorted(sample()) and other == {"version": "1"}


def test_a_file_that_holds_itself_ends(tmp_path):
    loop = {"model": None, "t": torch.ones(1)}
    loop["model"] = {"model": loop, "t": torch.ones(1)}
    assert list(load_tensors(saved(loop, tmp_path / "x.pth"))[0]) == ["t"]


# ---------------------------------------------------------------------- attacks


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class SetsState:
    """Pickles as an allowed object that a second argument is set on."""

    def __init__(self, function, args, state):
        self.parts = function, args, state

    def __reduce__(self):
        return self.parts


def hidden_in_globals():
    """os.system reached through attributes, in protocol 4, where dots are looked up one by one."""
    return b"\x80\x04\x8c\x02io\x8c\x21BytesIO.__class__.__mro__.__len__\x93."


def attacks(mark):
    touch = f"touch {mark}"
    return {
        "os.system": Calls(os.system, touch),
        "subprocess": Calls(subprocess.check_output, touch),
        "eval": Calls(builtins.eval, f"open({str(mark)!r}, 'w')"),
        "exec": Calls(builtins.exec, f"open({str(mark)!r}, 'w')"),
        "open": Calls(builtins.open, str(mark), "w"),
        "getattr": Calls(builtins.getattr, "text", "format"),
        "import": Calls(__import__, "os"),
        "nested pickle": Calls(pickle.loads, pickle.dumps(Calls(os.system, touch))),
        "torch.load": Calls(torch.load, str(mark)),
        "storage bytes": Calls(torch.storage._load_from_bytes, pickle.dumps(Calls(os.system, touch))),
        "map of system": Calls(map, os.system, [touch]),
        "method of bytes": Calls(io.BytesIO.write, io.BytesIO(), b"x"),
        "copyreg": Calls(copyreg._reconstructor, os._Environ, object, None),
        "defaultdict of system": collections.defaultdict(os.system, {"a": 1}),
        "numpy array": np.zeros(3),
        "class of the user": Calls(tempfile_like),
    }


def tempfile_like():
    raise AssertionError("a function of the test was run")


NAMES = list(attacks("x"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_that_a_file_asks_for_is_run(name, zipped, tmp_path):
    mark = tmp_path / "ran"
    path = saved({"weight": torch.ones(2), "x": attacks(mark)[name]}, tmp_path / "x.pth", zipped)
    with pytest.raises(XcodecLMError, match=r"asks for .* which is not data") as error:
        load_tensors(path)
    assert not mark.exists()
    assert str(path) in error.value.message and "nothing of it was run" in error.value.message


def test_refusal_names_the_global(tmp_path):
    with pytest.raises(XcodecLMError, match=f"asks for {os.system.__module__}.system,"):
        load_tensors(saved({"x": Calls(os.system, "true")}, tmp_path / "x.pth"))


def raw_archive(path, program):
    """A zip archive of torch.save with any program in it."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", program)
        file.writestr("archive/version", "3\n")
    return path


def test_attribute_chains_and_extension_codes_are_refused(tmp_path):
    with pytest.raises(XcodecLMError, match=r"asks for io.BytesIO.__class__"):
        load_tensors(raw_archive(tmp_path / "x.pth", hidden_in_globals()))
    copyreg.add_extension("os", "system", 7)
    try:
        pickle.loads(b"\x80\x02\x82\x07.")  # fills the cache that an unpickler takes extensions from
        with pytest.raises(XcodecLMError, match="asks for an extension"):
            load_tensors(raw_archive(tmp_path / "y.pth", b"\x80\x02\x82\x07."))
    finally:
        copyreg.remove_extension("os", "system", 7)
        copyreg.clear_extension_cache()


@pytest.mark.parametrize(
    "target", [b"ctorch._utils\n_rebuild_tensor_v2\n", b"cio\nBytesIO\n", b"ctorch\nFloatStorage\n", b"cnumpy\ndtype\n"]
)
def test_allowed_names_cannot_be_changed(target, tmp_path):
    """A BUILD opcode sets attributes; on a function or class it would reach every later user of it."""
    before = {key: repr(value) for key, value in vars(InertBytes).items()}
    program = b"\x80\x02" + target + b"N}X\x08\x00\x00\x00__init__K\x01s\x86b."  # state (None, {"__init__": 1})
    with pytest.raises(XcodecLMError, match="damaged"):
        load_tensors(raw_archive(tmp_path / "x.pth", program))
    assert {key: repr(value) for key, value in vars(InertBytes).items()} == before
    assert torch._utils._rebuild_tensor_v2.__defaults__ == (None,)


def test_an_allowed_dict_takes_no_attributes(tmp_path):
    state = SetsState(collections.OrderedDict, (), (None, {"items": 1}))
    content = {"weight": torch.ones(1), "x": state, "b": io.BytesIO()}
    assert read_restricted(saved(content, tmp_path / "x.pth"))["x"] == {}


def test_every_allowed_stand_in_is_ours_or_inert():
    for value in torch_files.ALLOWED.values():
        assert isinstance(value, str) or type(value).__module__ == torch_files.__name__ or value is InertBytes


# ---------------------------------------------------------------------- what is no file of weights


def bomb(path, count):
    """A legacy file whose program states a storage of `count` numbers and brings none."""
    head = [pickle.dumps(value, 2) for value in (torch_files.LEGACY_MAGIC, 1001, {"little_endian": True})]
    program = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
        b"X\x03\x00\x00\x00cpu" + number_opcode(count) + b"NtQK\x00" + number_opcode(count) + b"\x85K\x01\x85"
        b"\x89ccollections\nOrderedDict\n)RtR."
    )
    path.write_bytes(b"".join(head) + program)
    return path


def number_opcode(number):
    return pickle.dumps(number, 2)[2:-1]


def test_storages_larger_than_the_file_are_refused_before_memory_is_taken(tmp_path):
    program = bomb(tmp_path / "x.pth", 10**12)
    with pytest.raises(XcodecLMError, match="storage 0 is larger than what the file holds"):
        load_tensors(program)


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_files_at_every_length(zipped, tmp_path):
    whole = saved({"w": torch.arange(40.0), "b": io.BytesIO(b"x" * 20)}, tmp_path / "x.pth", zipped).read_bytes()
    path = tmp_path / "cut.pth"
    for length in range(1, len(whole) - 1, max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        with pytest.raises(XcodecLMError, match=r"cut.pth"):
            load_tensors(path)


@given(st.binary(min_size=1, max_size=200))
def test_noise_never_does_more_than_fail(tmp_path_factory, noise):
    path = tmp_path_factory.mktemp("noise") / "x.pth"
    path.write_bytes(noise)
    with pytest.raises(XcodecLMError):
        load_tensors(path)


def test_clear_errors_for_what_is_no_checkpoint(tmp_path):
    cases = {
        "empty.pth": (b"", "is empty"),
        "notes.txt": (b"hello, these are my notes\n", "not a file of torch.save"),
        "page.pth": (b"<!DOCTYPE html><html></html>", "not a file of torch.save"),
        "cut.safetensors": (b"\xff\x00\x00\x00\x00\x00\x00\x00{", "not a whole safetensors file"),
        "pickle.pth": (pickle.dumps([1, 2], 2), "not one of torch.save"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(XcodecLMError, match=message):
            load_tensors(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("a.txt", "x")
    with pytest.raises(XcodecLMError, match=r"but not one of torch.save"):
        load_tensors(tmp_path / "other.zip")
    with pytest.raises(XcodecLMError, match="is a folder"):
        load_tensors(tmp_path)
    with pytest.raises(XcodecLMError, match="cannot read"):
        load_tensors(tmp_path / "none.pth")
    with pytest.raises(XcodecLMError, match="holds a list"):
        load_tensors(saved([torch.ones(1)], tmp_path / "list.pth"))
    with pytest.raises(XcodecLMError, match="no tensors; its keys are epoch"):
        load_tensors(saved({"epoch": 1}, tmp_path / "epoch.pth"))


def test_safetensors_are_read_whatever_the_name(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "x.bin")
    assert torch.equal(load_tensors(tmp_path / "x.bin")[0]["a"], torch.ones(2))
