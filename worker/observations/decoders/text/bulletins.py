"""Split text files into bulletins and reports, and determine the full dates of reports.

A bulletin begins with its abbreviated heading, `SMRO01 YRBK 171200 CCA`; a file without any is one
bulletin. Reports end with `=`, or where the next code name begins. A code name such as `AAXX 17121`
applies to the reports after it; those of upper-air codes and METAR occur in each report or once before
them.

Reports contain only day and hour. The month follows from a reference: the time in a WMO file name
(`A_SMRO01YRBK171200_C_EDZW_20230117120502_…`), the sender's option `reference_time`, or the arrival;
by the arrival no report is dated more than three days back, which would be a guess.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from worker.contract.kinds import FIRST_YEAR, LAST_YEAR
from worker.observations.decoders.bufr.framing import (
    HEADING,
    NamedHeading,
    correction_number,
)

__all__ = ["CODES", "CORRECTED", "BulletinClock", "BulletinReport", "reports"]

CODES = (
    "AAXX", "BBXX", "OOXX", "TTAA", "TTBB", "TTCC", "TTDD", "UUAA", "UUBB", "UUCC", "UUDD",
    "PPAA", "PPBB", "PPCC", "PPDD", "QQAA", "QQBB", "QQCC", "QQDD", "METAR", "SPECI",
)  # fmt: skip
CORRECTED = re.compile(r"COR|CC[A-Z]")
"""Marks of a corrected report: of the WMO, and of Canada."""
_CODE = re.compile(rf"\b({'|'.join(CODES)})\b")
_PIECE = re.compile(rf"(?:{_CODE.pattern})?(?:(?!{_CODE.pattern})[^=])+=?|{_CODE.pattern}")
"""A report: nothing in it but its beginning is a code name."""
_HEADING = re.compile(rf"^{HEADING}[ \t\r]*$", re.MULTILINE)
_FILE_TIME = re.compile(r"_(\d{14})(?:_|\.|$)")
_END = re.compile(r"[\x03\x04]|\bNNNN\b|^ZCZC.*$", re.MULTILINE | re.IGNORECASE)
_BACK = timedelta(days=3)
_AHEAD = timedelta(hours=6)
_FAR = timedelta(days=31)


@dataclass(frozen=True)
class BulletinReport:
    """One report of a bulletin, split into groups.

    Attributes:
        code: One of `CODES`.
        words: The groups after the code name in capitals, those of the section before the reports included.
        indicator: The BBB group of its bulletin, or "".
        offset: Its first character in the file.
        length: Characters.
    """

    code: str
    words: tuple[str, ...]
    indicator: str
    offset: int
    length: int

    @property
    def corrects(self) -> bool:
        """Return whether the heading of its bulletin marks it as a correction."""
        return correction_number(self.indicator, 0) > 0


def reports(text: str, file_name: str = "") -> Iterator[BulletinReport]:
    """Yield the reports of a file in order."""
    named = NamedHeading.of(file_name)
    headings = list(_HEADING.finditer(text))
    starts = [0, *(h.end() for h in headings)]
    ends = [*(h.start() for h in headings), len(text)]
    marks = ["", *(named.indicator_of(h.groups()) for h in headings)]
    if not headings:
        marks = [named.indicator]
    for start, end, indicator in zip(starts, ends, marks, strict=True):
        yield from _of_bulletin(text, start, end, indicator)


def _of_bulletin(text: str, start: int, end: int, indicator: str) -> Iterator[BulletinReport]:
    code = ""
    common: tuple[str, ...] = ()
    for piece in _PIECE.finditer(text[start:end]):
        body = _END.sub(" ", piece.group().rstrip("="))
        found = _CODE.search(body)
        if found:
            code, common = found.group(), ()
            body = body[found.end() :]
        words = tuple(body.upper().split())
        if not code or not words:
            continue
        if code == "AAXX":
            if found:
                date = 2 if CORRECTED.fullmatch(words[0]) else 1
                common, words = words[:date], words[date:]
            words = common + words
        yield BulletinReport(code, words, indicator, start + piece.start(), len(piece.group()))


@dataclass(frozen=True)
class BulletinClock:
    """Convert the days and hours of reports to times, given a reference time.

    Attributes:
        reference: A time shortly after the reports (aware, UTC).
        sure: Whether the file or the sender gives it; else it is the arrival.
    """

    reference: datetime
    sure: bool

    @classmethod
    def of(cls, file_name: str, option: datetime | None, arrival: datetime) -> "BulletinClock":
        """Return the clock of a file."""
        if option is not None:
            return cls(
                option.astimezone(UTC) if option.tzinfo else option.replace(tzinfo=UTC), True
            )
        named = _FILE_TIME.search(file_name)
        if named:
            try:
                found = datetime.strptime(named.group(1), "%Y%m%d%H%M%S").replace(tzinfo=UTC)
            except ValueError:
                return cls(arrival, False)
            if not FIRST_YEAR <= found.year <= LAST_YEAR:
                return cls(arrival, False)
            return cls(found, True)
        return cls(arrival, False)

    def time(self, day: int, hour: int, minute: int = 0) -> datetime | None:
        """Return the latest time with this day and time of day that is not after the reference; None if
        there is none, or if it would be a guess. Hour 24 is the end of the day, only with minute 0.
        """
        if minute > 59 or 60 * hour + minute > 24 * 60:
            return None
        latest = self.reference + _AHEAD
        for months in range(3):
            year, month = latest.year, latest.month - months
            year, month = (year, month) if month > 0 else (year - 1, month + 12)
            try:
                found = datetime(year, month, day, tzinfo=UTC)
            except ValueError:
                continue
            found += timedelta(hours=hour, minutes=minute)
            if found <= latest:
                back = _FAR if self.sure else _BACK
                return found if self.reference - found <= back else None
        return None
