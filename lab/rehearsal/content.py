"""Encode simulated observations as a centre would send them, and send each file at its time over HTTP.

What cannot be delivered waits, in order.
"""

import gzip
import io
import tarfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from appa_client import AppaClient, UnavailableError
from lab.demo.world import World
from lab.encoders.bufr import encode_bufr
from lab.encoders.ncep import amsu_dump, surface_dump
from lab.encoders.prepbufr import prepbufr_sondes
from lab.encoders.radiances import encode_radiances
from lab.encoders.text import crex_stations, ship_bulletin
from lab.osse.cases import CASE_NAME
from lab.osse.network import simulate_observations, simulate_radiances
from lab.rehearsal.evidence import Sending
from lab.rehearsal.scenario import Outage, Scenario, Shipment
from model.checkpoints.bundle import resolve
from model.domain.windows import HOUR
from worker.contract.clock import Clock

__all__ = ["Content", "ReportSource", "ReportSender", "first_cycle", "world_of"]

SHIPPED = "appa-t31"
DRIEST = 1e-6
"""kg kg-1: a drier value has no dewpoint that could be encoded, and is not reported."""

_RECEIVERS_OWN = ["observation_id", "batch_id", "received_time", "rejected_by", "qc_flag"]
_WMO = {"synop": 10_000, "temp": 60_000}
_METOP_B = 3
_DUMPED_PART = 2
"""File of an hour's land stations that comes as NCEP sends it, with tables of its own."""
_PREPARED_PART, _ZIPPED_PART, _CREX_PART = 1, 1, 1
"""Files of the sondes that come as PrepBUFR, of the aircraft that come compressed, and of the land stations
that come as CREX in every other hour, as then the ships come as text."""
_SOUNDERS = ("", "amsu-a", "atms", "mhs")
"""Sensor of each file of radiances; the first is a dump of AMSU-A."""
_CHANNELS = {
    "atms": {channel: channel + 1 for channel in range(4, 10)},
    "mhs": {4: 5, 5: 4, 6: 3},
}
"""Channels of other sensors that what AMSU-A would see stands for: of the same frequencies, or of moisture
at much the same heights."""
_BUOYS, _DRIFTERS, _AMVS = 62, 44, "sat057"
_REPORTS, _RESENT_REPORTS = 100, 7  # in a message: the same reports in other bytes


@dataclass(frozen=True, eq=False)
class Content:
    """A file.

    Attributes:
        data: Its bytes; empty where the network saw nothing.
        seconds: Time of each of its values, s since 1970, whole seconds.
    """

    data: bytes
    seconds: NDArray[np.int64]

    def within(self, start: datetime, end: datetime) -> int:
        """Return how many values were observed in (start, end]."""
        low, high = start.timestamp(), end.timestamp()
        return int(((self.seconds > low) & (self.seconds <= high)).sum())


def world_of(checkpoint: str, truth: str | None) -> str:
    """The checkpoint whose truth is observed: the one that cycles, if there is a truth on its grid.

    Else the one that ships with a case: then what analyses are made of can be audited, but not
    their errors.
    """
    own = truth is not None or (resolve(checkpoint) / CASE_NAME).exists()
    return checkpoint if own else SHIPPED


def first_cycle(world: str, truth: str | None) -> datetime:
    """A few hours into the truth, at 06 UTC in the case that ships."""
    return World(world, truth).span[0] + 6 * HOUR


class ReportSource:
    """Makes the content of deliveries, an hour at a time.

    Arguments:
        scenario: Network and seed.
        world: Whose truth is observed; made from the scenario when absent.
    """

    def __init__(self, scenario: Scenario, world: World | None = None) -> None:
        self.scenario = scenario
        self.world = world or World(scenario.world, scenario.truth)

    def contents(self, plan: Iterable[Shipment]) -> dict[str, Content]:
        """The content of all deliveries, by name."""
        deliveries = list(plan)
        found: dict[str, Content] = {}
        for hour in sorted({d.hour for d in deliveries}):
            table = self.observed(hour)
            for delivery in deliveries:
                if delivery.hour == hour:
                    found[delivery.name] = _content(table, delivery)
        return found

    def observed(self, hour: datetime) -> pa.Table:
        """Every value of the hour that ends at `hour`, with the names stations report under."""
        first, _ = self.world.span
        times = [t for t in (hour - HOUR, hour) if t >= first]
        truth = torch.nan_to_num(self.world.truth(times[0], len(times)), nan=273.0)
        table = simulate_observations(
            truth,
            self.world.grid,
            self.world.channels,
            times,
            self.scenario.seed + int(hour.timestamp()) // 3600,
            statics=self.world.statics,
            network=self.scenario.network,
        )
        if "radiances" in self.scenario.parts:
            bright = simulate_radiances(
                truth, self.world.grid, self.world.channels, times,
                self.scenario.seed + int(hour.timestamp()) // 3600, self.scenario.network.scan_lines,
            )  # fmt: skip
            table = pa.concat_tables([table, bright]).unify_dictionaries()
        humid = pc.equal(table["variable"].cast(pa.string()), "specific_humidity")
        wet = pc.or_(pc.invert(humid), pc.greater(table["obs_value"], DRIEST))
        # A value on the hour belongs to the hour that it ends.
        fresh = pc.greater(table["time"], pa.scalar(hour - HOUR, pa.timestamp("ns", tz="UTC")))
        return _as_others(_named(table.filter(pc.and_(wet, fresh))), self.scenario.parts)


