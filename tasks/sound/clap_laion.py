"""The second back end of CLAP: the `laion-clap` package, on LAION's own files.

The default back end (`clap_laion_files`) reads the same files and gives the same embeddings; this one is for those who
want the authors' code. The package fetches three tokenizers when it is imported and RoBERTa's weights when a model is
made, and needs torchvision for classes that a CLAP never uses. Here it gets the local tokenizer, an empty RoBERTa (the
file fills it) and, where torchvision is not installed, empty classes of those names: nothing is downloaded. Its own
loader of files, which would run what a pickle asks for, is not used either.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import transformers
from torch import Tensor, nn

from xcodec_lm.codec.semantic import quiet_transformers
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.sound.clap import ClapEmbedder, Embedder
from xcodec_lm.tasks.sound.clap_laion_files import (
    clap_from_laion,
    laion_extractor,
    read_laion,
    roberta_tokenizer,
)

INSTALL = "pip install 'xcodec-lm[clap]'"
TOWERS = {96: "HTSAT-tiny", 128: "HTSAT-base", 256: "HTSAT-large"}
"""Features of a patch -> what the package calls a tower with so many."""
TOKENIZERS = ("BertTokenizer", "RobertaTokenizer", "BartTokenizer")
"""Classes whose files the package fetches when it is imported."""
VISION = ("torchvision", "torchvision.ops", "torchvision.ops.misc", "torchvision.datasets", "torchvision.transforms")
"""Modules that it imports for classes which a CLAP never uses."""


class LaionClapEmbedder(Embedder):
    """A model of the `laion-clap` package as a `TextAudioEmbedder`.

    Args:
        module: the package's `CLAP_Module`, with its weights.
        reference: the same weights in the default back end, for fingerprint and sizes.
        ancestry: see `TextAudioEmbedder`.
    """

    def __init__(self, module: Any, reference: ClapEmbedder, ancestry: dict[str, Any]):
        self.module, self.fingerprint = module, reference.fingerprint
        super().__init__(
            reference.tokenizer, reference.longest, reference.name, ancestry, reference.dim, reference.sample_rate,
            reference.window,
        )  # fmt: skip

    def text_vector(self, ids: Tensor) -> Tensor:
        """See `Embedder`."""
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return self.module.get_text_embedding([""], tokenizer=lambda _: inputs, use_tensor=True)[0]

    def audio_vectors(self, windows: Sequence[Tensor]) -> Tensor:
        """See `Embedder`. A window is never longer than what the package would crop at random."""
        return self.module.get_audio_embedding_from_data(list(windows), use_tensor=True)


def load_laion_package(path: Path, device: str | torch.device = "cpu") -> LaionClapEmbedder:
    """One of LAION's files in the `laion-clap` package.

    Args:
        path: the file, as published, with RoBERTa's vocabulary in the same folder.
        device: where it computes.

    Raises:
        XcodecLMError: the package is not installed, the file or the vocabulary is missing or damaged, or the package
            has no model of such sizes.
    """
    if importlib.util.find_spec("laion_clap") is None:
        raise XcodecLMError(
            "the package laion-clap is not installed", f"{INSTALL} (or leave out `laion-clap:`: the same embeddings)"
        )
    tokenizer = roberta_tokenizer(path.parent)
    tensors = read_laion(path)
    reference = ClapEmbedder(
        clap_from_laion(tensors, path).eval(), tokenizer, laion_extractor(), path.stem, {"weights_from": path.name}
    )
    sizes = reference.model.config
    tower = TOWERS.get(sizes.audio_config.patch_embeds_hidden_size)
    if tower is None:
        raise XcodecLMError(f"{path}: laion-clap has no HTSAT of this size", "leave out `laion-clap:`")
    with offline(tokenizer, sizes.text_config):
        try:
            package = importlib.import_module("laion_clap")
        except ImportError as error:
            raise XcodecLMError(f"laion-clap cannot be imported: {error}", INSTALL) from None
        module = package.CLAP_Module(enable_fusion=False, device=str(device), amodel=tower)
    left_out = ("text_branch.embeddings.position_ids", "text_branch.embeddings.token_type_ids")
    try:
        module.model.load_state_dict({key: value for key, value in tensors.items() if key not in left_out})
    except RuntimeError as error:
        raise XcodecLMError(f"{path} does not fit {tower} of laion-clap: {error}") from None
    module.eval().requires_grad_(False)
    return LaionClapEmbedder(module, reference, {"weights_from": path.name, "back_end": "laion-clap"})


@contextlib.contextmanager
def offline(tokenizer: Any, text: Any) -> Iterator[None]:
    """While it lasts, what laion-clap would fetch is given to it, and torchvision seems to be there.

    Args:
        tokenizer: given for every tokenizer that is asked for; only RoBERTa's is ever used.
        text: sizes of the RoBERTa that is given.
    """
    sizes = transformers.RobertaConfig(
        vocab_size=text.vocab_size, hidden_size=text.hidden_size, num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads, intermediate_size=text.intermediate_size,
        max_position_embeddings=text.max_position_embeddings, type_vocab_size=1, layer_norm_eps=text.layer_norm_eps,
    )  # fmt: skip
    path, empty = list(sys.path), [] if importlib.util.find_spec(VISION[0]) else _empty_modules()
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet_transformers())
        for name in TOKENIZERS:
            cls = getattr(transformers, name)
            stack.enter_context(mock.patch.object(cls, "from_pretrained", lambda *_, **__: tokenizer))
        roberta = mock.patch.object(
            transformers.RobertaModel, "from_pretrained", lambda *_, **__: transformers.RobertaModel(sizes)
        )
        stack.enter_context(roberta)
        try:
            sys.modules.update({module.__name__: module for module in empty})
            yield
        finally:
            sys.path[:] = path  # the package adds its own folder, whose names are common ones
            for module in empty:
                sys.modules.pop(module.__name__, None)


def _empty_modules() -> list[ModuleType]:
    """Modules of torchvision's names in which every class is there and does nothing."""

    def make(name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (nn.Module,), {})

    modules = {name: ModuleType(name) for name in VISION}
    for name, module in modules.items():
        module.__dict__["__path__"] = []
        module.__dict__["__getattr__"] = make
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(modules[parent], last, module)
    return list(modules.values())
