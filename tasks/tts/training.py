"""Training the speech models: the symbols of the texts, then AR and NAR, each a run of its own in one folder.

RUN/text/   the front end and its symbols
RUN/ar/     run folder of the AR
RUN/nar/    run folder of the NAR

A single-stream model is one run, RUN itself, see `llama_training`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

from xcodec_lm.codec.runtime.run import RunOptions
from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.configs.tts import Stage, TTSTrainConfig
from xcodec_lm.configs.tts_llama import LlamaTTSTrainConfig
from xcodec_lm.lm.trainer import open_tokens
from xcodec_lm.lm.valle_train import describe, summary, train_stage
from xcodec_lm.tasks.tts import llama_training
from xcodec_lm.tasks.tts.texts import text_encoder


def train(config: TTSTrainConfig | LlamaTTSTrainConfig, options: RunOptions) -> Path:
    """Trains AR and NAR one after the other, or the one that `config.stage` names; or the single stream.

    A second call goes on; a stage that has finished is only exported again.

    Raises:
        XcodecLMError: no usable token store, another run in the folder, or a loss that is not finite.
    """
    if isinstance(config, LlamaTTSTrainConfig):
        return llama_training.train(config, options)
    encoder = text_encoder(config.text, config.data.tokens, config.init, options.out)
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


def dry_run(config: TTSTrainConfig | LlamaTTSTrainConfig) -> str:
    """What the runs would need on one device, without making them."""
    if isinstance(config, LlamaTTSTrainConfig):
        return llama_training.dry_run(config)
    spec = open_tokens(config.data.tokens).spec if config.data.tokens else None
    return "\n\n".join(summary(describe(config.of_stage(stage), stage, spec)) for stage in stages(config))
