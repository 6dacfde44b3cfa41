"""What holds the project together: import direction, package list, guards, what a wheel contains."""

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from xcodec_lm import configs

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("configs", "codec", "lm", "tasks")
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imported(path, top_level=False):
    """Names of all modules that a file imports, wherever in it; `from a import b` gives a and a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name_of(path)} line {node.lineno}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_downwards(path):
    layer = path.relative_to(ROOT).parts[0]
    own = {name.split(".")[1] for name in imported(path) if name.startswith("xcodec_lm.")}
    assert own & set(LAYERS) <= set(LAYERS[: LAYERS.index(layer) + 1])


def test_the_check_of_imports_sees_something():
    assert "xcodec_lm.codec.load.load_codec" in set(imported(ROOT / "codec" / "__init__.py"))
    assert {"yaml", "xcodec_lm.configs.errors"} <= set(imported(ROOT / "configs" / "loader.py"))
    assert len(SOURCES) > 30


@pytest.mark.parametrize("path", sorted((ROOT / "lm").rglob("*.py")), ids=name_of)
def test_language_models_know_tokens_and_runs_but_no_codec(path):
    allowed = ("xcodec_lm.codec.tokens", "xcodec_lm.codec.runtime")
    for name in imported(path):
        if name.startswith("xcodec_lm.codec"):
            assert name.startswith(allowed), f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=name_of)
def test_tests_import_by_full_names(path):
    plain = set(LAYERS) | {"tests"}
    assert not {name.split(".")[0] for name in imported(path)} & plain


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_modules_say_what_they_are_for(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{name_of(path)} has no docstring"


def test_no_torchaudio_and_relatives():
    banned = {"torchaudio", "torchvision", "torchcodec"}
    for path in SOURCES:
        assert not {name.split(".")[0] for name in imported(path)} & banned, name_of(path)
    everything = str(PYPROJECT["project"]["dependencies"]) + str(PYPROJECT["project"]["optional-dependencies"])
    assert not [name for name in banned if name in everything]


def test_code_imports_core_dependencies_only():
    """At the top of a module; inside functions, those of the extras too."""
    import_names = {"pyyaml": "yaml", "espeakng-loader": "espeakng_loader"}
    core = PYPROJECT["project"]["dependencies"]
    known = {name.split(">=")[0].strip() for name in core}
    allowed = {import_names.get(name, name) for name in known} | set(sys.stdlib_module_names)
    allowed |= {"xcodec_lm", "huggingface_hub", "markupsafe"}  # these come with transformers and jinja2
    extras = {item.split(">=")[0] for group in PYPROJECT["project"]["optional-dependencies"].values() for item in group}
    for path in SOURCES:
        assert {name.split(".")[0] for name in imported(path, top_level=True)} <= allowed, name_of(path)
        lazily = {name.split(".")[0] for name in imported(path)}
        assert lazily <= allowed | {import_names.get(name, name) for name in extras}, name_of(path)


def test_package_list_is_complete():
    folders = {path.parent for layer in LAYERS for path in (ROOT / layer).rglob("__init__.py")}
    expected = {f"xcodec_lm.{folder.relative_to(ROOT).as_posix().replace('/', '.')}" for folder in folders}
    assert len(SETUPTOOLS["packages"]) == len(set(SETUPTOOLS["packages"]))
    assert set(SETUPTOOLS["packages"]) == expected


def test_every_source_file_belongs_to_a_package():
    strays = [name_of(path) for path in SOURCES if not (path.parent / "__init__.py").is_file()]
    assert strays == []


def test_folders_are_mapped_to_their_names():
    assert SETUPTOOLS["package-dir"] == {f"xcodec_lm.{layer}": layer for layer in LAYERS}
    assert SETUPTOOLS["include-package-data"] is False


def test_only_the_agreed_folders_hold_code():
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        listed_files = [name_of(path) for path in ROOT.glob("*/*.py")]
    else:
        listed_files = listed.stdout.split()
    assert {name.split("/")[0] for name in listed_files} <= {*LAYERS, "tests"}


@pytest.mark.parametrize("layer", LAYERS)
def test_plain_import_from_the_checkout_is_refused_with_the_right_name(layer):
    done = subprocess.run(
        [sys.executable, "-c", f"import {layer}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ImportError" in done.stderr.splitlines()[-1] and f"xcodec_lm.{layer}" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("layer", LAYERS)
def test_type_checkers_find_the_packages(layer):
    link = ROOT / ".typing" / "xcodec_lm" / layer
    assert link.is_symlink() and not os.path.isabs(os.readlink(link))
    assert link.resolve() == ROOT / layer


def test_packages_are_typed():
    assert all((ROOT / layer / "py.typed").is_file() for layer in LAYERS)


def test_uninstalled_checkout_runs():
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".typing")}
    command = [sys.executable, "-m", "xcodec_lm.tasks.cli", "presets", "ls", "-v"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == configs.presets()
    command = [sys.executable, "-c", "import xcodec_lm.tasks as package; print(package.__file__)"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert Path(done.stdout.strip()) == ROOT / ".typing" / "xcodec_lm" / "tasks" / "__init__.py"


def test_help_needs_no_torch():
    code = (
        "import sys; from xcodec_lm.tasks.cli import main; code = main(['--help']);"
        "print(code, sorted({'torch', 'transformers', 'numpy', 'accelerate'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_token_interface_needs_no_model():
    code = "import sys; import xcodec_lm.codec.tokens; print(sorted({'transformers', 'accelerate'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def tracked():
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:  # an unpacked archive
        return [path for path in ROOT.rglob("*") if path.is_file() and not {".git", ".venv", "runs"} & set(path.parts)]
    return sorted({path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()})


def test_tracked_files_stay_small():
    sizes = {name_of(path): path.stat().st_size for path in tracked()}
    assert {name: size for name, size in sizes.items() if size > 8 * 2**20} == {}
    assert sum(sizes.values()) < 32 * 2**20


def test_command_is_the_entry_point():
    assert PYPROJECT["project"]["scripts"] == {"xcodec-lm": "xcodec_lm.tasks.cli:main"}
    assert PYPROJECT["project"]["requires-python"] == ">=3.11"


def test_lower_bounds_only_and_constraints_pin_them():
    project = PYPROJECT["project"]
    listed = project["dependencies"] + [item for group in project["optional-dependencies"].values() for item in group]
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[name.lower()] = tuple(int(part) for part in version.split(".") if part.isdigit())  # without `post1`
    for item in listed:
        if item.startswith("xcodec-lm["):
            continue
        name, bound = item.split(">=")
        assert "<" not in item and "==" not in item
        assert pins[name.lower()] >= tuple(int(part) for part in bound.split("."))


@pytest.mark.slow
def test_wheel_holds_all_that_is_needed(tmp_path):
    source = tmp_path / "source"
    for path in tracked():
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            target.symlink_to(os.readlink(path))
        else:
            target.write_bytes(path.read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)],
        cwd=source, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("xcodec_lm-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry = next(name for name in names if name.endswith("entry_points.txt"))
        assert b"xcodec-lm = xcodec_lm.tasks.cli:main" in archive.read(entry)
    assert {f"xcodec_lm/configs/presets/{name}.yaml" for name in configs.presets()} <= names
    assert {f"xcodec_lm/{layer}/py.typed" for layer in LAYERS} <= names
    assert {f"xcodec_lm/{name_of(path)}" for path in SOURCES if path in set(tracked())} <= names
    extras = {path for path in tracked() if path.suffix in (".j2", ".css", ".js")}
    assert {f"xcodec_lm/{name_of(path)}" for path in extras} <= names
    assert not [name for name in names if not name.startswith(("xcodec_lm/", "xcodec_lm-"))]
    assert not [name for name in names if "tests" in name.split("/")]
