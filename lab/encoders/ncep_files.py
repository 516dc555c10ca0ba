"""Write observations as the files of NCEP: dumps of stations and of AMSU-A, and sondes in PrepBUFR.

In PrepBUFR, mass and wind of an ascent are separate reports.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lab.encoders.message import ReportTable, calendar, gather, reported_direction
from lab.encoders.ncep import NcepTables, fortran_records
from model.domain.physics import ZERO_CELSIUS

__all__ = [
    "AMSU_DUMP",
    "PREPBUFR",
    "SONDE_DUMP",
    "SURFACE_DUMP",
    "amsu_dump",
    "prepbufr_sondes",
    "surface_dump",
]

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
_IN_DUMP_MESSAGE = 50
_IN_PREPBUFR_MESSAGE = 10
_MASS, _WIND = 120, 220
_SONDES = 102
_GOOD, _FIRST = 2, 1
"""Quality mark and program code of a value as it was first reported."""


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
    parts = [reports[n : n + _IN_DUMP_MESSAGE] for n in range(0, len(reports), _IN_DUMP_MESSAGE)]
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


def prepbufr_sondes(table: pa.Table) -> bytes:
    """Return the sondes of a table as a file of records, `gdas.t12z.prepbufr`."""
    reports = gather(table.filter(pc.equal(table["report_type"], "temp")))
    if not len(reports):
        return b""
    hour = reports.time.max().astype("datetime64[h]")
    parts = calendar(np.array([hour]))
    when = [int(parts[f"#1#{name}"][0]) for name in ("year", "month", "day", "hour")]
    found = []
    for name in dict.fromkeys(reports.station_id.tolist()):
        own = reports.take(np.flatnonzero(reports.station_id == name))
        found += [_mass(own, hour), _wind(own, hour)]
    messages = [
        PREPBUFR.message("ADPUPA", found[n : n + _IN_PREPBUFR_MESSAGE], when, _SONDES)
        for n in range(0, len(found), _IN_PREPBUFR_MESSAGE)
    ]
    return fortran_records([PREPBUFR.definitions(when), *messages])


def _sonde_head(levels: ReportTable, kind: int, hour: np.datetime64) -> dict[str, Any]:
    seconds = float((levels.time[0] - hour.astype("datetime64[s]")).astype(np.int64))
    return {
        "SID": levels.station_id[0], "XOB": float(levels.lon[0]), "YOB": float(levels.lat[0]),
        "DHR": seconds / 3600.0, "ELV": float(np.nan_to_num(levels.elevation[0])), "TYP": kind,
        "T29": 11, "CAT": 1,
    }  # fmt: skip


def _level(pressure: float, **parts: Any) -> dict[str, Any]:
    event = {"POB": pressure / 100.0, "PQM": _GOOD, "PPC": _FIRST}
    return {"CAT": 1, "P___INFO": {"P__EVENT": [event]}, **parts}


def _events(name: str, value: float) -> dict[str, Any]:
    event = {f"{name}OB": value, f"{name}QM": _GOOD, f"{name}PC": _FIRST}
    return {f"{name}___INFO": {f"{name}__EVENT": [event]}}


def _mass(levels: ReportTable, hour: np.datetime64) -> dict[str, Any]:
    temperature, humidity = levels.get("temperature"), levels.get("specific_humidity")
    found = []
    for pressure, t, q in zip(levels.vertical, temperature, humidity, strict=True):
        parts = _events("T", float(t) - ZERO_CELSIUS) if np.isfinite(t) else {}
        parts |= _events("Q", 1e6 * float(q)) if np.isfinite(q) else {}
        found.append(_level(float(pressure), **parts))
    return {**_sonde_head(levels, _MASS, hour), "PRSLEVEL": found}


def _wind(levels: ReportTable, hour: np.datetime64) -> dict[str, Any]:
    east, north = levels.get("u_component_of_wind"), levels.get("v_component_of_wind")
    found = []
    for pressure, u, v in zip(levels.vertical, east, north, strict=True):
        event = {"UOB": float(u), "VOB": float(v), "WQM": _GOOD, "WPC": _FIRST}
        parts = {"W___INFO": {"W__EVENT": [event]}} if np.isfinite(u) and np.isfinite(v) else {}
        found.append(_level(float(pressure), **parts))
    return {**_sonde_head(levels, _WIND, hour), "PRSLEVEL": found}
