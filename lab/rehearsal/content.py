"""Choose the format of each file of an hour, and encode it as a data centre would send it."""

import gzip
import io
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lab.encoders.archives import encode_fields, ioda_retrievals, odb_retrievals
from lab.encoders.bufr import encode_bufr
from lab.encoders.ncep_files import amsu_dump, prepbufr_sondes, surface_dump
from lab.encoders.radiances import encode_radiances
from lab.encoders.text import (
    crex_stations,
    in_metar,
    in_temp,
    location_indicator,
    metar_bulletin,
    pilot_bulletin,
    ship_bulletin,
    temp_bulletin,
)
from lab.rehearsal.scenario import PlannedDelivery
from model.domain.windows import HOUR
from worker.observations.columns import set_column

__all__ = ["DeliveryContent", "content_of", "indicator"]

_RECEIVERS_OWN = ["observation_id", "batch_id", "received_time", "rejected_by", "qc_flag"]
_METOP_B = 3
_CHANNELS = {
    "atms": {channel: channel + 1 for channel in range(4, 10)},
    "mhs": {4: 5, 5: 4, 6: 3},
}
"""Channels of AMSU-A, and those of other sensors under which they are sent: of the same frequencies, or
moisture channels that peak at similar heights."""
_REPORTS, _RESENT_REPORTS = 100, 7  # in a message: the same reports in other bytes


@dataclass(frozen=True, eq=False)
class DeliveryContent:
    """A file to be delivered, with the times of its values.

    Attributes:
        data: Its bytes; empty if the network has no reports.
        seconds: Time of each of its values, s since 1970, whole seconds.
        report_type: Report type that the sender must state, as the file does not; empty for none.
    """

    data: bytes
    seconds: NDArray[np.int64]
    report_type: str = ""

    def within(self, start: datetime, end: datetime) -> int:
        """Return how many values were observed in (start, end]."""
        low, high = start.timestamp(), end.timestamp()
        return int(((self.seconds > low) & (self.seconds <= high)).sum())


@dataclass(frozen=True)
class _FileForm:
    """Encoder of files of one kind, with the rows that they can carry.

    Attributes:
        write: Returns the bytes of rows.
        carried: Returns the rows that files of this kind can carry.
        report_type: As in `DeliveryContent`.
    """

    write: Callable[[pa.Table, PlannedDelivery], bytes]
    carried: Callable[[pa.Table], pa.Table] = lambda rows: rows
    report_type: str = ""


def content_of(table: pa.Table, delivery: PlannedDelivery) -> DeliveryContent:
    """Return the file of a delivery, from all that was observed in its hour."""
    own = table.filter(pc.equal(_networks(table), delivery.network))
    own = own.filter(pa.array(_part(own, delivery) == delivery.part))
    form = _form(delivery)
    own = form.carried(own) if len(own) else own
    seconds = own["time"].cast(pa.int64()).to_numpy() // 1_000_000_000
    data = form.write(own, delivery) if len(own) else b""
    return DeliveryContent(data, seconds, form.report_type)


def _form(delivery: PlannedDelivery) -> _FileForm:
    odd = delivery.hour.hour % 2 == 1
    kind = delivery.network, delivery.part
    found = (_ODD_HOURS.get(kind) if odd else None) or _FORMS.get(kind)
    return found or _BUFR


def _bufr(own: pa.Table, delivery: PlannedDelivery) -> bytes:
    return encode_bufr(own, delivery.network, reports_per_message=_at_once(delivery))


def _at_once(delivery: PlannedDelivery) -> int:
    return _RESENT_REPORTS if delivery.copy_of and not delivery.same_bytes else _REPORTS


def indicator(station: str) -> str:
    """Return the location indicator of a land station, by its WMO number."""
    return location_indicator(int(station) % 10_000)


def _metar(own: pa.Table, _: PlannedDelivery) -> bytes:
    stations = own["station_id"].cast(pa.string()).unique().to_pylist()
    return metar_bulletin(own, {station: indicator(station) for station in stations})


