"""What became of one file: counts, and the messages set aside with their reasons.

Nothing is dropped silently: every message of a file ends as decoded, or as one of `REASONS`.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["KEPT_QUARANTINED", "REASONS", "DecodeReport", "Quarantined"]

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
