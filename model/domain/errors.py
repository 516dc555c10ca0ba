"""Define the exceptions: messages say what was expected, what was found and what to do about it."""

from typing import Any

__all__ = [
    "AppaError",
    "CheckpointError",
    "ConfigurationError",
    "DecodeError",
    "InvalidInput",
    "JobCancelled",
    "ResourceExhausted",
    "StorageError",
    "UnknownName",
]


class AppaError(Exception):
    """Base of all errors raised on purpose.

    Attributes:
        code: A stable identifier, used in HTTP problem documents, logs and job records.
        retryable: Whether the same work may succeed when tried again unchanged.
        context: Values for machines (file, field, expected, got), JSON-serialisable.
    """

    code = "appa_error"
    retryable = False

    def __init__(self, message: str, /, **context: Any) -> None:
        super().__init__(message)
        self.context = context

    @property
    def message(self) -> str:
        """The text that people read, without the code."""
        return str(self.args[0]) if self.args else self.code


class InvalidInput(AppaError, ValueError):
    """Input from outside that does not fit its contract."""

    code = "invalid_input"


class UnknownName(InvalidInput, KeyError):
    """A name that no registry knows; the message lists the known ones."""

    code = "unknown_name"
    # KeyError would print the message in quotes.
    __str__ = Exception.__str__


class DecodeError(InvalidInput):
    """A file or message that cannot be decoded into observations or fields."""

    code = "decode_error"


class CheckpointError(AppaError):
    """A checkpoint whose files, hashes, keys, channels or grid do not match its card."""

    code = "checkpoint_error"


class ConfigurationError(AppaError):
    """Settings that cannot work together or do not fit this machine."""

    code = "configuration_error"


class StorageError(AppaError):
    """Reading or writing the data folder failed (disk full, permissions, truncated file)."""

    code = "storage_error"
    retryable = True


class ResourceExhausted(AppaError):
    """Memory or device ran out; the same work in smaller pieces may succeed."""

    code = "resource_exhausted"
    retryable = True


class JobCancelled(AppaError):
    """Raised from `on_step` to stop a running job at a diffusion step."""

    code = "job_cancelled"