def _named(table: pa.Table) -> pa.Table:
    kinds = table["report_type"].cast(pa.string()).to_pylist()
    stations = table["station_id"].cast(pa.string()).to_pylist()
    names = [_station(k, s) for k, s in zip(kinds, stations, strict=True)]
    place = table.schema.get_field_index("station_id")
    field = table.schema.field("station_id")
    column = pa.array(names, pa.string()).dictionary_encode().cast(field.type)
    return table.set_column(place, field, column)


def _as_others(table: pa.Table, parts: Mapping[str, int]) -> pa.Table:
    """Let a third each of the ships be buoys and drifters, and a quarter of the aircraft satellite winds."""
    kinds = table["report_type"].cast(pa.string()).to_pylist()
    stations = table["station_id"].cast(pa.string()).to_pylist()
    platforms = table["platform"].cast(pa.string()).to_pylist()
    warm = pc.equal(table["variable"].cast(pa.string()), "temperature").to_pylist()
    kept = np.ones(len(table), dtype=bool)
    for n, (kind, station) in enumerate(zip(kinds, stations, strict=True)):
        if kind == "ship":
            number = int(station[-4:])
            other = ("ship", "buoy", "drifter")[number % 3]
            if other in parts and other != "ship":
                region = _BUOYS if other == "buoy" else _DRIFTERS
                kinds[n], stations[n] = other, f"{region}{number:05d}"
        elif kind == "aircraft" and "amv" in parts and int(station[-4:]) % 4 == 0:
            kinds[n], stations[n], platforms[n] = "amv", _AMVS, "infrared"
            kept[n] = not warm[n]
    for name, texts in (("report_type", kinds), ("station_id", stations), ("platform", platforms)):
        place = table.schema.get_field_index(name)
        field = table.schema.field(name)
        column = pa.array(texts, pa.string()).dictionary_encode().cast(field.type)
        table = table.set_column(place, field, column)
    return table.filter(pa.array(kept))


def _station(kind: str, station: str) -> str:
    """A name that the form of the reports can carry."""
    if kind == "ship":
        return f"SIM{int(station.rsplit('-', 1)[1]):04d}"
    return str(_WMO[kind] + int(station.rsplit("-", 1)[1])) if kind in _WMO else station


def _content(table: pa.Table, delivery: Shipment) -> Content:
    own = table.filter(pc.equal(_networks(table), delivery.network))
    own = own.filter(pa.array(_part(own, delivery) == delivery.part))
    seconds = own["time"].cast(pa.int64()).to_numpy() // 1_000_000_000
    if not len(own):
        return Content(b"", seconds)
    if delivery.network == "satellite":
        buffer = io.BytesIO()
        pq.write_table(own.drop_columns(_RECEIVERS_OWN), buffer)
        return Content(buffer.getvalue(), seconds)
    if delivery.network == "radiances":
        return _sounding(own, _SOUNDERS[delivery.part % len(_SOUNDERS)])
    if delivery.network == "temp" and delivery.part == _PREPARED_PART:
        return Content(prepbufr_sondes(own), seconds)
    if delivery.network == "synop" and delivery.part == _DUMPED_PART:
        return Content(surface_dump(own), seconds)
    other = bool(delivery.copy_of) and not delivery.same_bytes
    each = _RESENT_REPORTS if other else _REPORTS
    if delivery.hour.hour % 2 and delivery.network == "ship":
        return Content(ship_bulletin(own), seconds)
    if delivery.hour.hour % 2 and delivery.network == "synop" and delivery.part == _CREX_PART:
        return Content(crex_stations(own, each), seconds)
    data = encode_bufr(own, delivery.network, reports_per_message=each)
    if delivery.network == "aircraft" and delivery.part == _ZIPPED_PART:
        data = gzip.compress(data, mtime=0)
    if delivery.network == "scatterometer":
        data = _archived(data)
    return Content(data, seconds)


