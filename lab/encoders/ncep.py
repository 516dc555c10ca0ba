"""Write BUFR files as NCEP does: messages that hold the tables, then reports encoded by them.

An independent encoder after "DX BUFR Tables" (NCEPLIBS-bufr) and the WMO Manual on Codes; sequences
are written as there: `{LEVELS}` count of 8 bits, `[EVENT]` stack, `<PART>` optional.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lab.encoders.message import calendar, gather, reported_direction
from model.domain.errors import InvalidInput

__all__ = [
    "AMSU_DUMP",
    "NcepTables",
    "PREPBUFR",
    "SONDE_DUMP",
    "SURFACE_DUMP",
    "amsu_dump",
    "fortran_records",
    "surface_dump",
]

_KINDS = {"{": 360_002, "[": 360_003, "<": 360_004, "(": 360_001}
_COUNTS = {"{": 8, "[": 8, "<": 1, "(": 16}
_BASE = """
BYTCNT  063000 0 0 16 BYTES
BITPAD  063255 0 0 1 NONE
DRF1BIT 031000 0 0 1 NUMERIC
DRF8BIT 031001 0 0 8 NUMERIC
DRF16BT 031002 0 0 16 NUMERIC
"""


class _BitWriter:
    def __init__(self) -> None:
        self.text: list[str] = []
        self.size = 0

    def put(self, number: int, width: int) -> None:
        if not 0 <= number < 1 << width:
            raise InvalidInput(f"Expected a number that fits into {width} bits; got {number}.")
        self.text.append(format(number, f"0{width}b"))
        self.size += width

    def chars(self, text: str, length: int) -> None:
        for letter in text.ljust(length)[:length].encode("ascii"):
            self.put(letter, 8)

    def bytes(self) -> bytes:
        joined = "".join(self.text)
        joined += "0" * (-len(joined) % 8)
        return bytes(int(joined[n : n + 8], 2) for n in range(0, len(joined), 8))


@dataclass
class NcepTables:
    """Definitions of elements and sequences, and the encoder that follows them.

    Attributes:
        elements: Lines of mnemonic, descriptor, scale, reference, bits and units.
        sequences: Members by mnemonic, written as in a DX table.
        numbers: Descriptors of sequences.
    """

    elements: str
    sequences: Mapping[str, str]
    numbers: Mapping[str, int]

    def __post_init__(self) -> None:
        self.table = {}
        for line in (_BASE + self.elements).split("\n"):
            if not line.strip():
                continue
            name, code, scale, reference, width, units = line.split(maxsplit=5)
            self.table[name] = (int(code), int(scale), int(reference), int(width), units)

    def definitions(self, when: Sequence[int]) -> bytes:
        """Return the BUFR message with the tables A, B and D that the other messages need."""
        bits = _BitWriter()
        kinds = [name for name in self.numbers if name.isupper() and self._is_kind(name)]
        bits.put(len(kinds), 8)
        for name in kinds:
            bits.chars(f"{self.numbers[name] % 1000:03d}", 3)
            bits.chars(name, 32)
            bits.chars("", 32)
        bits.put(len(self.table), 8)
        for name, (code, scale, reference, width, units) in self.table.items():
            bits.chars(f"{code:06d}{name}", 6 + 64)
            bits.chars(units, 24)
            bits.chars(("-" if scale < 0 else "+") + f"{abs(scale):<3d}", 4)
            bits.chars(("-" if reference < 0 else "+") + f"{abs(reference):<10d}", 11)
            bits.chars(f"{width:<3d}", 3)
        replications = {360_001: 31_002, 360_002: 31_001, 360_003: 31_001, 360_004: 31_000}
        bits.put(len(replications) + len(self.sequences), 8)
        for code, count in replications.items():
            self._sequence(bits, code, f"DRP{code % 10}", [101_000, count])
        for name, members in self.sequences.items():
            self._sequence(bits, self.numbers[name], name, self._codes(members))
        head = (103_000, 31_001, 1, 2, 3, 101_000, 31_001, 300_004)
        tail = (105_000, 31_001, 300_003, 205_064, 101_000, 31_001, 30)
        return _message(11, (*head, *tail), 1, bits.bytes(), when)

    def _is_kind(self, name: str) -> bool:
        inner = any(name in members for members in self.sequences.values())
        return not inner and self.sequences[name] != "SID"

    def _sequence(self, bits: _BitWriter, code: int, name: str, codes: Sequence[int]) -> None:
        bits.chars(f"{code:06d}{name}", 6 + 64)
        bits.put(len(codes), 8)
        for member in codes:
            bits.chars(f"{member:06d}", 6)

    def _codes(self, members: str) -> list[int]:
        found = []
        for member in members.split():
            if member[0] in _KINDS:
                found += [_KINDS[member[0]], self.numbers[member[1:-1]]]
            elif member.isdigit():
                found.append(int(member))
            else:
                found.append(self.numbers.get(member) or self.table[member][0])
        return found

    def message(
        self, kind: str, reports: Sequence[Mapping[str, Any]], when: Sequence[int], category: int
    ) -> bytes:
        """Return a message of reports, each with its length before it and padding after it.

        Arguments:
            kind: Mnemonic of the sequence.
            reports: Values by mnemonic: numbers in the units of the table, texts, lists for
                repeated sequences, and dicts for optional ones that are present.
            when: Year, month, day and hour.
            category: Data category.
        """
        body = b"".join(self._report(kind, report) for report in reports)
        codes = (63_000, self.numbers[kind], 102_000, 31_001, 206_001, 63_255)
        return _message(category, codes, len(reports), body, when)

    def compressed(
        self, kind: str, reports: Sequence[Mapping[str, Any]], when: Sequence[int], category: int
    ) -> bytes:
        """Return a compressed message of reports, none of which holds parts that are repeated."""
        bits = _BitWriter()
        self._columns(bits, self.sequences[kind], reports)
        return _message(
            category, (self.numbers[kind],), len(reports), bits.bytes(), when, flags=192
        )

    def _columns(
        self, bits: _BitWriter, members: str, reports: Sequence[Mapping[str, Any]]
    ) -> None:
        for member in members.split():
            if member[0] in _KINDS:
                bits.put(1, _COUNTS[member[0]])
                bits.put(0, 6)
                self._columns(bits, self.sequences[member[1:-1]], reports)
            elif member in self.sequences:
                self._columns(bits, self.sequences[member], reports)
            else:
                self._column(bits, member, [report.get(member) for report in reports])

    def _column(self, bits: _BitWriter, name: str, values: list[Any]) -> None:
        _, scale, reference, width, units = self.table[name]
        if units.startswith("CCITT"):
            bits.put(0, width)
            bits.put(width // 8, 6)
            for value in values:
                bits.chars(value or "", width // 8)
            return
        numbers = [None if v is None else round(v * 10.0**scale) - reference for v in values]
        given = [number for number in numbers if number is not None]
        least = min(given, default=(1 << width) - 1)
        size = 0
        if given and (max(given) > least or len(given) < len(numbers)):
            size = (max(given) - least + 1).bit_length()
        bits.put(least, width)
        bits.put(size, 6)
        for number in numbers if size else []:
            bits.put((1 << size) - 1 if number is None else number - least, size)

    def _report(self, kind: str, report: Mapping[str, Any]) -> bytes:
        bits = _BitWriter()
        self._put(bits, self.sequences[kind], report, 0)
        padding = -(bits.size + 24) % 8
        length = (bits.size + 24 + padding) // 8
        bits.put(padding, 8)
        bits.put(0, padding) if padding else None
        return length.to_bytes(2, "big") + bits.bytes()

    def _put(self, bits: _BitWriter, members: str, values: Mapping[str, Any], factor: int) -> None:
        for member in members.split():
            if member.isdigit():
                factor = int(member) % 1_000 if member.startswith("207") else factor
            elif member[0] in _KINDS:
                name = member[1:-1]
                found = values.get(name, [])
                items = found if isinstance(found, list) else [found]
                bits.put(len(items), _COUNTS[member[0]])
                for item in items:
                    self._put(bits, self.sequences[name], item, factor)
            elif member in self.sequences:
                self._put(bits, self.sequences[member], values.get(member, values), factor)
            else:
                self._value(bits, member, values.get(member), factor)

    def _value(self, bits: _BitWriter, name: str, value: Any, factor: int) -> None:
        _, scale, reference, width, units = self.table[name]
        if units.startswith("CCITT"):
            bits.chars(value or "", width // 8)
            return
        if factor:
            scale, reference = scale + factor, reference * 10**factor
            width += (10 * factor + 2) // 3
        full = (1 << width) - 1
        bits.put(full if value is None else round(value * 10.0**scale) - reference, width)


def _message(
    category: int,
    codes: Sequence[int],
    reports: int,
    body: bytes,
    when: Sequence[int],
    flags: int = 128,
) -> bytes:
    """Return a message of edition 3, as NCEP writes it."""
    year, month, day, hour = when
    date = bytes([(year - 1) % 100 + 1, month, day, hour, 0, (year - 1) // 100 + 1])
    section_1 = b"\0\0\x12" + bytes([0, 3, 7, 0, 0, category, 0, 13, 0]) + date
    packed = b"".join(
        ((code // 100_000 << 14) + (code // 1_000 % 100 << 8) + code % 1_000).to_bytes(2, "big")
        for code in codes
    )
    section_3 = (8 + len(packed)).to_bytes(3, "big") + b"\0"
    section_3 += reports.to_bytes(2, "big") + bytes([flags]) + packed + b"\0"
    body += b"\0" * (len(body) % 2)
    section_4 = (4 + len(body)).to_bytes(3, "big") + b"\0" + body
    content = section_1 + section_3 + section_4 + b"7777"
    return b"BUFR" + (8 + len(content)).to_bytes(3, "big") + b"\x03" + content


def fortran_records(messages: Sequence[bytes]) -> bytes:
    """Return messages as unformatted records: a length before and after each."""
    return b"".join(len(m).to_bytes(4, "big") + m + len(m).to_bytes(4, "big") for m in messages)


PREPBUFR = NcepTables(
    """
