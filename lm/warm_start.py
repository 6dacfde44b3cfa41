"""Starting a language model from a trained one."""

from __future__ import annotations

from pathlib import Path

import torch

from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.load import find_model
from xcodec_lm.lm.model_files import read_model_config
from xcodec_lm.lm.valle_model import ValleModel


@torch.no_grad()
def start_from(model: GPT | ValleModel, source: str | Path, spec: TokenSpec) -> None:
    """Copies the weights of a trained model.

    Learned positions may be more or fewer: those that both have are copied, and it is said. All else must be equal.

    Args:
        model: to be trained.
        source: a run or model folder.
        spec: of the tokens that it will be trained on.

    Raises:
        ConfigError: another codec's tokens, another layout, or other sizes.
    """
    folder = find_model(Path(source))
    facts = read_model_config(folder, model.kind).get("codec") or {}
    theirs = facts.get("fingerprint")
    if theirs and spec.fingerprint and theirs != spec.fingerprint:
        raise ConfigError(
            f"{source} speaks the tokens of codec {theirs[:12]}, but data.tokens are those of {spec.fingerprint[:12]}",
            "tokenize with the codec that it was trained with",
        )
    trained = type(model).from_pretrained(folder)
    if trained.config.layout != model.config.layout:
        raise ConfigError(
            f"{source} has layout {trained.config.layout}, this run {model.config.layout}",
            "give model.layout the same values",
        )
    own, given = model.state_dict(), trained.state_dict()
    if given.keys() != own.keys():
        odd = sorted(given.keys() ^ own.keys())[0]
        raise ConfigError(
            f"{source} has another architecture: {odd} is in one of the two alone", "set the same model.*"
        )
    for name, value in given.items():
        target = own[name]
        if name == "wpe.weight" and value.shape[1:] == target.shape[1:]:
            count = min(len(value), len(target))
            target[:count] = value[:count].to(target)
            if len(value) != len(target):
                say(f"{source} has {len(value)} positions, this run {len(target)}: the first {count} are taken over")
        elif value.shape == target.shape:
            target.copy_(value)
        else:
            raise ConfigError(
                f"{source}: {name} is {tuple(value.shape)} there and {tuple(target.shape)} here", "set the same model.*"
            )
