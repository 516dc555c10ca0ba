"""Decode files of alphanumeric bulletins into one table."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from model.domain.errors import DecodeError
from worker.observations.columns import build_table, number_array
from worker.observations.decoders.base import DecodeContext, Decoded, DecodeReport, finish
from worker.observations.decoders.bufr.framing import correction_number
from worker.observations.decoders.options import TextOptions
from worker.observations.decoders.text import surface
from worker.observations.decoders.text.bulletins import BulletinClock, BulletinReport, reports
from worker.observations.decoders.text.surface import decode_metar, decode_synop
from worker.observations.decoders.text.upper_air import decode_upper_air
from worker.observations.stations import StationSite, read_list

__all__ = ["decode_text"]

_Decode = Callable[
    [BulletinReport, BulletinClock, Mapping[str, StationSite]], surface.ReportValues | None
]


def _decoder_of(code: str) -> _Decode:
    if code in ("AAXX", "BBXX", "OOXX"):
        return decode_synop
    return decode_metar if code in ("METAR", "SPECI") else decode_upper_air


def decode_text(path: Path, context: DecodeContext) -> Decoded:
    """Return the values of all reports; those that cannot be read are rejected and counted."""
    data = path.read_bytes()
    name = context.file_name or path.name
    options = TextOptions.of(context.options)
    report = DecodeReport(format="text", size=len(data))
    clock = BulletinClock.of(name, options.reference_time, context.received_time)
    places = {**read_list(context.stations), **_places(options)}
    found: list[tuple[BulletinReport, surface.ReportValues]] = []
    codes: Counter[str] = Counter()
    for one in reports(data.decode("latin-1"), name):
        report.messages += 1
        report.reports += 1
        codes[f"code_{one.code}"] += 1
        try:
            decoded = _decoder_of(one.code)(one, clock, places)
        except DecodeError as error:
            reason = error.context.get("reason", "undecodable")
            report.reject(reason, one.offset, one.length, error.message)
            continue
        if decoded is not None and not decoded.rows and _withdraws(one, decoded):
            decoded.rows.append(("2m_temperature", "surface", surface.NAN, surface.NAN))
        if decoded is None or not decoded.rows:
            what = f"{one.code} {' '.join(one.words[:3])}"
            report.reject("no_values", one.offset, one.length, what)
            continue
        report.decoded += 1
        report.bytes_decoded += one.length
        report.values_set_aside += decoded.set_aside
        found.append((one, decoded))
    report.notes.update(codes)
    report.bytes_between = report.size - sum(one.length for one, _ in found)
    return finish(_table(found, context), report)


def _places(options: TextOptions) -> dict[str, StationSite]:
    """Return the places of the option `stations`."""
    found = {}
    for name, place in options.stations.items():
        ground = surface.NAN if place.elevation is None else place.elevation
        barometer = ground if place.barometer is None else place.barometer
        found[name] = StationSite(place.lat, place.lon, ground, barometer)
    return found


def _table(
    found: list[tuple[BulletinReport, surface.ReportValues]], context: DecodeContext
) -> pa.Table:
    rows = [
        (number, one, decoded, row)
        for number, (one, decoded) in enumerate(found)
        for row in decoded.rows
    ]
    profiles = np.array([number if decoded.profile else -1 for number, _, decoded, _ in rows])
    return build_table(
        context,
        len(rows),
        report_type=[decoded.network for _, _, decoded, _ in rows],
        station_id=[decoded.station for _, _, decoded, _ in rows],
        platform=[one.code.lower() for _, one, _, _ in rows],
        time=np.array(
            [decoded.time.replace(tzinfo=None) for _, _, decoded, _ in rows], dtype="datetime64[s]"
        ),
        lat=np.array([decoded.place.lat for _, _, decoded, _ in rows], dtype=float),
        lon=np.array([decoded.place.lon for _, _, decoded, _ in rows], dtype=float),
        elevation=np.array([_height(decoded, row[0]) for _, _, decoded, row in rows], dtype=float),
        variable=[row[0] for *_, row in rows],
        vertical_kind=[row[1] for *_, row in rows],
        vertical=np.array([row[2] for *_, row in rows], dtype=float),
        obs_value=np.array([row[3] for *_, row in rows], dtype=float),
        profile_id=number_array(profiles.astype(np.int32), profiles < 0),
        update_sequence=[_correction(one, decoded) for _, one, decoded, _ in rows],
        message_offset=np.array([one.offset for _, one, _, _ in rows], dtype=np.int64),
    )


def _height(decoded: surface.ReportValues, variable: str) -> float:
    place = decoded.place
    return place.barometer if variable == "surface_pressure" else place.elevation


def _withdraws(one: BulletinReport, decoded: surface.ReportValues) -> bool:
    """Return whether a report without values withdraws an earlier one of the station."""
    return not decoded.profile and _correction(one, decoded) > 0


def _correction(one: BulletinReport, decoded: surface.ReportValues) -> int:
    return max(correction_number(one.indicator, 0), int(decoded.correction))
