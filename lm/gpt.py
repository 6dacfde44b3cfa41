"""GPT-2, readable in one sitting: pre-norm decoder, learned positions, tied embedding.

Source: Radford et al. 2019, "Language models are unsupervised multitask learners"; the layout of weights and
activations is that of `transformers.GPT2LMHeadModel`, to and from which a model converts with equal logits.
Positions = block + prefix + specials: `block` codes, `prefix` vectors in front (a conditioner's), and one for bos where
the vocabulary has special ids.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xcodec_lm import configs
from xcodec_lm.configs.errors import TokenError, XcodecLMError
from xcodec_lm.configs.lm import GPTConfig, LayoutConfig

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

MODEL_TYPE = "xcodec_lm_gpt"
MODEL_VERSION = 1


class KVCache:
    """Keys and values of everything that was read, in memory taken once.

    Args:
        model: whose cache it is.
        batch: rows.
        positions: most positions that will be read.
    """

    def __init__(self, model: GPT, batch: int, positions: int):
        config, weight = model.config, model.wte.weight
        shape = (config.layers, batch, config.heads, min(positions, model.positions), config.dim // config.heads)
        self.keys = torch.empty(shape, device=weight.device, dtype=weight.dtype)  # (layers, B, heads, L, D / heads)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    @property
    def capacity(self) -> int:
        """Most positions that fit."""
        return self.keys.shape[3]

    def reset(self) -> None:
        """Forgets what was read."""
        self.length = 0


class Attention(nn.Module):
    """Causal self-attention with one projection for queries, keys and values."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=config.bias)
        self.proj = nn.Linear(config.dim, config.dim, bias=config.bias)

    def forward(self, x: Tensor, keys: Tensor | None, values: Tensor | None, start: int) -> Tensor:
        """Attends from x (B, L, D) to itself and to the `start` positions before it.

        Those are in `keys` and `values` (B, heads, P, D / heads), to which the positions of x are added.
        """
        batch, length, dim = x.shape
        packed = self.qkv(x).view(batch, length, 3, self.heads, dim // self.heads)
        q, k, v = packed.permute(2, 0, 3, 1, 4)  # (B, heads, L, D / heads) each
        if keys is not None and values is not None:
            stop = start + length
            keys[:, :, start:stop], values[:, :, start:stop] = k, v
            k, v = keys[:, :, :stop], values[:, :, :stop]
        mask = None
        if start and length > 1:  # several positions behind a filled cache: a causal mask that begins at `start`
            mask = torch.ones(length, start + length, dtype=torch.bool, device=x.device).tril(start)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=start == 0 and length > 1
        )
        return self.proj(y.transpose(1, 2).reshape(batch, length, dim))


