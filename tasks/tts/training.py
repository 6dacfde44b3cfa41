"""Training the speech models: the symbols of the texts, then AR and NAR, each a run of its own in one folder.

RUN/text/   the front end and its symbols
RUN/ar/     run folder of the AR
RUN/nar/    run folder of the NAR
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import get_args

from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.codec.runtime.run import RunOptions
from xcodec_lm.configs.errors import ConfigError, XcodecLMError
from xcodec_lm.configs.tts import Stage, TTSTrainConfig
from xcodec_lm.lm.trainer import open_tokens
from xcodec_lm.lm.valle_train import describe, summary, train_stage
from xcodec_lm.tasks.tts.symbols import TextEncoder


def train(config: TTSTrainConfig, options: RunOptions) -> Path:
    """Trains AR and NAR one after the other, or the one that `config.stage` names.

    A second call goes on; a stage that has finished is only exported again.

    Raises:
        XcodecLMError: no usable token store, another run in the folder, or a loss that is not finite.
    """
    encoder = text_encoder(config, options.out)
    for stage in stages(config):
        place = replace(options, out=options.out / stage)
        train_stage(config, place, stage, lambda text: encoder.encode(text).ids, encoder.size)
    return options.out


def stages(config: TTSTrainConfig) -> tuple[Stage, ...]:
    """The models that a run trains."""
    both: tuple[Stage, ...] = get_args(Stage)
    if config.model.n_q == 1 and config.stage == "nar":
        raise ConfigError("model.n_q is 1: there is no codebook for the NAR", "train --stage ar alone")
    chosen = both if config.stage == "both" else (config.stage,)
    return tuple(stage for stage in chosen if stage == "ar" or config.model.n_q > 1)


def dry_run(config: TTSTrainConfig) -> str:
    """What the runs would need on one device, without making them."""
    spec = open_tokens(config.data.tokens).spec if config.data.tokens else None
    return "\n\n".join(summary(describe(config.of_stage(stage), stage, spec)) for stage in stages(config))


def text_encoder(config: TTSTrainConfig, folder: Path) -> TextEncoder:
    """The symbols of a run: those in its folder, else those of its training texts, which are written there.

    Raises:
        XcodecLMError: the folder has symbols of another front end, or no recording has text.
    """
    place = folder / "text"
    if (place / "text.json").is_file():
        encoder = TextEncoder.load(place)
        if {**vars(encoder.config), "model": ""} != {**vars(config.text), "model": ""}:
            raise XcodecLMError(
                f"{folder} was begun with the front end {encoder.config}, not {config.text}",
                "give text.* the same values, or choose another --out",
            )
        return encoder
    if config.init:
        encoder = TextEncoder.load(Path(config.init) / "text")
    else:
        store = open_tokens(config.data.tokens)
        found = (store.rows[index].get("text") for index in store.split("train"))
        texts = [text for text in found if isinstance(text, str) and text.strip()]
        if not texts:
            raise XcodecLMError(
                f"{store.folder} has no text in its split train", "tokenize a manifest whose rows have the field text"
            )
        encoder = TextEncoder.build(config.text, texts)
        say(f"{'text':<12}{config.text.front_end}, {encoder.size} symbols from {len(texts)} texts")
    if int(os.environ.get("RANK", "0")) == 0:  # every process builds the same; one writes
        encoder.save(place)
    return encoder
