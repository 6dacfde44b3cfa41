"""How text becomes units that a speech model reads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from xcodec_lm.configs.errors import ConfigError

_LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")


@dataclass(frozen=True)
class TextConfig:
    """Front end, language and normalisation of the text."""

    front_end: Literal["characters", "phonemes", "sentencepiece", "transformers"] = "characters"
    """`characters`: lower case, punctuation kept; `phonemes`: espeak-ng's, needs the extra [tts]; `sentencepiece`:
    pieces of a model that `data spm` trained; `transformers`: the tokenizer of a language model."""
    language: str = "en-us"
    """espeak-ng's name of the language. Numbers and abbreviations are spelled out for those that begin with `en`."""
    model: str = ""
    """Model file of the front end `sentencepiece`; folder with the tokenizer of `transformers`."""
    normalise: bool = True
    """Spell out what is not written as it is said. Without it only what has no sound is removed."""

    def __post_init__(self):
        if self.front_end not in ("characters", "phonemes", "sentencepiece", "transformers"):
            raise ConfigError(
                f"text.front_end is {self.front_end!r}",
                "known are characters, phonemes, sentencepiece and transformers",
            )
        if not _LANGUAGE.fullmatch(self.language):
            raise ConfigError(
                f"text.language {self.language!r} is no name of a language",
                "write it as espeak-ng does, such as en-us, de or fr-fr",
            )
        if self.front_end == "sentencepiece" and not self.model:
            raise ConfigError(
                "text.front_end: sentencepiece needs text.model, a model file",
                "train one: xcodec-lm data spm MANIFEST --out text.model",
            )
        if self.front_end == "transformers" and not self.model:
            raise ConfigError(
                "text.front_end: transformers needs text.model, a folder with a tokenizer",
                "give the folder of a language model, with its tokenizer.json",
            )
        if self.front_end not in ("sentencepiece", "transformers") and self.model:
            raise ConfigError(f"text.model is for text.front_end: sentencepiece or transformers, not {self.front_end}")
