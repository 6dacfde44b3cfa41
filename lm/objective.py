"""What a trainer minimises: a model, the loss of every cell of a batch, and what validation counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from xcodec_lm.lm.examples import Batch, cell_logits, cell_nats, code_bits
from xcodec_lm.lm.flops import matmul_parameters
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.layouts import Layout
from xcodec_lm.lm.packing import Packer, document_mask, flex_mask
from xcodec_lm.lm.shards import JoinedStore, TokenStore


class Examples(Protocol):
    """The examples of one split, in an endless order of their own and, for validation, each once."""

    def __len__(self) -> int: ...

    def packer(self) -> Packer:
        """The rows of the endless sequence."""
        ...

    def batch(self, rows: Sequence[Sequence[int]]) -> Any:
        """Rows of positions of that sequence as a batch."""
        ...

    def fixed_batch(self, slots: Sequence[int]) -> Any:
        """Examples as a batch, one a row; None where there is nothing to predict."""
        ...

    def recording(self, slot: int) -> int:
        """Which recording of the store an example is of."""
        ...


@dataclass(frozen=True)
class Material:
    """What a run trains on.

    Attributes:
        store: the tokens.
        train: examples to learn from.
        dev: examples to validate on.
        per_step: rows in an optimizer step, over all devices.
        per_micro: rows that one device takes at once.
    """

    store: TokenStore | JoinedStore
    train: Examples
    dev: Examples
    per_step: int
    per_micro: int


class Objective(nn.Module):
    """A model and its loss as one module, so that data parallelism and compilation see one forward pass.

    A batch has the attributes `inputs`, `targets`, `rows`, `places` and `document` of `lm.examples.Batch`, and may have
    more. `forward` takes what `prepare` gives and returns nats (B, L, W), 0 where there is nothing to predict.

    Args:
        model: the language model; it has `save_pretrained(folder, extra)`.
        books: the codebooks that losses are reported of; `rows` of a batch counts in it.

    Attributes:
        weights: parameters that every position is multiplied with.
        facts: JSON values that the exported model's config.json gets.
    """

    facts: dict[str, Any] = {}  # noqa: RUF012 - replaced, never changed

    def __init__(self, model: nn.Module, books: Sequence[int]):
        super().__init__()
        self.model, self.books = model, tuple(books)
        self.weights = matmul_parameters(model)

    def empty(self) -> nn.Module:
        """A model of the same shape without weights, on the meta device."""
        raise TypeError(f"{type(self).__name__} makes no empty model")

    def prepare(self, batch: Any, flex: bool = False) -> tuple[Any, ...]:
        """The arguments of `forward`.

        Args:
            batch: on the model's device.
            flex: whether attention may be flex attention, compiled for a GPU.
        """
        raise TypeError(f"{type(self).__name__} prepares no batch")

    def bits(self, model: nn.Module, batch: Any) -> Tensor:
        """(B, L, W) bits of every code under a model of this kind, as decoding would draw it; 0 where none is."""
        raise TypeError(f"{type(self).__name__} counts no bits")


class Cells(Objective):
    """The decoder over a token layout: cross entropy of every cell of the grid.

    Args:
        model: the language model.
        layout: of its ids.
    """

    model: GPT

    def __init__(self, model: GPT, layout: Layout):
        super().__init__(model, layout.books)
        self.layout = layout
        self.weights = matmul_parameters(model, *(() if model.head is not None else (model.wte.weight,)))

    def empty(self) -> GPT:
        """See `Objective.empty`."""
        with torch.device("meta"):
            return type(self.model)(self.model.config, self.model.vocab_size, self.model.prefix)

    def prepare(self, batch: Batch, flex: bool = False) -> tuple[Any, ...]:
        """Inputs, targets, and the positions and mask of rows that hold several stretches."""
        if batch.document is None:
            return batch.inputs, batch.targets, None, None
        mask = flex_mask(batch.document) if flex else document_mask(batch.document)
        return batch.inputs, batch.targets, batch.places, mask

    def forward(self, inputs: Tensor, targets: Tensor, places: Tensor | None, mask: Any) -> Tensor:
        """(B, L, W) nats of every cell; 0 where there is nothing to predict."""
        return cell_nats(self.layout, cell_logits(self.model, self.layout, inputs, targets, places, mask), targets)

    def bits(self, model: nn.Module, batch: Batch) -> Tensor:
        """See `Objective.bits`."""
        assert isinstance(model, GPT)
        inputs, targets, places, mask = self.prepare(batch)
        return code_bits(self.layout, cell_logits(model, self.layout, inputs, targets, places, mask), batch)
