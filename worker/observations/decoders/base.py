"""Define the interface of decoders: context, report, and helpers shared by all.

Nothing is dropped silently: every message of a file is either decoded or rejected for one of `REASONS`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from model.domain.errors import DecodeError
from model.domain.times import LEAP_SECOND
from worker.observations.columns import count_values
from worker.observations.stations import default_list

__all__ = [
    "DecodeContext",
    "DecodeReport",
    "Decoded",
    "Decoder",
    "FileBudget",
    "KEPT_QUARANTINED",
    "MessageLimits",
    "Quarantined",
    "REASONS",
    "check_rows",
    "finish",
    "nanoseconds",
    "padded_numbers",
    "parse_times",
    "strip_texts",
    "text_of",
]

KEPT_QUARANTINED = 100
"""Maximum number of rejected messages listed in a report; further ones are only counted."""

REASONS: Mapping[str, str] = {
    # the file
    "empty_file": "the file holds no bytes",
    "unknown_format": "neither the first bytes nor the name belong to a known format",
    "wrong_format": "the content is not what the name or the sender says",
    "alphanumeric": "alphanumeric code of a kind that is not read: send the BUFR version",
    "compressed_archive": "an archive of a kind that is not read, or in too many layers: unpack it",
    "no_messages": "no message found",
    # frames
    "bad_frame": "length, sections or end mark of the message contradict each other",
    "truncated": "the file ends before the message does",
    "unsupported_edition": "edition is not one of 2, 3 and 4",
    # limits
    "too_large": "message, number of levels or number of values beyond the limits",
    "timeout": "decoding took longer than allowed",
    "out_of_memory": "decoding needed more memory than allowed",
    "crashed": "the decoding process died",
    # content
    "needs_local_tables": "descriptors of a local table that is not part of the WMO tables",
    "unsupported_template": "a known message, but of a family that yields no observation here",
    "undecodable": "the data section does not fit the descriptors",
    "no_time": "no valid date and time in the report",
    "no_position": "no position in the report",
    "no_level": "neither pressure nor height at the value",
    "no_values": "decoded, but every value is missing",
    "unsupported_variable": "a variable that is not in the vocabulary",
    "invalid_table": "columns, types or names do not fit the observation table",
}
"""Why a file, message or report yields no row, by code."""


class Quarantined(BaseModel):
    """A message that was not decoded: its position and the reason.

    Attributes:
        offset: First byte in the file.
        length: Bytes set aside.
        reason: One of `REASONS`.
        detail: What came, in words.
        report: Number of the report (subset) when only one of a message is meant, else None.
    """

    model_config = ConfigDict(frozen=True)

    offset: int
    length: int
    reason: str
    detail: str = ""
    report: int | None = None


class DecodeReport(BaseModel):
    """Counts of one file; reports of parts or of several files can be merged.

    Attributes:
        format: Format as recognised ("bufr", "grib", …; "mixed" after merging different ones).
        size: Bytes of the file.
        bytes_decoded: Bytes of the messages that gave rows.
        bytes_between: Bytes outside messages (bulletin headers, padding, junk).
        messages: Messages (or table parts, fields, groups) found.
        decoded: Messages that gave at least one row.
        reports: Reports (BUFR subsets, table rows) looked at.
        rows: Rows of the observation table.
        rows_by_variable, rows_by_report_type: The same rows, split.
        flagged: Rows that came with an outcome already (`rejected_by`), by its name.
        rejected: Messages, or single reports, that gave no row, by reason.
        quarantined: The first of them one by one.
        notes: Counts of harmless oddities that were repaired or skipped, by code.
        not_used: Values of decoded messages that no row comes from, by element
            ("020003 presentWeather"); each element of a message is used, set aside or counted here.
        values_set_aside: Values of variables that gave no row, by reason and variable
            ("no_level temperature").
        members: Rows of each file of an archive, by name; the first thousand.
    """

    format: str = ""
    size: int = 0
    bytes_decoded: int = 0
    bytes_between: int = 0
    messages: int = 0
    decoded: int = 0
    reports: int = 0
    rows: int = 0
    rows_by_variable: Counter[str] = Field(default_factory=Counter)
    rows_by_report_type: Counter[str] = Field(default_factory=Counter)
    flagged: Counter[str] = Field(default_factory=Counter)
    rejected: Counter[str] = Field(default_factory=Counter)
    quarantined: list[Quarantined] = Field(default_factory=list)
    notes: Counter[str] = Field(default_factory=Counter)
    not_used: Counter[str] = Field(default_factory=Counter)
    values_set_aside: Counter[str] = Field(default_factory=Counter)
    members: Counter[str] = Field(default_factory=Counter)

    def reject(
        self,
        reason: str,
        offset: int = 0,
        length: int = 0,
        detail: str = "",
        report: int | None = None,
    ) -> None:
        """Count one message, or one report of it, that gives no row."""
        if reason not in REASONS:
            raise KeyError(f"Expected one of the reasons {', '.join(REASONS)}; got '{reason}'.")
        self.rejected[reason] += 1
        if len(self.quarantined) < KEPT_QUARANTINED:
            self.quarantined.append(
                Quarantined(
                    offset=offset, length=length, reason=reason, detail=detail[:300], report=report
                )
            )

    def count_rows(self, table: pa.Table) -> None:
        """Add the rows of a table to the counts."""
        self.rows += table.num_rows
        self.rows_by_variable += count_values(table, "variable")
        self.rows_by_report_type += count_values(table, "report_type")
        self.flagged += count_values(table, "rejected_by")

    def merge(self, other: "DecodeReport") -> "DecodeReport":
        """Add the counts of another report to this one and return it."""
        if self.format != other.format:
            self.format = other.format if not self.format else "mixed"
        for name in ("size", "bytes_decoded", "bytes_between"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("messages", "decoded", "reports", "rows"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in (
            "rows_by_variable",
            "rows_by_report_type",
            "flagged",
            "rejected",
            "notes",
            "not_used",
            "values_set_aside",
            "members",
        ):
            getattr(self, name).update(getattr(other, name))
        self.quarantined = (self.quarantined + other.quarantined)[:KEPT_QUARANTINED]
        return self


@dataclass(frozen=True)
class MessageLimits:
    """Bounds of one message; beyond them it is set aside as `too_large`.

    Attributes:
        message_bytes: Total length of a message. The largest real ones (IASI) have 1.4 MB.
        values: Values of a message after expansion, all reports together.
        replications: Largest count of one delayed replication; a sonde that reports each second
            for three hours has 10 800 levels.
    """

    message_bytes: int = 8_000_000
    values: int = 8_000_000
    replications: int = 20_000


class FileBudget:
    """Limit the number of values of a file by its size.

    A small file may expand to millions of values (constant fields, repeated rows), which take minutes
    to decode. Real files hold less than one value per two bits; small files get a fixed minimum.

    Arguments:
        size: Size of the file in bytes.
        expansion: Compression ratio allowed for an archive; 1 for other files.
    """

    FLAT = 20_000_000
    PER_BYTE = 8

    def __init__(self, size: int, expansion: int = 1) -> None:
        self.size = size
        self.limit = self.FLAT + self.PER_BYTE * expansion * size
        self.taken = 0

    def take(self, values: int = 0) -> None:
        """Count values that are about to be decoded.

        Raises:
            DecodeError: With reason `too_large`, once they are more than the budget.
        """
        self.taken += values
        if self.taken > self.limit:
            raise DecodeError(
                f"Expected at most {self.limit} values in a file of {self.size} bytes; got more. "
                "Send it in parts.",
                reason="too_large",
                limit=self.limit,
            )


def _no_mark(offset: int) -> None:
    """Ignore the offset; the default if the progress of decoding is not monitored."""


@dataclass(frozen=True)
class DecodeContext:
    """Facts about the upload that a decoder needs besides its bytes.

    Attributes:
        batch_id: The upload.
        received_time: Its arrival at the gateway (aware, UTC).
        limits: Bounds for one message.
        options: Options chosen by the sender; each format has a schema (`decoders/options.py`).
        file_name: Name given by the sender; empty if the path has that name.
        stations: Path of the installation's list of stations, empty for none.
        byte_range: First byte, and the one after the last, in which messages to decode begin;
            None for the whole file.
        skip: Messages that crashed an earlier process, with the reason by offset.
        mark: Called with the offset of each message before it is opened.
        archive: State shared by the files of an archive; None for a single file.
    """

    batch_id: str = "local"
    received_time: datetime = field(default_factory=lambda: datetime.now(UTC))
    limits: MessageLimits = field(default_factory=MessageLimits)
    options: Mapping[str, Any] = field(default_factory=dict)
    file_name: str = ""
    stations: str = field(default_factory=default_list)
    byte_range: tuple[int, int] | None = None
    skip: Mapping[int, str] = field(default_factory=dict)
    mark: Callable[[int], None] = _no_mark
    archive: FileBudget | None = None

    def budget(self, size: int) -> FileBudget:
        """Return the budget of a file of `size` bytes, which is that of its archive if it is in one."""
        return self.archive or FileBudget(size)


@dataclass(frozen=True)
class Decoded:
    """Rows in `OBSERVATION_SCHEMA` (`obs_error` null where the file names none) and the counts."""

    table: pa.Table
    report: DecodeReport


def check_rows(count: int, context: DecodeContext, what: str = "rows") -> None:
    """Refuse a file of more rows than one may hold.

    Raises:
        DecodeError: With reason `too_large`.
    """
    if count > context.limits.values:
        raise DecodeError(
            f"Expected at most {context.limits.values} {what} in one file; got {count}. Split it.",
            reason="too_large",
        )


def finish(table: pa.Table, report: DecodeReport) -> Decoded:
    """Count the rows of a file; a file without rows or reasons is rejected as `no_values`."""
    if not len(table) and not report.rejected:
        report.reject("no_values", detail="no rows")
    report.count_rows(table)
    return Decoded(table, report)


def strip_texts(values: Iterable[Any]) -> np.ndarray:
    """Return values as strings without padding (blanks and NULs)."""
    return np.array([text_of(value).strip("\x00 ") for value in values], dtype=object)


def text_of(value: Any) -> str:
    """Return a value as text; whole numbers without decimals, because identifiers have none."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