def _sounding(own: pa.Table, sensor: str) -> Content:
    """Return the brightness temperatures of AMSU-A, or the same as those of another sensor."""
    channels = _CHANNELS.get(sensor, {})
    if channels:
        given = own["vertical"].to_numpy()
        own = own.filter(pa.array(np.isin(given, list(channels))))
        renamed = [float(channels[int(number)]) for number in own["vertical"].to_pylist()]
        place, field = own.schema.get_field_index("vertical"), own.schema.field("vertical")
        own = own.set_column(place, field, pa.array(renamed).cast(field.type))
    seconds = own["time"].cast(pa.int64()).to_numpy() // 1_000_000_000
    data = encode_radiances(own, sensor, _METOP_B) if sensor else amsu_dump(own, _METOP_B)
    return Content(data, seconds)


def _archived(data: bytes) -> bytes:
    """Return a compressed archive with one file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        entry = tarfile.TarInfo("winds.bufr")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


def _networks(table: pa.Table) -> pa.Array:
    """Return the network whose files each row comes in."""
    bright = pc.equal(table["variable"].cast(pa.string()), "brightness_temperature")
    return pc.if_else(bright, "radiances", table["report_type"].cast(pa.string()))


def _part(own: pa.Table, delivery: Shipment) -> NDArray[np.int64]:
    """The file each row goes into: by station, or by the order of a swath."""
    parts = delivery.parts
    if delivery.network in ("satellite", "radiances", "scatterometer", "amv"):
        start = (delivery.hour.astimezone(UTC) - HOUR).timestamp()
        seconds = own["time"].cast(pa.int64()).to_numpy() / 1e9
        place: NDArray[np.float64] = (seconds - start) / 3600.0 * parts
        return np.clip(place, 0, parts - 1).astype(np.int64)
    digits = pc.utf8_slice_codeunits(own["station_id"].cast(pa.string()), -4)
    numbers: NDArray[np.int64] = pc.cast(digits, pa.int64()).to_numpy()
    return numbers % parts


_PAUSE = 0.2
_TIMEOUT = 30.0


class ReportSender(threading.Thread):
    """Sends a plan.

    Arguments:
        url: Of the gateway.
        plan: Deliveries in order.
        contents: Their bytes, by name; those without any are not sent.
        clock: Tells when.
        outage: When nobody answers; senders try again once it is over.
    """

    def __init__(
        self,
        url: str,
        plan: Sequence[Shipment],
        contents: Mapping[str, Content],
        clock: Clock,
        outage: Outage | None,
    ) -> None:
        super().__init__(name="sender", daemon=True)
        self.url = url
        self.plan = plan
        self.contents = contents
        self.clock = clock
        self.outage = outage
        self.sendings: list[Sending] = []
        self.error: BaseException | None = None
        self._stop_asked = threading.Event()

    def stop(self) -> None:
        """Ends after the file in hand."""
        self._stop_asked.set()

    def run(self) -> None:
        try:
            with AppaClient(self.url, timeout=_TIMEOUT, attempts=1) as client:
                for delivery in self.plan:
                    if not self.contents[delivery.name].data:
                        continue
                    if not self._wait_until(delivery.arrival):
                        return
                    self._send(client, delivery)
        except BaseException as error:  # told by the driver, which is another thread
            self.error = error

    def _now(self) -> datetime:
        return self.clock.at(time.time())

    def _wait_until(self, moment: datetime) -> bool:
        """Wait for a moment of the operational clock; return False when asked to stop."""
        seconds = (moment - self._now()).total_seconds() / self.clock.speed
        return not self._stop_asked.wait(max(seconds, 0.0))

    def _send(self, client: AppaClient, delivery: Shipment) -> None:
        doubtful: datetime | None = None
        refused = 0
        while not self._stop_asked.is_set():
            tried = self._now()
            try:
                batch = client.upload(self.contents[delivery.name].data, file_name=delivery.name)
            except UnavailableError as error:
                if isinstance(error.__cause__, httpx.ConnectError):
                    refused += 1
                else:  # the answer was lost, perhaps not the file
                    doubtful = doubtful or tried
                self._pause()
                continue
            first = doubtful or tried
            self.sendings.append(Sending(delivery.name, batch.id, first, self._now(), refused))
            return

    def _pause(self) -> None:
        if self.outage is not None and self._now() in self.outage:
            self._wait_until(self.outage.end)
        else:
            self._stop_asked.wait(_PAUSE)
