"""Codecs: from waveforms to tokens and back. Import `load_codec` from here, the token interface from `codec.tokens`.

Lazy on purpose: `import xcodec_lm.codec.tokens` loads no model.
"""

from typing import TYPE_CHECKING, Any

if __name__ == "codec":
    raise ImportError("this package is called xcodec_lm.codec; write `import xcodec_lm.codec`")

if TYPE_CHECKING:
    from xcodec_lm.codec.load import load_codec

__all__ = ["load_codec"]


def __getattr__(name: str) -> Any:
    if name == "load_codec":
        from xcodec_lm.codec.load import load_codec

        return load_codec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
