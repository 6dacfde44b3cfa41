"""The decoder: GPT-2 or LLaMA over the ids of any token layout, readable in one sitting.

A step may hold several ids; their embeddings are summed. The output matrix is the embedding itself unless `tied` is
off, so each slot of a step has as its head the rows of its own ids. Positions = block + prefix + bos: `block` steps,
`prefix` vectors in front (a conditioner's), and one for bos where the vocabulary has special ids.

Source: Radford et al. 2019, "Language models are unsupervised multitask learners"; arXiv 2302.13971 (LLaMA). Weights
convert to and from transformers with equal logits, see `lm.interop`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xcodec_lm import configs
from xcodec_lm.configs.errors import TokenError
from xcodec_lm.configs.lm import GPTConfig
from xcodec_lm.lm.blocks import Block, Rotary, make_norm
from xcodec_lm.lm.cache import KVCache
from xcodec_lm.lm.depth import DepthModel
from xcodec_lm.lm.layouts import Layout
from xcodec_lm.lm.model_files import MODEL_TYPE, fill_model, read_model_config, write_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class GPT(nn.Module):
    """A causal decoder over ids.

    Args:
        config: sizes.
        vocab_size: number of ids, `Layout.vocabulary.size`.
        prefix: positions kept for vectors in front of the ids.
    """

    kind: ClassVar[str] = MODEL_TYPE
    """`model_type` in config.json."""

    def __init__(self, config: GPTConfig, vocab_size: int, prefix: int = 0):
        super().__init__()
        self.config, self.vocab_size, self.prefix = config, vocab_size, prefix
        self.positions = config.block + prefix + (config.layout.specials == "standard")
        self.wte = nn.Embedding(vocab_size, config.dim)
        self.wpe = nn.Embedding(self.positions, config.dim) if config.arch == "gpt2" else None
        self.rotary = Rotary(config.head_dim, config.rope_base, config.rope_scaling) if config.arch == "llama" else None
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.ln_f = make_norm(config)
        self.head = None if config.tied else nn.Linear(config.dim, vocab_size, bias=False)
        self.inner = None
        if config.layout.name == "depth":
            self.inner = DepthModel(config.depth, config.dim, vocab_size, config.layout.width, config.dropout)
        self.apply(self._init)
        for name, parameter in self.named_parameters():  # GPT-2 scales residual branches down by their number
            if name.endswith("proj.weight"):
                layers = config.depth.layers if name.startswith("inner.") else config.layers
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers))

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.wte.weight.device

    def parameter_count(self) -> int:
        """Number of parameters; the tied embedding counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def new_cache(self, batch: int, positions: int) -> KVCache:
        """An empty cache for rows of at most so many positions, and never more than the model has."""
        config = self.config
        return KVCache(
            config.layers,
            batch,
            config.kv_heads or config.heads,
            min(positions, self.positions),
            config.head_dim,
            self.wte.weight,
        )

    @torch.no_grad()
    def order_for_decoding(self) -> Self:
        """Lays the weights of linear layers out in memory as a CPU reads them fastest for few rows; returns itself.

        With columns contiguous, products took 4 % (1 row) to 30 % (8 rows) less time with MKL. Shapes, values and what
        is saved stay the same. On other devices it does nothing.
        """
        order_columns(self)
        return self

    def forward(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        last_only: bool = False,
        prefix: Tensor | None = None,
        *,
        places: Tensor | None = None,
        mask: Any = None,
    ) -> Tensor:
        """Logits of what follows each position.

        Args:
            ids: (B, L) or, with several ids a step, (B, L, W) int64.
            cache: what was read before; `ids` are read behind it and added to it.
            last_only: give the logits of the last position alone.
            prefix: (B, P, D) vectors read in front of `ids`.
            places: without a cache, (B, P + L) the position of each step, for rows that hold several documents.
            mask: without a cache, what may be attended to, see `Attention.forward`; None is causal.

        Returns:
            (B, P + L, V), or (B, 1, V) with `last_only`.

        Raises:
            TokenError: more positions than the model, or its cache, has.
        """
        hidden = self.hidden(ids, cache, prefix, places=places, mask=mask)
        return self.logits(hidden[:, -1:] if last_only else hidden)

    def hidden(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        prefix: Tensor | None = None,
        *,
        places: Tensor | None = None,
        mask: Any = None,
        graph: bool = False,
    ) -> Tensor:
        """What the output matrix, or the inner model, gets: (B, P + L, D).

        Args:
            ids: see `forward`.
            cache: see `forward`.
            prefix: see `forward`.
            places: see `forward`; with `graph`, (B, 1) the position of each row in the cache.
            mask: see `forward`.
            graph: read one position a row in shapes that do not depend on the cache's lengths.
        """
        x = self.wte(ids)  # (B, L, D) or (B, L, W, D)
        if ids.dim() == 3:
            x = x.sum(dim=2)
        if prefix is not None:
            x = torch.cat([prefix.to(x.dtype), x], dim=1)  # (B, P + L, D)
        if cache is not None:
            positions = cache.begin_at(places) if graph and places is not None else cache.begin(x.shape[1])
        elif places is not None:
            positions = places
        else:
            positions = torch.arange(x.shape[1], device=x.device)
            if x.shape[1] > self.positions:
                raise TokenError(
                    f"{x.shape[1]} positions do not fit the {self.positions} of the model or its cache",
                    "give fewer ids at once",
                )
        rotation = None
        if self.wpe is not None:
            x = x + self.wpe(positions)
        if self.rotary is not None:
            rotation = self.rotary(positions)
        x = self.drop(x)
        for layer, block in enumerate(self.blocks):
            if self.config.recompute and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, rotation, cache, layer, mask, use_reentrant=False)
                assert isinstance(x, Tensor)
            else:
                x = block(x, rotation, cache, layer, mask)
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, V), by the embedding or the head."""
        return F.linear(hidden, self.wte.weight) if self.head is None else self.head(hidden)

    def slot_logits(self, hidden: Tensor, layout: Layout, steps: Tensor | None = None) -> list[Tensor]:
        """Logits of every slot of the steps that follow, over `layout.slot_ids` of that slot.

        Args:
            hidden: (B, L, D).
            layout: of the ids.
            steps: (B, L, W) the ids of those steps, which an inner model reads one after the other; others need none.

        Returns:
            W tensors (B, L, K_w).
        """
        if layout.flat:
            return [self.logits(hidden)]
        if self.inner is not None:
            assert steps is not None
            logits = self.inner(hidden, steps)  # (B, L, W, V)
            return [logits[:, :, slot, layout.slot_ids(slot)] for slot in range(layout.width)]
        logits = self.logits(hidden)
        return [logits[..., layout.slot_ids(slot)] for slot in range(layout.width)]

    def to_transformers(self) -> PreTrainedModel:
        """The same model as transformers' GPT-2 or LLaMA, see `lm.interop.to_transformers`."""
        from xcodec_lm.lm.interop import to_transformers

        return to_transformers(self)

    def save_pretrained(self, folder: str | Path, extra: dict[str, Any] | None = None, half: bool = False) -> None:
        """Writes `model.safetensors` and `config.json`.

        Args:
            folder: made if it does not exist.
            extra: JSON values for config.json, such as the codec whose tokens the model speaks.
            half: in half precision, for a model that ships.

        Raises:
            XcodecLMError: the folder cannot be written; what was there before is unchanged.
        """
        sizes = {"model": configs.to_dict(self.config), "vocab_size": self.vocab_size, "prefix": self.prefix}
        write_model(folder, self.kind, {**sizes, **(extra or {})}, self.weights(), half)

    def weights(self) -> dict[str, Tensor]:
        """What is saved."""
        return self.state_dict()

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str = "cpu") -> Self:
        """The model that `save_pretrained` wrote, in eval mode.

        Raises:
            XcodecLMError: no such model there, or its weights do not fit its configuration.
        """
        folder = Path(folder)
        header = read_model_config(folder, cls.kind)
        config = configs.from_dict(header["model"], GPTConfig, f"{folder / 'config.json'}")
        with torch.device("meta"):  # no time for initial weights that the file replaces
            model = cls(config, int(header["vocab_size"]), int(header.get("prefix", 0)))
        fill_model(model, folder)
        return model.to(device).order_for_decoding().eval()


def order_columns(model: nn.Module) -> None:
    """Makes the columns of linear layers on the CPU contiguous, see `GPT.order_for_decoding`."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.device.type == "cpu":
            module.weight.data = module.weight.data.T.contiguous().T


def read_kind(folder: str | Path) -> str | None:
    """`model_type` of the model in a folder; None where there is none that can be read."""
    try:
        header = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return header.get("model_type") if isinstance(header, dict) else None
