"""Plug-ins by name: what each needs, where it comes from, and how it is loaded.

`plugin_table` lists them. A loader is named there as `module:function` and imported when it is called, so the list can
be printed without loading anything heavy. It is called `loader(source, device)`: `source` is the path that the user
gave (a folder or a file), None for a plug-in that needs none.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from xcodec_lm.configs.errors import UsageError, XcodecLMError

Kind = Literal["transcriber", "speaker", "embedder", "mos", "clap"]
Tier = Literal["published", "package", "trained", "own"]
"""`published`: weights that the user gives; `package`: they come inside a Python package (tier A); `trained`: made with
a command from data at hand (tier B); `own`: no weights at all."""


@dataclass(frozen=True)
class Entry:
    """One plug-in.

    Attributes:
        name: of the plug-in, as in its metrics' names.
        kind: its protocol: `Transcriber`, `SpeakerEmbedder`, `Embedder`, `MosPredictor` or `TextAudioEmbedder`.
        tier: where its weights come from.
        loader: `module:function`.
        what: model and rate, for a list.
        weights: the file or folder that has to be given; "" for none.
        packages: modules that must be importable, beside the toolkit's own needs.
        install: the command line that brings them.
        licence: of the weights, or of the code where there are none.
        origin: where the weights are published, or the command that makes them.
    """

    name: str
    kind: Kind
    tier: Tier
    loader: str
    what: str
    weights: str = ""
    packages: tuple[str, ...] = ()
    install: str = ""
    licence: str = ""
    origin: str = ""

    def missing(self) -> tuple[str, ...]:
        """Modules that are not installed; the loader's own, where this release does not have it."""
        own = self.loader.split(":")[0]
        return tuple(name for name in (own, *self.packages) if not _importable(name))

    def load(self, source: str | Path | None = None, device: str = "cpu") -> Any:
        """The plug-in.

        Args:
            source: file or folder of its weights; None where it needs none.
            device: where it computes.

        Raises:
            XcodecLMError: packages or weights are missing, or the weights do not fit; says what to do.
        """
        if missing := self.missing():
            raise XcodecLMError(f"{self.name} needs {', '.join(missing)}, which is not installed", self.install)
        if self.weights and source is None:
            raise XcodecLMError(
                f"{self.name} needs its weights ({self.weights}), and nothing is downloaded",
                f"give them as --weights {self.name}=PATH" + (f"; {self.origin}" if self.origin else ""),
            )
        module, function = self.loader.split(":")
        return getattr(importlib.import_module(module), function)(source, device)


def entries(kind: Kind | None = None) -> list[Entry]:
    """All plug-ins, or those of one kind, in the order of the table: those of published papers first."""
    from xcodec_lm.tasks.eval.plugin_table import ENTRIES

    return [entry for entry in ENTRIES if kind in (None, entry.kind)]


def find(name: str, kinds: Sequence[Kind] = ()) -> Entry:
    """The plug-in of a name.

    Raises:
        UsageError: there is none, or it is of another kind.
    """
    import difflib

    known = {entry.name: entry for entry in entries()}
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"no plug-in is called {name!r}{meant}", "list them: xcodec-lm eval list")
    if kinds and known[name].kind not in kinds:
        raise UsageError(f"{name} is a {known[name].kind}, and a {' or '.join(kinds)} is needed")
    return known[name]


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
