"""Codecs between layouts: ours, that of transformers, and that of the original code.

`configurations` translates what a `config.json` says; every codec folder needs it, so its names are here too. `files`
reads a whole checkpoint in one layout and writes it in another; the names of tensors are translated by `original`
(X-Codec) and `xcodec2` (X-Codec 2 and NeuCodec) on top of `state_dicts`. `codec.load` imports this package and `files`
imports `codec.load`, so nothing but `configurations` may be imported here.
"""

from xcodec_lm.codec.convert.configurations import (
    OWN_MODEL_TYPE,
    TEACHER_KEYS,
    architecture,
    from_own_block,
    from_transformers,
    own_block,
    to_transformers,
)

__all__ = [
    "OWN_MODEL_TYPE",
    "TEACHER_KEYS",
    "architecture",
    "from_own_block",
    "from_transformers",
    "own_block",
    "to_transformers",
]
