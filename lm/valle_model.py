"""What VALL-E's two decoders have in common as models: their text table, and how they are kept on disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcodec_lm import configs
from xcodec_lm.configs.errors import TokenError
from xcodec_lm.configs.valle import ValleConfig
from xcodec_lm.lm.gpt import order_columns
from xcodec_lm.lm.model_files import fill_model, read_model_config, write_model
from xcodec_lm.lm.valle_blocks import Trunk


class ValleModel(nn.Module):
    """A decoder over a text and frames of audio.

    Args:
        config: sizes.
        adaptive: norms that listen to a condition.
    """

    kind: ClassVar[str]
    """`model_type` in config.json."""

    def __init__(self, config: ValleConfig, adaptive: bool):
        super().__init__()
        self.config = config
        self.scale = math.sqrt(config.dim)  # embeddings are kept small, see `valle_blocks`
        self.text = nn.Embedding(config.text_size, config.dim)
        self.trunk = Trunk(config, adaptive)
        self.drop = nn.Dropout(config.dropout)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.text.weight.device

    def parameter_count(self) -> int:
        """Number of parameters; a tied embedding counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def order_for_decoding(self) -> Self:
        """Lays linear layers out as a CPU reads them fastest for few rows, see `GPT.order_for_decoding`."""
        order_columns(self)
        return self

    def embed_text(self, ids: Tensor) -> Tensor:
        """Text ids (...) -> (..., D), without positions."""
        return F.embedding(ids, self.text.weight) * self.scale

    def check_text(self, ids: Tensor) -> None:
        """Refuses ids of text that the model has no vectors for.

        Raises:
            TokenError: there are some.
        """
        if len(bad := ids[(ids < 0) | (ids >= self.config.text_size)]):
            raise TokenError(
                f"text id {int(bad[0])} is outside 0..{self.config.text_size - 1}",
                "encode the text with the symbols that the model was trained with",
            )

    def save_pretrained(self, folder: str | Path, extra: dict[str, Any] | None = None, half: bool = False) -> None:
        """Writes `model.safetensors` and `config.json`.

        Args:
            folder: made if it does not exist.
            extra: JSON values for config.json, such as the codec whose tokens the model speaks.
            half: in half precision, for a model that ships.

        Raises:
            XcodecLMError: the folder cannot be written; what was there before is unchanged.
        """
        facts = {"model": configs.to_dict(self.config), **(extra or {})}
        write_model(folder, self.kind, facts, self.state_dict(), half)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str = "cpu") -> Self:
        """The model that `save_pretrained` wrote, in eval mode.

        Raises:
            XcodecLMError: no such model there, or its weights do not fit its configuration.
        """
        folder = Path(folder)
        header = read_model_config(folder, cls.kind)
        config = configs.from_dict(header["model"], ValleConfig, f"{folder / 'config.json'}")
        with torch.device("meta"):  # no time for initial weights that the file replaces
            model = cls(config)  # type: ignore[call-arg]
        fill_model(model, folder)
        return model.to(device).order_for_decoding().eval()