def _parquet(own: pa.Table, _: PlannedDelivery) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(own.drop_columns(_RECEIVERS_OWN), buffer)
    return buffer.getvalue()


def _fields(own: pa.Table, delivery: PlannedDelivery) -> bytes:
    return encode_fields(own, edition=1 if delivery.hour.hour % 2 else 2)


def _sounder(sensor: str) -> _FileForm:
    """Return the form of brightness temperatures of AMSU-A, or of these as another sensor's channels."""

    def carried(own: pa.Table) -> pa.Table:
        channels = _CHANNELS.get(sensor, {})
        if not channels:
            return own
        given = own["vertical"].to_numpy()
        own = own.filter(pa.array(np.isin(given, list(channels))))
        renamed = [float(channels[int(number)]) for number in own["vertical"].to_pylist()]
        return set_column(own, "vertical", np.array(renamed))

    return _FileForm(lambda own, _: encode_radiances(own, sensor, _METOP_B), carried)


def _archived(data: bytes) -> bytes:
    """Return a compressed archive with one file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        entry = tarfile.TarInfo("winds.bufr")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


_BUFR = _FileForm(_bufr)
_FORMS: Mapping[tuple[str, int], _FileForm] = {
    ("synop", 2): _FileForm(lambda own, _: surface_dump(own)),
    ("synop", 3): _FileForm(_metar, in_metar),
    ("temp", 1): _FileForm(lambda own, _: prepbufr_sondes(own)),
    ("temp", 2): _FileForm(lambda own, _: temp_bulletin(own), in_temp),
    ("pilot", 0): _FileForm(lambda own, _: pilot_bulletin(own)),
    ("aircraft", 1): _FileForm(lambda own, delivery: gzip.compress(_bufr(own, delivery), mtime=0)),
    ("scatterometer", 0): _FileForm(lambda own, delivery: _archived(_bufr(own, delivery))),
    ("satellite", 0): _FileForm(_parquet),
    ("satellite", 1): _FileForm(lambda own, _: ioda_retrievals(own), report_type="satellite"),
    ("satellite", 2): _FileForm(lambda own, _: odb_retrievals(own)),
    ("gridded", 0): _FileForm(_fields),
    ("radiances", 0): _FileForm(lambda own, _: amsu_dump(own, _METOP_B)),
    ("radiances", 1): _sounder("amsu-a"),
    ("radiances", 2): _sounder("atms"),
    ("radiances", 3): _sounder("mhs"),
}
"""Form of the files of an hour by network and part; BUFR of the WMO where none is named."""
_ODD_HOURS: Mapping[tuple[str, int], _FileForm] = {
    ("synop", 1): _FileForm(lambda own, delivery: crex_stations(own, _at_once(delivery))),
    ("ship", 0): _FileForm(lambda own, _: ship_bulletin(own)),
}
"""Forms that replace those of `_FORMS` in odd hours."""


def _networks(table: pa.Table) -> pa.Array:
    """Return the network whose files each row comes in."""
    bright = pc.equal(table["variable"].cast(pa.string()), "brightness_temperature")
    return pc.if_else(bright, "radiances", table["report_type"].cast(pa.string()))


def _part(own: pa.Table, delivery: PlannedDelivery) -> NDArray[np.int64]:
    """Return the number of the file of each row: by station, or by time along a swath."""
    parts = delivery.parts
    if delivery.network in ("satellite", "radiances", "scatterometer", "amv"):
        start = (delivery.hour.astimezone(UTC) - HOUR).timestamp()
        seconds = own["time"].cast(pa.int64()).to_numpy() / 1e9
        place: NDArray[np.float64] = (seconds - start) / 3600.0 * parts
        return np.clip(place, 0, parts - 1).astype(np.int64)
    digits = pc.utf8_slice_codeunits(own["station_id"].cast(pa.string()), -4)
    numbers: NDArray[np.int64] = pc.cast(digits, pa.int64()).to_numpy()
    return numbers % parts
