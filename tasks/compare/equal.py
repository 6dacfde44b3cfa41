"""Equal seconds of audio for every codec: a preset's rows and batches, scaled to a codec's frames and codebooks.

Presets are written for 50 frames/s. A row of theirs is so many seconds of audio, a step so many rows. A codec of
another frame rate or with fewer codebooks gets rows of the same seconds, in more or fewer positions, and steps of as
many rows; steps, seed, sizes of the model and the schedule stay. So every model sees the same seconds of audio in the
same order; what differs is how many codes these are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.configs.lm import LMTrainConfig
from xcodec_lm.configs.tts import TTSTrainConfig
from xcodec_lm.lm.layouts import layout_from

REFERENCE_RATE = 50
"""Frames per second that presets are written for."""


@dataclass(frozen=True)
class Seconds:
    """What a step of training sees.

    Attributes:
        row_s: seconds of audio that a row holds at most.
        rows: rows of a step.
        steps: optimizer steps.
    """

    row_s: float
    rows: int
    steps: int

    @property
    def most_s(self) -> float:
        """Seconds of audio in all, were every row full."""
        return self.row_s * self.rows * self.steps

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"row_s": self.row_s, "rows_per_step": self.rows, "steps": self.steps}


def check_codec(spec: TokenSpec) -> None:
    """Refuses a codec that cannot be compared.

    Raises:
        XcodecLMError: its tokens are of several tracks.
    """
    if len(spec.tracks) > 1:
        raise XcodecLMError(
            f"{spec.name} encodes {len(spec.tracks)} tracks ({', '.join(spec.tracks)}), which have no common sound",
            "compare codecs of one track",
        )


def equal_music(config: LMTrainConfig, spec: TokenSpec) -> tuple[LMTrainConfig, Seconds]:
    """A music or sound preset for a codec: rows and batches of the same seconds, at most as many codebooks.

    Args:
        config: of the preset.
        spec: of the codec.

    Raises:
        XcodecLMError: the codec has several tracks, or the layout does not fit it.
    """
    check_codec(spec)
    model, data = config.model, config.data
    asked = model.layout.n_q
    assumed = replace(spec, codebook_sizes=(1024,) * max(asked, spec.n_q))
    reference = layout_from(model.layout, assumed)
    row_s = reference.frames_in(model.block) / REFERENCE_RATE
    row_codes = reference.frames_in(model.block) * len(reference.books)
    rows, micro = (max(1, count // row_codes) for count in (data.batch_codes, data.micro_batch_codes))
    layout_config = replace(model.layout, n_q=min(asked, spec.n_q))
    layout = layout_from(layout_config, spec)
    frames = max(1, round(row_s * spec.frame_rate))
    block, codes = layout.steps_for(frames), frames * len(layout.books)
    scaled = replace(
        config,
        model=replace(model, block=block, layout=layout_config),
        data=replace(data, batch_codes=max(block, rows * codes), micro_batch_codes=micro * codes),
    )
    return scaled, Seconds(row_s, rows, config.optim.steps)


def equal_tts(config: TTSTrainConfig, spec: TokenSpec, row_s: float) -> tuple[TTSTrainConfig, Seconds]:
    """A preset of VALL-E for a codec: a row keeps its room for text, and holds as many seconds of audio.

    Args:
        config: of the preset.
        spec: of the codec. Its leading codebooks of one size are spoken, at most as many as the preset's.
        row_s: seconds of audio that the preset's `model.block` holds at 50 frames/s.

    Raises:
        XcodecLMError: the codec has several tracks, or the preset's block does not hold `row_s`.
    """
    check_codec(spec)
    model, data = config.model, config.data
    text_room = model.block - math.ceil(row_s * REFERENCE_RATE / model.group)
    if text_room < 1:
        raise XcodecLMError(
            f"model.block {model.block} does not hold {row_s:g} s of audio and a text", "lower tts.row_s of the size"
        )
    sizes = spec.codebook_sizes
    alike = next((index for index, size in enumerate(sizes) if size != sizes[0]), len(sizes))
    block = text_room + math.ceil(row_s * spec.frame_rate / model.group)
    rows, micro = (max(1, count // model.block) for count in (data.batch_codes, data.micro_batch_codes))
    scaled = replace(
        config,
        model=replace(model, block=block, n_q=min(model.n_q, alike), codebook_size=sizes[0]),
        data=replace(data, batch_codes=rows * block, micro_batch_codes=micro * block),
    )
    if scaled.model.n_q == 1:
        scaled = replace(scaled, stage="ar")
    return scaled, Seconds(row_s, rows, config.optim.steps)
