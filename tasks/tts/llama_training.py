"""Training the single-stream speech model: RUN is its run folder, RUN/text the front end of its text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from xcodec_lm.codec.runtime.run import RunOptions
from xcodec_lm.configs.tts_llama import LlamaTTSTrainConfig
from xcodec_lm.lm.interop_llama import read_sizes
from xcodec_lm.lm.llama_train import describe, is_transformers, summary, train_speech
from xcodec_lm.lm.load import find_model
from xcodec_lm.lm.trainer import open_tokens
from xcodec_lm.tasks.tts.symbols import TextEncoder
from xcodec_lm.tasks.tts.texts import text_encoder


def train(config: LlamaTTSTrainConfig, options: RunOptions) -> Path:
    """Trains the model, or goes on with it.

    Raises:
        XcodecLMError: no usable token store, another run in the folder, or a loss that is not finite.
    """
    config = with_text_of_start(config)
    foreign = bool(config.init) and is_transformers(config.init)
    encoder = text_encoder(config.text, config.data.tokens, "" if foreign else config.init, options.out)
    return train_speech(config, options, lambda text: encoder.encode(text).ids, encoder.size)


def dry_run(config: LlamaTTSTrainConfig) -> str:
    """What the run would need on one device, without making it."""
    if config.init and is_transformers(config.init):
        model = config.model
        config = replace(config, model=read_sizes(find_model(config.init), model.block, model.layout))
    return summary(describe(config, open_tokens(config.data.tokens).spec if config.data.tokens else None))


def with_text_of_start(config: LlamaTTSTrainConfig) -> LlamaTTSTrainConfig:
    """The configuration with the front end of what training starts from: a run's, or the tokenizer of a text model.

    Raises:
        XcodecLMError: `init` holds no model that training can start from.
    """
    if not config.init:
        return config
    if is_transformers(config.init):
        read_sizes(find_model(config.init), config.model.block, config.model.layout)  # raises if it is no LLaMA
        return replace(config, text=replace(config.text, front_end="transformers", model=str(config.init)))
    return replace(config, text=TextEncoder.load(Path(config.init) / "text").config)