SID   001194 0 0 64 CCITT IA5
SAID  001007 0 0 10 CODE TABLE
XOB   006240 2 -18000 16 DEG E
YOB   005002 2 -9000 15 DEG N
DHR   004215 5 -2400000 23 HOURS
ELV   010199 0 -1000 17 METER
TYP   055007 0 0 9 CODE TABLE
T29   055008 0 0 10 CODE TABLE
CAT   008193 0 0 6 CODE TABLE
POB   007245 1 0 14 MB
PQM   007246 0 0 5 CODE TABLE
PPC   007247 0 0 5 CODE TABLE
POE   007250 2 0 12 MB
PFC   007249 1 0 14 MB
QOB   013245 0 0 16 MG/KG
QQM   013246 0 0 5 CODE TABLE
QPC   013247 0 0 5 CODE TABLE
QOE   013250 1 0 7 PERCENT DIVIDED BY 10
TDO   012244 1 -2732 14 DEG C
TOB   012245 1 -2732 14 DEG C
TQM   012246 0 0 5 CODE TABLE
TPC   012247 0 0 5 CODE TABLE
TOE   012250 1 0 10 DEG C
ZOB   010007 0 -1000 17 METER
ZQM   010246 0 0 5 CODE TABLE
UOB   011003 1 -4096 13 M/S
VOB   011004 1 -4096 13 M/S
WQM   011240 0 0 5 CODE TABLE
WPC   011241 0 0 5 CODE TABLE
WOE   011245 1 0 10 M/S
XDR   006241 2 -18000 16 DEG E
YDR   005241 2 -9000 15 DEG N
HRDR  004218 5 -2400000 23 HOURS
PMO   010243 1 0 14 MB
PMQ   010244 0 0 5 CODE TABLE
SST1  022043 2 0 15 K
SSTQM 022246 0 0 5 CODE TABLE
PWO   013193 1 0 10 KG/M**2
PWQ   051021 0 0 5 CODE TABLE
PRWE  020003 0 0 9 CODE TABLE
""",
    {
        "ADPUPA": "HEADR {PRSLEVEL} <PREWXSEQ>",
        "ADPSFC": "HEADR CAT <P___INFO> <Q___INFO> <T___INFO> <W___INFO> <PMSL_SEQ> <SST_INFO>",
        "SFCSHP": "HEADR CAT <P___INFO> <Q___INFO> <T___INFO> <W___INFO> <PMSL_SEQ> <SST_INFO>",
        "SATWND": "HEADR SAID PRSLEVEL",
        "GPSIPW": "HEADR CAT [PWTEVENT]",
        "HEADR": "SID 207003 XOB YOB 207000 DHR ELV TYP T29",
        "PRSLEVEL": "CAT <P___INFO> <Q___INFO> <T___INFO> <Z___INFO> <W___INFO> <DRFTINFO>",
        "P___INFO": "[P__EVENT] <P__BACKG>",
        "Q___INFO": "[Q__EVENT] TDO <Q__BACKG>",
        "T___INFO": "[T__EVENT] <T__BACKG>",
        "Z___INFO": "[Z__EVENT]",
        "W___INFO": "[W__EVENT] <W__BACKG>",
        "DRFTINFO": "207003 XDR YDR 207000 HRDR",
        "SST_INFO": "[SSTEVENT]",
        "PMSL_SEQ": "PMO PMQ",
        "PREWXSEQ": "PRWE",
        "P__EVENT": "POB PQM PPC",
        "Q__EVENT": "QOB QQM QPC",
        "T__EVENT": "TOB TQM TPC",
        "Z__EVENT": "ZOB ZQM",
        "W__EVENT": "UOB VOB WQM WPC",
        "SSTEVENT": "SST1 SSTQM",
        "PWTEVENT": "PWO PWQ",
        "P__BACKG": "POE PFC",
        "Q__BACKG": "QOE",
        "T__BACKG": "TOE",
        "W__BACKG": "WOE",
        "PREPRO": "SID",
        "VIRTMP": "SID",
    },
    {
        "ADPUPA": 348_102, "ADPSFC": 348_109, "SFCSHP": 348_110, "SATWND": 348_105,
        "GPSIPW": 348_118, "HEADR": 348_001, "PRSLEVEL": 348_002, "P___INFO": 348_141,
        "Q___INFO": 348_142, "T___INFO": 348_143, "Z___INFO": 348_144, "W___INFO": 348_145,
        "DRFTINFO": 348_155, "SST_INFO": 348_158, "PMSL_SEQ": 348_003, "PREWXSEQ": 348_013,
        "P__EVENT": 348_171, "Q__EVENT": 348_172, "T__EVENT": 348_173, "Z__EVENT": 348_174,
        "W__EVENT": 348_175, "SSTEVENT": 348_184, "PWTEVENT": 348_177, "P__BACKG": 348_191,
        "Q__BACKG": 348_192, "T__BACKG": 348_193, "W__BACKG": 348_195, "PREPRO": 363_001,
        "VIRTMP": 363_008,
    },
)  # fmt: skip
"""Sequences of PrepBUFR, cut down to what is decoded and a little that is not."""

_DATE = """
YEAR 004001 0 0 12 YEAR
MNTH 004002 0 0 4 MONTH
DAYS 004003 0 0 6 DAY
HOUR 004004 0 0 5 HOUR
MINU 004005 0 0 6 MINUTE
RPID 001198 0 0 64 CCITT IA5
WMOB 001001 0 0 7 NUMERIC
WMOS 001002 0 0 10 NUMERIC
CLAT 005002 2 -9000 15 DEGREES
CLON 006002 2 -18000 16 DEGREES
SELV 007001 0 -400 15 METERS
PRES 010004 -1 0 14 PASCALS
PMSL 010051 -1 0 14 PASCALS
PRLC 007004 -1 0 14 PASCALS
WDIR 011001 0 0 9 DEGREES TRUE
WSPD 011002 1 0 12 METERS/SECOND
TMDB 012101 2 0 16 KELVIN
TMDP 012103 2 0 16 KELVIN
GP10 010008 -1 -400 17 M**2/S**2
QMAT 033193 0 0 4 CODE TABLE
QMDD 033194 0 0 4 CODE TABLE
"""
SURFACE_DUMP = NcepTables(
    _DATE,
    {
        "NC000001": "DATES PLACE QMAT TMDB QMDD TMDP <WNDSQ> <PRSSQ>",
        "NC001001": "DATES PLACE QMAT TMDB QMDD TMDP <WNDSQ> <PRSSQ>",
        "DATES": "YEAR MNTH DAYS HOUR MINU",
        "PLACE": "RPID CLAT CLON SELV",
        "WNDSQ": "WDIR WSPD",
        "PRSSQ": "PRES PMSL",
    },
    {
        "NC000001": 363_200, "NC001001": 363_210, "DATES": 361_001, "PLACE": 361_002,
        "WNDSQ": 361_042, "PRSSQ": 361_045,
    },
)  # fmt: skip
SONDE_DUMP = NcepTables(
    _DATE,
    {
        "NC002001": "DATES WMOB WMOS PLACE {UARLV}",
        "DATES": "YEAR MNTH DAYS HOUR MINU",
        "PLACE": "RPID CLAT CLON SELV",
        "UARLV": "PRLC <UATMP> <UAWND> <UAGP>",
        "UATMP": "QMAT TMDB QMDD TMDP",
        "UAWND": "WDIR WSPD",
        "UAGP": "GP10",
    },
    {
        "NC002001": 363_218, "DATES": 361_001, "PLACE": 361_002, "UARLV": 361_123,
        "UATMP": 361_125, "UAWND": 361_126, "UAGP": 361_134,
    },
)  # fmt: skip
AMSU_DUMP = NcepTables(
    """
