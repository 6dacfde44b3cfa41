"""Zero-shot text-to-speech: `load_tts(run).say(text, prompt)`. Lazy: importing this loads no model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xcodec_lm.tasks.tts.voice import load_tts

__all__ = ["load_tts"]


def __getattr__(name: str) -> Any:
    if name == "load_tts":
        from xcodec_lm.tasks.tts.voice import load_tts

        return load_tts
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
