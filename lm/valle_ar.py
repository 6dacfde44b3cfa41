"""VALL-E's first part: it reads a text and speaks the first codebook, frame by frame or, as VALL-E 2, several at once.

The text is a prefix whose positions all see each other; audio sees the text and the audio before it. Text and audio
have tables and sinusoidal positions of their own, each counted from 0. Audio begins with bos, so an empty prompt can be
continued. The engine decodes it as it decodes a GPT: the text is the prefix of a request.

    layout = ar_layout(config, spec)
    Engine(ar, layout).decode([Request(500, prompt, prefix=ar.text_prefix(text[None])[0], may_end=True)])

Sources: VALL-E, arXiv 2301.02111, section 4.2.1; grouped codes: VALL-E 2, arXiv 2406.05370, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import TokenError
from xcodec_lm.configs.valle import SPECIALS, ValleConfig
from xcodec_lm.lm.cache import KVCache, prefix_causal
from xcodec_lm.lm.examples import cell_nats, known_steps
from xcodec_lm.lm.layouts import Layout, layout_from
from xcodec_lm.lm.speech import ar_example, speech_batch
from xcodec_lm.lm.valle_blocks import Positions, init_weights, prefix_mask
from xcodec_lm.lm.valle_chain import GroupChain, frame_rows
from xcodec_lm.lm.valle_model import ValleModel


class ValleAR(ValleModel):
    """The autoregressive model of the first codebook.

    Args:
        config: sizes.

    Attributes:
        vocab_size: V, ids of audio: the codes of each frame in a group, bos, eos and pad.
        positions: most positions of a row, text, bos and audio together.
    """

    kind = "xcodec_lm_valle_ar"

    def __init__(self, config: ValleConfig):
        super().__init__(config, adaptive=False)
        self.vocab_size, self.positions = config.layout.vocabulary_size, config.block
        self.audio = nn.Embedding(config.codebook_size + SPECIALS, config.dim)  # one for all frames of a group
        self.join = nn.Linear(config.group * config.dim, config.dim, bias=False) if config.group > 1 else None
        self.text_positions, self.audio_positions = Positions(config.dim), Positions(config.dim)
        self.inner = GroupChain(self.audio, config) if config.chain else None
        self.head = None if config.chain else nn.Linear(config.dim, self.vocab_size, bias=False)
        init_weights(self, config.layers)

    def new_cache(self, batch: int, positions: int) -> KVCache:
        """An empty cache for rows of at most so many positions, and never more than the model has."""
        config = self.config
        return KVCache(
            config.layers,
            batch,
            config.heads,
            min(positions, self.positions),
            config.head_dim,
            self.audio.weight,
        )

    def text_prefix(self, ids: Tensor, places: Tensor | None = None) -> Tensor:
        """A text as the engine and `hidden` take it: ids (B, S) -> vectors (B, S, D) with positions.

        Args:
            ids: of the text.
            places: (S,) steps at which it stands, see `speech.text_places`; None is `text_pace` steps a unit.

        Raises:
            TokenError: ids that the model does not have, or more than leave room for audio.
        """
        self.check_text(ids)
        if ids.shape[1] >= self.positions:
            raise TokenError(
                f"a text of {ids.shape[1]} ids leaves no room for audio in the {self.positions} positions of the model",
                "split the text into sentences",
            )
        if places is None:
            places = torch.arange(ids.shape[1], device=ids.device) * self.config.text_pace
        return self.drop(self.embed_text(ids) + self.text_positions(places.to(ids.device)))

    def embed_audio(self, ids: Tensor) -> Tensor:
        """Ids of audio (B, L, W), or (B, L) where a step is one id, -> (B, L, D), without positions."""
        if self.join is None:
            return F.embedding(ids[..., 0] if ids.dim() == 3 else ids, self.audio.weight) * self.scale
        rows = frame_rows(ids, self.config)
        return self.join(F.embedding(rows, self.audio.weight).flatten(2) * self.scale)

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
        """What the output heads get: (B, S + L, D).

        Args:
            ids: (B, L) or, with groups, (B, L, W) int64 of audio.
            cache: what was read before; `ids` are read behind it and added to it.
            prefix: (B, S, D) `text_prefix` of the text, read in front of `ids`.
            places: with `graph`, (B, 1) the position of each row in the cache; else without a cache, (B, L) or (L,)
                the position of each step in its audio. None counts on.
            mask: without a cache, bool that broadcasts to (B, 1, S + L, S + L); None is that of a text in front.
            graph: read one position a row in shapes that do not depend on the cache's lengths.

        Raises:
            TokenError: more positions than the model, or its cache, has.
        """
        x = self.embed_audio(ids)  # (B, L, D)
        count, length = 0 if prefix is None else prefix.shape[1], x.shape[1]
        if cache is not None:
            begun = cache.begin_at(places) if graph and places is not None else cache.begin(count + length, count)
            places = cache.behind_prefix(begun)[:, count:]  # (B, L)
        else:
            if count + length > self.positions:
                raise TokenError(
                    f"{count + length} positions do not fit the {self.positions} of the model", "give fewer at once"
                )
            if places is None:
                places = torch.arange(length, device=x.device)
            if mask is None and count:
                mask = prefix_causal(count + length, count, x.device)
        x = self.drop(x + self.audio_positions(places))
        if prefix is not None:
            x = torch.cat([prefix.to(x.dtype), x], dim=1)  # (B, S + L, D)
        return self.trunk(x, cache, mask)

    def read_rows(self, ids: Tensor, text: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        """What the output heads get for packed rows of several documents, each a text and the audio behind it.

        Args:
            ids: (B, L, W) int64; where there is text, the first of W is its id, the others are not read.
            text: (B, L) bool, whether a position holds text.
            places: (B, L) counted from 0 in each audio, and in each text, unless that stands over its speech.
            mask: (B, 1, L, L) of `valle_blocks.prefix_mask`.

        Returns:
            (B, L, D); of positions of audio `logits` or `slot_logits` give what follows.
        """
        pace = 1 if self.config.text_over_speech else self.config.text_pace
        words = self.embed_text(torch.where(text, ids[..., 0], 0)) + self.text_positions(places * pace)
        sounds = self.embed_audio(ids.masked_fill(text[..., None], 0)) + self.audio_positions(places)
        return self.trunk(self.drop(torch.where(text[..., None], words, sounds)), mask=mask)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V), of a model without `inner`."""
        assert self.head is not None
        return self.head(hidden)

    def slot_logits(self, hidden: Tensor, layout: Layout, steps: Tensor | None = None) -> list[Tensor]:
        """Logits of every slot of the steps that follow, see `GPT.slot_logits`; a model with `inner` reads `steps`."""
        if self.inner is not None:
            assert steps is not None
            chained = self.inner(hidden, steps)  # (B, L, W, V)
            return [chained[..., slot, layout.slot_ids(slot)] for slot in range(layout.width)]
        logits = self.logits(hidden)
        return [logits] if layout.flat else [logits[..., layout.slot_ids(slot)] for slot in range(layout.width)]

    def spoken_nats(
        self, layout: Layout, text: Sequence[int], codes: np.ndarray, ended: bool, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What every code of an utterance costs, and its end.

        Args:
            layout: of the ids.
            text: (S,) ids.
            codes: (MQ, T).
            ended: whether eos follows.
            places: (S,) of the text, as `text_prefix` takes them, of a model with `text_over_speech`.

        Returns:
            (L, W) nats of the steps of speech, and (L, W) rows of what they are of, see `lm.examples.Example`.
        """
        if places is None and self.config.text_over_speech:
            places = torch.arange(len(text)) * self.config.text_pace
        batch = speech_batch([[ar_example(layout, text, codes, ended, places)]]).to(self.device)
        hidden = self.read_rows(batch.inputs, batch.text, batch.places, prefix_mask(batch.document, batch.text))
        nats = cell_nats(layout, self.slot_logits(hidden, layout, known_steps(layout, batch.targets)), batch.targets)
        return nats[0, len(text) :].cpu(), batch.rows[0, len(text) :].cpu()

    def fresh(self) -> Self:
        """The same model with the weights that training starts from."""
        return type(self)(self.config).to(self.device).eval()


def ar_layout(config: ValleConfig, spec: TokenSpec) -> Layout:
    """The layout of the AR model for the tokens of a codec.

    Raises:
        TokenError: the codec has fewer quantizers than the configuration, or codebooks of another size.
    """
    if spec.n_q < config.n_q:
        raise TokenError(
            f"model.n_q is {config.n_q}, but {spec.name} has {spec.n_q} quantizers",
            f"set model.n_q to at most {spec.n_q}",
        )
    sizes = spec.codebook_sizes[: config.n_q]
    if set(sizes) != {config.codebook_size}:
        raise TokenError(
            f"model.codebook_size is {config.codebook_size}, but the codebooks of {spec.name} have "
            f"{', '.join(map(str, sorted(set(sizes))))} codes",
            "set model.codebook_size to the codec's",
        )
    return layout_from(config.layout, spec)
