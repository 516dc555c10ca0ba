"""From a file of any known format to the observation table: the entry of all decoders."""

from pathlib import Path

from model.domain.errors import DecodeError
from model.domain.observations import empty_table
from worker.decoders.base import DecodeContext, Decoded
from worker.decoders.registry import FORMATS
from worker.decoders.report import DecodeReport
from worker.decoders.sniff import foreign_content, read_head

__all__ = ["decode_file", "detect_format"]


def detect_format(path: Path) -> str:
    """Name of the format of the file, by content first and name ending second.

    Raises:
        DecodeError: With `reason` in its context when no decoder reads such content.
    """
    head = read_head(path)
    if not head:
        raise DecodeError(
            f"Expected observations in '{path.name}'; got an empty file.", reason="empty_file"
        )
    for name, entry in FORMATS.items():
        if entry.recognises(head):
            return name
    if foreign := foreign_content(head):
        reason, detail = foreign
        raise DecodeError(
            f"Expected one of {', '.join(FORMATS)} in '{path.name}'; got {detail}.", reason=reason
        )
    for name, entry in FORMATS.items():
        if path.name.lower().endswith(entry.extensions):
            return name
    raise DecodeError(
        f"Expected one of {', '.join(FORMATS)} in '{path.name}'; its first bytes "
        f"{head[:8]!r} and its name belong to none of them.",
        reason="unknown_format",
    )


def decode_file(
    path: str | Path, format: str | None = None, context: DecodeContext | None = None
) -> Decoded:
    """Decodes one file in this process.

    A file that is of no use as a whole gives an empty table and a report with the reason, so that
    every file ends in a counted outcome. For files from outside use
    `worker.decoders.limited.decode_limited`, which runs this function in a limited child process.

    Arguments:
        path: The file.
        format: Name of a format; None recognises it.
        context: Batch, arrival and limits.
    """
    path = Path(path)
    context = context or DecodeContext()
    report = DecodeReport(format=format or "", size=path.stat().st_size)
    try:
        report.format = format or detect_format(path)
        decoded = FORMATS[report.format].load()(path, context)
    except DecodeError as error:
        report.reject(error.context.get("reason", "undecodable"), 0, report.size, error.message)
        return Decoded(empty_table(), report)
    return decoded