SAID  001007 0 0 10 CODE TABLE
SIID  002019 0 0 11 CODE TABLE
FOVN  005043 0 0 8 NUMERIC
YEAR  004001 0 0 12 YEAR
MNTH  004002 0 0 4 MONTH
DAYS  004003 0 0 6 DAY
HOUR  004004 0 0 5 HOUR
MINU  004005 0 0 6 MINUTE
SECO  004006 0 0 6 SECOND
CLAT  005002 2 -9000 15 DEG N
CLON  006002 2 -18000 16 DEG E
SAZA  007024 2 -9000 15 DEG
HMSL  007002 -1 -40 20 METER
CHNM  005042 0 0 6 NUMERIC
TMBR  012163 2 0 16 DEG K
""",
    {
        "NC021023": "SAID SIID FOVN YEAR MNTH DAYS HOUR MINU SECO CLAT CLON SAZA HMSL {BRIT}",
        "BRIT": "CHNM TMBR",
    },
    {"NC021023": 361_023, "BRIT": 361_024},
)
"""Brightness temperatures of AMSU-A, as in `gdas.t06z.1bamua.tm00.bufr_d`."""

_AMSU_A = 570
_AMSU_SPOTS = 30
_IN_MESSAGE = 50


def surface_dump(table: pa.Table) -> bytes:
    """Return the land stations of a table as a dump, `gdas.t06z.adpsfc.tm00.bufr_d`."""
    reports = gather(table.filter(pc.equal(table["report_type"], "synop")))
    u, v = reports.get("10m_u_component_of_wind"), reports.get("10m_v_component_of_wind")
    columns = {
        "CLAT": reports.lat, "CLON": reports.lon, "SELV": np.round(reports.elevation),
        "TMDB": reports.get("2m_temperature"), "PMSL": reports.get("mean_sea_level_pressure"),
        "WDIR": reported_direction(u, v), "WSPD": np.hypot(u, v),
    }  # fmt: skip
    found = []
    for n, when in enumerate(_clocks(reports.time)):
        one = {name: _known(values[n]) for name, values in columns.items()}
        pressure = {"PRSSQ": {"PMSL": one.pop("PMSL")}}
        wind = {"WNDSQ": {name: one.pop(name) for name in ("WDIR", "WSPD")}}
        found.append({**when, **one, **wind, **pressure, "RPID": reports.station_id[n]})
    return _dump(SURFACE_DUMP, "NC000001", found, 0)


def amsu_dump(table: pa.Table, satellite: int) -> bytes:
    """Return the brightness temperatures of a table as a dump of AMSU-A.

    Spots of a scan line, which share their time, are numbered evenly over it; the zenith angle is
    left out, so that a reader takes the step between the sensor's own spots.
    """
    rows = table.filter(pc.equal(table["variable"], "brightness_temperature"))
    time = rows["time"].cast(pa.int64()).to_numpy() // 1_000_000_000
    lat, lon = rows["lat"].to_numpy(), rows["lon"].to_numpy()
    channel, value = rows["vertical"].to_numpy(), rows["obs_value"].to_numpy()
    places = np.rec.fromarrays([time, lat, lon])
    _, first, spot = np.unique(places, return_index=True, return_inverse=True)
    found = []
    for n, when in enumerate(_clocks(time[first].astype("datetime64[s]"))):
        own = np.flatnonzero(spot == n)
        bright = [{"CHNM": int(channel[i]), "TMBR": float(value[i])} for i in own]
        line = np.flatnonzero(time[first] == time[first[n]])
        number = 1 + (_AMSU_SPOTS - 1) * int(np.searchsorted(line, n)) // max(len(line) - 1, 1)
        found.append(
            {**when, "SAID": satellite, "SIID": _AMSU_A, "FOVN": number, "BRIT": bright,
             "CLAT": lat[first[n]], "CLON": lon[first[n]]}
        )  # fmt: skip
    return _dump(AMSU_DUMP, "NC021023", found, 21)


def _dump(
    tables: NcepTables, kind: str, reports: Sequence[Mapping[str, Any]], category: int
) -> bytes:
    """Return tables and messages of reports as a file of records."""
    if not reports:
        return b""
    when = [int(reports[0][name]) for name in ("YEAR", "MNTH", "DAYS", "HOUR")]
    parts = [reports[n : n + _IN_MESSAGE] for n in range(0, len(reports), _IN_MESSAGE)]
    messages = [tables.message(kind, part, when, category) for part in parts]
    return fortran_records([tables.definitions(when), *messages])


def _clocks(time: np.ndarray) -> Iterator[dict[str, int]]:
    """Yield date and clock of each time, by mnemonic."""
    names = {"YEAR": "year", "MNTH": "month", "DAYS": "day", "HOUR": "hour", "MINU": "minute",
             "SECO": "second"}  # fmt: skip
    parts = calendar(time)
    for n in range(len(time)):
        yield {name: int(parts[f"#1#{long}"][n]) for name, long in names.items()}


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
