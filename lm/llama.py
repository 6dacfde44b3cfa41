"""A single-stream speech model: one decoder reads a text and speaks codes, all ids of one vocabulary.

    [text ids][codes][bos: speech begins][eos: speech ends][pad]

A document is text, bos, codes, eos; its positions count on from text to speech. A codec of one codebook gives one id a
frame, several codebooks are flattened. Pad has an id of its own and is never eos. At decoding only ids that may stand
at a place can be drawn, so that none is out of its place. The engine decodes it as it decodes a GPT: the text is the
prefix of a request.

    layout = layout_from(config.layout, spec)
    Engine(model, layout).decode([Request(500, prompt, prefix=model.text_prefix(text[None])[0], may_end=True)])

Source: LLaSA, arXiv 2502.04128, without its chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.configs.errors import TokenError
from xcodec_lm.configs.lm import GPTConfig
from xcodec_lm.lm.examples import IGNORED, Example, cell_nats, make_example
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.layouts import FILLER, Layout
from xcodec_lm.lm.lora import merged_weights


class SpeechLlama(GPT):
    """A LLaMA over text and speech.

    Args:
        config: sizes; `layout.first_id` is the number of text ids, `block` the most positions of a row.
        vocab_size: number of ids, `Layout.vocabulary.size`.
        prefix: none, since text has ids of its own.
    """

    kind = "xcodec_lm_speech_llama"

    def __init__(self, config: GPTConfig, vocab_size: int, prefix: int = 0):
        super().__init__(config, vocab_size, prefix)
        self.positions = config.block  # text, bos and codes together

    @property
    def text_size(self) -> int:
        """Number of text ids."""
        return self.config.layout.first_id

    def text_prefix(self, ids: Tensor) -> Tensor:
        """A text as the engine and `hidden` take it: ids (B, S) -> vectors (B, S, D).

        Raises:
            TokenError: ids that are none of text, or more than leave room for speech.
        """
        if len(bad := ids[(ids < 0) | (ids >= self.text_size)]):
            raise TokenError(
                f"text id {int(bad[0])} is outside 0..{self.text_size - 1}",
                "encode the text with the symbols that the model was trained with",
            )
        if ids.shape[1] >= self.positions:
            raise TokenError(
                f"a text of {ids.shape[1]} ids leaves no room for speech in the {self.positions} positions of the "
                "model",
                "split the text into sentences",
            )
        return self.wte(ids)

    def spoken_nats(self, layout: Layout, text: Sequence[int], codes: np.ndarray, ended: bool) -> tuple[Tensor, Tensor]:
        """What every code of an utterance costs, and its end: see `ValleAR.spoken_nats`."""
        example = text_example(layout, text, codes, ended)
        # Rotary positions go on beyond the block, as a draft may that was spoken with refills.
        places = torch.arange(len(example), device=self.device)[None]
        logits = self.slot_logits(self.hidden(example.inputs[None, :, 0].to(self.device), places=places), layout)
        nats = cell_nats(layout, logits, example.targets[None].to(self.device))
        return nats[0, len(text) :].cpu(), example.rows[len(text) :]

    def fresh(self) -> Self:
        """The same model with the weights that training starts from."""
        return type(self)(self.config, self.vocab_size, self.prefix).to(self.device).eval()

    def weights(self) -> dict[str, Tensor]:
        """What is saved: adapters are merged."""
        return merged_weights(self)


def text_example(layout: Layout, text: Sequence[int], codes: np.ndarray, ends: bool = True) -> Example:
    """A document: text, bos and codes are read, codes and eos predicted.

    Args:
        layout: of the ids, one a step.
        text: (S,) ids, all below that of the first code.
        codes: (MQ, T).
        ends: whether the speech ends with them.
    """
    speech = make_example(layout, codes, ends)
    front = torch.tensor(list(text), dtype=torch.int64)[:, None]  # (S, 1)
    return Example(
        torch.cat([front, speech.inputs]),
        torch.cat([torch.full_like(front, IGNORED), speech.targets]),
        torch.cat([torch.full_like(front, FILLER), speech.rows]),
        torch.cat([torch.full_like(front, -1), speech.times]),
    )
