"""Text to sound: `load_sound(run).make(["rain on a roof"], seconds=10)`. Lazy: importing this loads no model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xcodec_lm.tasks.sound.make import load_sound

__all__ = ["load_sound"]


def __getattr__(name: str) -> Any:
    if name == "load_sound":
        from xcodec_lm.tasks.sound.make import load_sound

        return load_sound
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
