"""The errors that users meet: what happened, where, and what to do about it.

They live in the lowest layer because every layer raises them. `xcodec_lm.tasks.cli` turns them into exit codes.
"""


class XcodecLMError(Exception):
    """Something that the user can mend.

    Args:
        message: what happened, and in which file, row or field.
        hint: what to do about it; printed on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class ConfigError(XcodecLMError):
    """A configuration that cannot be read, or whose values contradict each other."""


class AudioError(XcodecLMError, ValueError):
    """Audio that cannot be used as it is: unreadable, empty, not finite, of the wrong rate, shape or scale."""


class TokenError(XcodecLMError, ValueError):
    """Tokens that do not fit: out of range, of another codec, or of an unknown version."""


class UsageError(XcodecLMError):
    """A command line that cannot be understood."""

    exit_code = 2


class PartialError(XcodecLMError):
    """A command that finished, but not for every input."""

    exit_code = 3
