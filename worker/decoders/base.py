"""The contract of a decoder: one file in, one observation table and one report out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from worker.decoders.report import DecodeReport

__all__ = ["DecodeContext", "Decoded", "Decoder", "FileFormat", "MessageLimits"]


@dataclass(frozen=True)
class MessageLimits:
    """What one message may ask for before it is set aside as `too_large`.

    Attributes:
        message_bytes: Total length of a message. The largest real ones (IASI) have 1.4 MB.
        values: Values of a message after expansion, all reports together.
        replications: Largest count of one delayed replication; a sonde that reports each second
            for three hours has 10 800 levels.
    """

    message_bytes: int = 8_000_000
    values: int = 8_000_000
    replications: int = 20_000


@dataclass(frozen=True)
class DecodeContext:
    """What a decoder knows about the upload besides its bytes.

    Attributes:
        batch_id: The upload.
        received_time: Its arrival at the gateway (aware, UTC).
        limits: Bounds for one message.
        options: Choices of one format by name (GRIB: error, thinning; CSV: column names).
    """

    batch_id: str = "local"
    received_time: datetime = field(default_factory=lambda: datetime.now(UTC))
    limits: MessageLimits = field(default_factory=MessageLimits)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoded:
    """Rows in `OBSERVATION_SCHEMA` (`obs_error` null where the file names none) and the counts."""

    table: pa.Table
    report: DecodeReport


class Decoder(Protocol):
    """Decodes a whole file.

    A message that cannot be used is counted in the report, never fatal. Raises `DecodeError`,
    with `reason=` one of `REASONS` in its context, only when the file as a whole is of no use.
    """

    def __call__(self, path: Path, context: DecodeContext) -> Decoded:
        """The rows and the counts of the file at `path`."""
        ...


@dataclass(frozen=True)
class FileFormat:
    """A format as it appears in the registry; its decoder is imported when first used.

    Attributes:
        name: Name in the registry and in the API.
        description: One line for the user.
        decoder: `"package.module:function"`, so that naming a format imports no heavy library.
        recognises: Whether the first bytes (up to 64 kB) are of this format.
        extensions: Lower-case name endings used when the first bytes do not tell.
    """

    name: str
    description: str
    decoder: str
    recognises: Callable[[bytes], bool]
    extensions: tuple[str, ...] = ()

    def load(self) -> Decoder:
        """The decoder."""
        module, _, function = self.decoder.partition(":")
        return getattr(import_module(module), function)
