"""Define what a decoder takes and returns: its context, the table of rows and the report.

Nothing is dropped silently: every message of a file ends as decoded, or as one of `REASONS`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from model.domain.errors import DecodeError
from model.domain.observations import OBSERVATION_SCHEMA, QC_FLAGS

__all__ = [
    "DecodeContext",
    "DecodeReport",
    "Decoded",
    "Decoder",
    "KEPT_QUARANTINED",
    "MessageLimits",
    "Quarantined",
    "REASONS",
    "build_table",
    "check_rows",
    "concat_tables",
    "finish",
    "parse_times",
    "strip_texts",
    "wrap_longitude",
]

KEPT_QUARANTINED = 100
"""Messages set aside that a report lists one by one; beyond it they are only counted."""

REASONS: Mapping[str, str] = {
    # the file
    "empty_file": "the file holds no bytes",
    "unknown_format": "neither the first bytes nor the name belong to a known format",
    "wrong_format": "the content is not what the name or the sender says",
    "alphanumeric": "alphanumeric code (CREX, SYNOP, TEMP, METAR text): send the BUFR version",
    "compressed_archive": "a compressed file or archive inside the upload: send it unpacked",
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
    "no_values": "decoded, but every value is missing",
    "unsupported_variable": "a variable that is not in the vocabulary",
    "invalid_table": "columns, types or names do not fit the observation table",
}
"""Why a file, message or report yields no row, by code."""


@dataclass(frozen=True)
class Quarantined:
    """One message set aside: where it is and why.

    Attributes:
        offset: First byte in the file.
        length: Bytes set aside.
        reason: One of `REASONS`.
        detail: What came, in words.
        report: Number of the report (subset) when only one of a message is meant, else None.
    """

    offset: int
    length: int
    reason: str
    detail: str = ""
    report: int | None = None


@dataclass
class DecodeReport:
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
    """

    format: str = ""
    size: int = 0
    bytes_decoded: int = 0
    bytes_between: int = 0
    messages: int = 0
    decoded: int = 0
    reports: int = 0
    rows: int = 0
    rows_by_variable: Counter[str] = field(default_factory=Counter)
    rows_by_report_type: Counter[str] = field(default_factory=Counter)
    flagged: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    quarantined: list[Quarantined] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def reject(
        self,
        reason: str,
        offset: int = 0,
        length: int = 0,
        detail: str = "",
        report: int | None = None,
    ) -> None:
        """Counts one message (or one report of it) that gives no row."""
        if reason not in REASONS:
            raise KeyError(f"Expected one of the reasons {', '.join(REASONS)}; got '{reason}'.")
        self.rejected[reason] += 1
        if len(self.quarantined) < KEPT_QUARANTINED:
            self.quarantined.append(Quarantined(offset, length, reason, detail[:300], report))

    def count_rows(self, table: pa.Table) -> None:
        """Adds the rows of a table to the counts."""
        self.rows += table.num_rows
        _count(table["variable"], self.rows_by_variable)
        _count(table["report_type"], self.rows_by_report_type)
        _count(table["rejected_by"], self.flagged)

    def merge(self, other: "DecodeReport") -> "DecodeReport":
        """This report with the counts of another added; returns itself."""
        if self.format != other.format:
            self.format = other.format if not self.format else "mixed"
        for name in ("size", "bytes_decoded", "bytes_between"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("messages", "decoded", "reports", "rows"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("rows_by_variable", "rows_by_report_type", "flagged", "rejected", "notes"):
            getattr(self, name).update(getattr(other, name))
        self.quarantined = (self.quarantined + other.quarantined)[:KEPT_QUARANTINED]
        return self

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, read back by `from_dict`."""
        return {
            name: dict(value)
            if isinstance(value, Counter)
            else [vars(q) for q in value]
            if isinstance(value, list)
            else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DecodeReport":
        """The report written by `to_dict`."""
        kinds = {name: type(value) for name, value in vars(cls()).items()}
        return cls(
            **{
                name: Counter(value)
                if kinds[name] is Counter
                else [Quarantined(**q) for q in value]
                if kinds[name] is list
                else value
                for name, value in values.items()
            }
        )


def _count(column: pa.ChunkedArray, into: Counter[str]) -> None:
    for entry in pc.value_counts(column).to_pylist():
        if entry["values"] is not None:
            into[entry["values"]] += entry["counts"]


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
    """Return values as strings without the blanks and NULs that formats pad them with."""
    return np.array([str(value).strip("\x00 ") for value in values], dtype=object)


def parse_times(texts: np.ndarray) -> np.ndarray:
    """Return ISO 8601 texts as datetime64[ns] in UTC, NaT where a text is none; no zone is UTC."""
    parsed = pd.to_datetime(
        pd.Series(texts, dtype=object), errors="coerce", utc=True, format="ISO8601"
    )
    return parsed.dt.tz_localize(None).to_numpy().astype("datetime64[ns]")


class Decoder(Protocol):
    """Decodes a whole file.

    A message that cannot be used is counted in the report, never fatal. Raises `DecodeError`,
    with `reason=` one of `REASONS` in its context, only when the file as a whole is of no use.
    """

    def __call__(self, path: Path, context: DecodeContext) -> Decoded:
        """The rows and the counts of the file at `path`."""
        ...


Column = np.ndarray | Sequence[Any] | str | float | None

_FLAG_NUMBERS = {flag.name: flag.number for flag in QC_FLAGS.values()}


def wrap_longitude(lon: np.ndarray) -> np.ndarray:
    """Degrees east in [-180, 180)."""
    wrapped = np.where((lon >= -180.0) & (lon < 180.0), lon, (lon + 180.0) % 360.0 - 180.0)
    # The remainder of a tiny negative number rounds to 360.
    return np.where(wrapped >= 180.0, -180.0, wrapped)


def build_table(context: DecodeContext, length: int, **columns: Column) -> pa.Table:
    """A table in `OBSERVATION_SCHEMA` from arrays of `length`, or single values repeated.

    Absent columns are null (`platform`: empty). NaN becomes null where the column may be null.
    `observation_id` counts from 0, `batch_id` and `received_time` come from the context,
    `qc_flag` from `rejected_by`. `lon` is wrapped; `time` is datetime64 in UTC.

    Arguments:
        context: Batch and arrival.
        length: Number of rows.
        columns: By name of the schema.

    Raises:
        KeyError: If a name is not a column of the schema.
    """
    if unknown := sorted(set(columns) - set(OBSERVATION_SCHEMA.names)):
        raise KeyError(f"Expected columns of the observation table; got {', '.join(unknown)}.")
    columns = {
        "observation_id": np.arange(length, dtype=np.int64),
        "batch_id": context.batch_id,
        "received_time": np.datetime64(context.received_time.replace(tzinfo=None), "ns"),
        "platform": "",
        **columns,
    }
    if columns.get("lon") is not None:
        columns["lon"] = wrap_longitude(np.asarray(columns["lon"], dtype=np.float64))
    columns.setdefault("qc_flag", _flag_numbers(columns.get("rejected_by"), length))
    arrays = [_column(columns.get(field.name), field, length) for field in OBSERVATION_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=OBSERVATION_SCHEMA)


def concat_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """The tables one after another, dictionaries unified and `observation_id` counted anew."""
    if not tables:
        return OBSERVATION_SCHEMA.empty_table()
    table = pa.concat_tables(tables).unify_dictionaries()
    ids = pa.array(np.arange(table.num_rows, dtype=np.int64))
    at = table.schema.get_field_index("observation_id")
    return table.set_column(at, table.schema.field(at), ids)


def _flag_numbers(rejected_by: Column, length: int) -> Column:
    if rejected_by is None:
        return np.zeros(length, dtype=np.uint8)
    if isinstance(rejected_by, str):
        return np.full(length, _FLAG_NUMBERS[rejected_by], dtype=np.uint8)
    names, inverse = np.unique(
        np.asarray(rejected_by, dtype=object).astype(str), return_inverse=True
    )
    numbers = [_FLAG_NUMBERS.get(str(name), 0) for name in names]
    return np.asarray(numbers, dtype=np.uint8)[inverse] if length else np.zeros(0, np.uint8)


def _column(value: Column, field: pa.Field, length: int) -> pa.Array:
    kind = field.type
    if value is None:
        return pa.nulls(length, kind)
    if pa.types.is_dictionary(kind):
        if isinstance(value, str):
            indices = pa.array(np.zeros(length, dtype=np.int32))
            return pa.DictionaryArray.from_arrays(indices, pa.array([value], pa.string()))
        if isinstance(value, pa.DictionaryArray):
            return value
        return pa.array(value, pa.string()).dictionary_encode()
    if np.ndim(value) == 0:
        value = np.full(length, value)
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return pa.array(value, kind, from_pandas=field.nullable)
    if isinstance(value, np.ndarray) and value.dtype.kind == "M":
        return pa.array(value.astype("datetime64[ns]")).cast(kind)
    return pa.array(value, kind)
