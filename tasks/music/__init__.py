"""Music continuation: `load_music(run).continue_(prompt, seconds)`. Lazy: importing this loads no model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xcodec_lm.tasks.music.continuation import load_music

__all__ = ["load_music"]


def __getattr__(name: str) -> Any:
    if name == "load_music":
        from xcodec_lm.tasks.music.continuation import load_music

        return load_music
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