class Block(nn.Module):
    """Attention and feed-forward, each behind a layer norm and around a residual connection."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.dim, eps=1e-5, bias=config.bias)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.dim, eps=1e-5, bias=config.bias)
        self.fc = nn.Linear(config.dim, 4 * config.dim, bias=config.bias)
        self.proj = nn.Linear(4 * config.dim, config.dim, bias=config.bias)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, keys: Tensor | None, values: Tensor | None, start: int) -> Tensor:
        """x (B, L, D) -> (B, L, D)."""
        x = x + self.drop(self.attn(self.ln_1(x), keys, values, start))
        return x + self.drop(self.proj(F.gelu(self.fc(self.ln_2(x)), approximate="tanh")))


class GPT(nn.Module):
    """A GPT-2 decoder over ids.

    Args:
        config: sizes.
        vocab_size: number of ids, `Layout.vocabulary.size`.
        prefix: positions kept for vectors in front of the ids.
    """

    def __init__(self, config: GPTConfig, vocab_size: int, prefix: int = 0):
        super().__init__()
        self.config, self.vocab_size, self.prefix = config, vocab_size, prefix
        self.positions = config.block + prefix + (config.layout.specials == "standard")
        self.wte = nn.Embedding(vocab_size, config.dim)
        self.wpe = nn.Embedding(self.positions, config.dim)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.ln_f = nn.LayerNorm(config.dim, eps=1e-5, bias=config.bias)
        self.apply(self._init)
        for name, parameter in self.named_parameters():  # GPT-2 scales residual branches down by their number
            if name.endswith("proj.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.layers))

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

    @torch.no_grad()
    def order_for_decoding(self) -> GPT:
        """Lays the weights of linear layers out in memory as a CPU reads them fastest for few rows; returns itself.

        With columns contiguous, products took 4 % (1 row) to 30 % (8 rows) less time with MKL. Shapes, values and what
        is saved stay the same. On other devices it does nothing.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.weight.device.type == "cpu":
                module.weight.data = module.weight.data.T.contiguous().T
        return self

    def forward(
        self, ids: Tensor, cache: KVCache | None = None, last_only: bool = False, prefix: Tensor | None = None
    ) -> Tensor:
        """Logits of the id after each position.

        Args:
            ids: (B, L) int64.
            cache: what was read before; `ids` are read behind it and added to it.
            last_only: give the logits of the last position alone.
            prefix: (B, P, D) vectors read in front of `ids`.

        Returns:
            (B, P + L, V), or (B, 1, V) with `last_only`.

        Raises:
            TokenError: more positions than the model, or its cache, has.
        """
        x = self.wte(ids)  # (B, L, D)
        if prefix is not None:
            x = torch.cat([prefix, x], dim=1)  # (B, P + L, D)
        start = 0 if cache is None else cache.length
        stop = start + x.shape[1]
        if stop > (self.positions if cache is None else cache.capacity):
            limit = self.positions if cache is None else cache.capacity
            raise TokenError(
                f"{stop} positions do not fit the {limit} of the model or its cache", "give fewer ids at once"
            )
        x = self.drop(x + self.wpe.weight[start:stop])
        for index, block in enumerate(self.blocks):
            if cache is None:
                x = block(x, None, None, 0)
            else:
                x = block(x, cache.keys[index], cache.values[index], start)
        if cache is not None:
            cache.length = stop
        if last_only:
            x = x[:, -1:]  # (B, 1, D)
        return F.linear(self.ln_f(x), self.wte.weight)  # tied: the embedding is the output matrix

    def to_transformers(self) -> GPT2LMHeadModel:
        """The same model as `transformers.GPT2LMHeadModel`, in fp32 on the CPU; biases that we lack become zeros."""
        from transformers import GPT2Config, GPT2LMHeadModel

        config = self.config
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=self.vocab_size,
                n_positions=self.positions,
                n_embd=config.dim,
                n_layer=config.layers,
                n_head=config.heads,
                activation_function="gelu_new",
                layer_norm_epsilon=1e-5,
                resid_pdrop=config.dropout,
                embd_pdrop=config.dropout,
                attn_pdrop=config.dropout,
                bos_token_id=None,
                eos_token_id=None,
                tie_word_embeddings=True,
            )
        )
        own, theirs = self.state_dict(), model.transformer.state_dict()
        for name, value in theirs.items():
            ours = _our_name(name)
            if ours in own:
                value.copy_(own[ours].T if _is_transposed(name) else own[ours])
            elif name.endswith(".bias"):
                value.zero_()
        return model.eval()

    @staticmethod
    def from_transformers(source: GPT2LMHeadModel | str | Path, layout: LayoutConfig | None = None) -> GPT:
        """Our model with the weights of a `transformers.GPT2LMHeadModel`.

        Args:
            source: the model, or a folder or hub id that holds one.
            layout: what its ids mean; without it, the first codebook and no special ids.

        Raises:
            XcodecLMError: it is no GPT-2, or one of another shape than the published ones.
        """
        from transformers import GPT2LMHeadModel

        if isinstance(source, (str, Path)):
            try:
                source = GPT2LMHeadModel.from_pretrained(source)
            except (OSError, ValueError) as error:
                raise XcodecLMError(f"{source} does not load as a GPT2LMHeadModel: {error}") from None
        theirs, layout = source.config, layout or LayoutConfig(specials="none")
        unusual = {
            "activation_function": theirs.activation_function not in ("gelu_new", "gelu_pytorch_tanh"),
            "n_inner": theirs.n_inner not in (None, 4 * theirs.n_embd),
            "layer_norm_epsilon": theirs.layer_norm_epsilon != 1e-5,
            "scale_attn_weights": not theirs.scale_attn_weights,
            "scale_attn_by_inverse_layer_idx": theirs.scale_attn_by_inverse_layer_idx,
            "add_cross_attention": theirs.add_cross_attention,
            "tie_word_embeddings": not theirs.tie_word_embeddings,
        }
        if any(unusual.values()):
            names = ", ".join(name for name, is_unusual in unusual.items() if is_unusual)
            raise XcodecLMError(
                f"this GPT-2 is not of the published shape: {names}", "convert a model with GPT-2's own settings"
            )
        config = GPTConfig(
            layers=theirs.n_layer,
            heads=theirs.n_head,
            dim=theirs.n_embd,
            block=theirs.n_positions - (layout.specials == "standard"),
            dropout=theirs.resid_pdrop,
            bias=True,
            layout=layout,
        )
        model = GPT(config, theirs.vocab_size)
        weights = {
            _our_name(name): (value.T if _is_transposed(name) else value)
            for name, value in source.transformer.state_dict().items()
        }
        model.load_state_dict({name: weights[name].detach().float().cpu() for name in model.state_dict()})
        return model.eval()

    def save_pretrained(self, folder: str | Path, extra: dict[str, Any] | None = None) -> None:
        """Writes `model.safetensors` and `config.json`.

        Args:
            folder: made if it does not exist.
            extra: JSON values for config.json, such as the codec whose tokens the model speaks.

        Raises:
            XcodecLMError: the folder cannot be written.
        """
        folder = Path(folder)
        header = {"model_type": MODEL_TYPE, "version": MODEL_VERSION, "model": configs.to_dict(self.config)}
        header |= {"vocab_size": self.vocab_size, "prefix": self.prefix, **(extra or {})}
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, folder / "model.tmp", metadata={"format": "pt"})
            (folder / "model.tmp").replace(folder / "model.safetensors")
            (folder / "config.json").write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")
        except (OSError, SafetensorError) as error:
            raise XcodecLMError(f"cannot write {folder}: {error}", "choose a folder that can be written") from None

    @staticmethod
    def from_pretrained(folder: str | Path, device: torch.device | str = "cpu") -> GPT:
        """The model that `save_pretrained` wrote, in eval mode.

        Raises:
            XcodecLMError: no such model there, or its weights do not fit its configuration.
        """
        folder = Path(folder)
        header = read_model_config(folder)
        config = configs.from_dict(header["model"], GPTConfig, f"{folder / 'config.json'}")
        with torch.device("meta"):  # no time for initial weights that the file replaces
            model = GPT(config, int(header["vocab_size"]), int(header.get("prefix", 0)))
        try:
            model.load_state_dict(load_file(folder / "model.safetensors"), assign=True)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise XcodecLMError(
                f"{folder}: the weights cannot be loaded: {error}", "train or export the model again"
            ) from None
        return model.to(device).order_for_decoding().eval()