_NUMBERED = ("synop", "temp", "pilot")
_LOST_ZERO = r"^[1-9]\d{3}$"


def padded_numbers(ids: np.ndarray, networks: np.ndarray) -> np.ndarray:
    """Restore the leading zero of WMO block numbers 01 to 09 in identifiers read from a numeric column.

    Arguments:
        ids: Texts, with shape (rows,).
        networks: Report types, with shape (rows,); others have no numbers of five digits.
    """
    short = pc.match_substring_regex(pa.array(ids, pa.string()), _LOST_ZERO)
    lost = np.isin(networks, _NUMBERED) & pc.fill_null(short, False).to_numpy(zero_copy_only=False)
    padded = np.array(ids, dtype=object)
    padded[lost] = "0" + padded[lost]
    return padded


def parse_times(texts: np.ndarray) -> np.ndarray:
    """Parse ISO 8601 texts to datetime64[ns] in UTC, NaT if invalid; texts without a zone are UTC.

    A leap second is the second that follows it.
    A date without a time of day, such as `2025-01`, is invalid as the time of an observation.
    """
    import pandas as pd  # noqa: PLC0415 (heavy; not needed to decode BUFR)

    series = pd.Series(texts, dtype=object)
    parsed = pd.to_datetime(series, errors="coerce", utc=True, format="ISO8601")
    clocked = series.astype(str).str.contains(r"\d[Tt ]\d", regex=True).to_numpy(bool)
    times = nanoseconds(parsed.dt.tz_localize(None).to_numpy())
    times = np.where(clocked, times, np.datetime64("NaT", "ns"))
    unread = series[np.isnat(times)].dropna().astype(str)
    earlier = unread.str.replace(LEAP_SECOND, r"\g<1>59", regex=True)
    if len(leap := earlier[earlier != unread]):
        times[leap.index] = parse_times(leap.to_numpy()) + np.timedelta64(1, "s")
    return times


_FIRST_SECOND, _LAST_SECOND = -9_214_560_000, 9_214_646_400
"""1678-01-01 and 2262-01-01, the range of int64 nanoseconds."""


def nanoseconds(times: np.ndarray) -> np.ndarray:
    """Return times of any resolution as datetime64[ns]; NaT outside 1678 to 2262."""
    seconds = times.astype("datetime64[s]").astype(np.int64)
    inside = ~np.isnat(times) & (seconds >= _FIRST_SECOND) & (seconds < _LAST_SECOND)
    # Compare in the original resolution: outside these years nanoseconds would overflow.
    return np.where(inside, times, np.datetime64("NaT")).astype("datetime64[ns]")


class Decoder(Protocol):
    """Decode a whole file.

    A message that cannot be used is counted in the report, never fatal. Raises `DecodeError`,
    with `reason=` one of `REASONS` in its context, only if the file as a whole cannot be used.
    """

    def __call__(self, path: Path, context: DecodeContext) -> Decoded:
        """Return the rows and the counts of the file at `path`."""
        ...