def read_model_config(folder: str | Path) -> dict[str, Any]:
    """What config.json of a saved model holds, with the `extra` values of `save_pretrained`.

    Raises:
        XcodecLMError: there is none, or it is of another model or version.
    """
    path = Path(folder) / "config.json"
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise XcodecLMError(
            f"{folder} holds no language model: {path.name} is missing", "give a run folder or its model/"
        ) from None
    except (OSError, ValueError) as error:
        raise XcodecLMError(f"{path} cannot be read: {error}") from None
    kind = header.get("model_type") if isinstance(header, dict) else None
    if kind != MODEL_TYPE:
        raise XcodecLMError(
            f"{path} describes a model of type {kind!r}, not {MODEL_TYPE!r}", "give the folder of a language model"
        )
    if header.get("version") != MODEL_VERSION:
        raise XcodecLMError(
            f"{path} has version {header.get('version')}; this release reads {MODEL_VERSION}", "update xcodec-lm"
        )
    return header


def _our_name(theirs: str) -> str:
    """Our name of a weight of `GPT2LMHeadModel.transformer`."""
    name = theirs.replace("h.", "blocks.", 1) if theirs.startswith("h.") else theirs
    for old, new in (
        ("attn.c_attn", "attn.qkv"),
        ("attn.c_proj", "attn.proj"),
        ("mlp.c_fc", "fc"),
        ("mlp.c_proj", "proj"),
    ):
        name = name.replace(old, new)
    return name


def _is_transposed(theirs: str) -> bool:
    """Whether transformers keeps this weight as (in, out), its Conv1D, where ours is (out, in)."""
    return theirs.endswith(".weight") and (".c_" in theirs)
