"""Observe a simulated atmosphere hour by hour, with station names that the formats can encode."""

from collections.abc import Iterable, Mapping
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from lab.demo.world import World
from lab.osse.cases import CASE_NAME
from lab.osse.network import simulate_fields, simulate_observations, simulate_radiances
from lab.osse.places import land_stations
from lab.rehearsal.content import DeliveryContent, content_of, indicator
from lab.rehearsal.scenario import PlannedDelivery, Scenario
from model.checkpoints.bundle import resolve
from model.domain.windows import HOUR
from worker.observations.columns import repeated_column, set_column

__all__ = ["ReportSource", "first_cycle", "world_of"]

SHIPPED = "appa-t31"
DRIEST = 1e-6
"""kg kg-1: a drier value has no dewpoint that could be encoded, and is not reported."""

_WMO = {"synop": 10_000, "temp": 60_000}
_BUOYS, _DRIFTERS, _AMVS = 62, 44, "sat057"


def world_of(checkpoint: str, truth: str | None) -> str:
    """Return the checkpoint whose truth is observed: the cycling one, if there is a truth on its grid.

    Else it is the one that ships with a case: then the inputs of analyses can be audited, but not
    their errors.
    """
    own = truth is not None or (resolve(checkpoint) / CASE_NAME).exists()
    return checkpoint if own else SHIPPED


def first_cycle(world: str, truth: str | None) -> datetime:
    """Return the time of the first cycle: 6 hours into the truth, 06 UTC in the case that ships."""
    return World(world, truth).span[0] + 6 * HOUR


class ReportSource:
    """Make the content of deliveries, an hour at a time.

    Arguments:
        scenario: Network and seed.
        world: Whose truth is observed; made from the scenario when absent.
    """

    def __init__(self, scenario: Scenario, world: World | None = None) -> None:
        self.scenario = scenario
        self.world = world or World(scenario.world, scenario.truth)

    def contents(self, plan: Iterable[PlannedDelivery]) -> dict[str, DeliveryContent]:
        """Return the content of all deliveries, by name."""
        deliveries = list(plan)
        found: dict[str, DeliveryContent] = {}
        for hour in sorted({d.hour for d in deliveries}):
            table = self.observed(hour)
            for delivery in deliveries:
                if delivery.hour == hour:
                    found[delivery.name] = content_of(table, delivery)
        return found

    def observed(self, hour: datetime) -> pa.Table:
        """Return every value of the hour that ends at `hour`, with the names that stations report."""
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
        if "gridded" in self.scenario.parts:
            fields = simulate_fields(
                truth, self.world.grid, self.world.channels, times,
                self.scenario.seed + int(hour.timestamp()) // 3600,
            )  # fmt: skip
            table = pa.concat_tables([table, fields]).unify_dictionaries()
        humid = pc.equal(table["variable"].cast(pa.string()), "specific_humidity")
        wet = pc.or_(pc.invert(humid), pc.greater(table["obs_value"], DRIEST))
        # A value on the hour belongs to the hour that it ends.
        fresh = pc.greater(table["time"], pa.scalar(hour - HOUR, pa.timestamp("ns", tz="UTC")))
        return _as_others(_named(table.filter(pc.and_(wet, fresh))), self.scenario.parts)

    def station_list(self) -> str:
        """Return the list of stations (`APPA_STATIONS`): text bulletins hold no positions."""
        network = self.scenario.network
        lines = ["station_id,lat,lon,elevation"]
        for kind, count, seed in (
            ("synop", network.stations, network.seed),
            ("temp", network.sondes, network.seed + 1),
        ):
            places = land_stations(count, self.world.grid, self.world.statics, seed)
            columns = zip(places.lat, places.lon, places.elevation, strict=True)
            for n, (lat, lon, height) in enumerate(columns):
                number = str(_WMO[kind] + n)
                names = (number, indicator(number)) if kind == "synop" else (number,)
                lines += [f"{name},{float(lat)},{float(lon)},{float(height)}" for name in names]
        return "\n".join(lines) + "\n"


def _named(table: pa.Table) -> pa.Table:
    kinds = table["report_type"].cast(pa.string()).to_pylist()
    stations = table["station_id"].cast(pa.string()).to_pylist()
    names = [_station(k, s) for k, s in zip(kinds, stations, strict=True)]
    return set_column(table, "station_id", repeated_column(names))


def _as_others(table: pa.Table, parts: Mapping[str, int]) -> pa.Table:
    """Turn a third each of the ships into buoys and drifters, a quarter of the aircraft into satellite
    winds, and a fifth of the sondes into pilot balloons, which report winds alone.
    """
    kinds = table["report_type"].cast(pa.string()).to_pylist()
    stations = table["station_id"].cast(pa.string()).to_pylist()
    platforms = table["platform"].cast(pa.string()).to_pylist()
    names = table["variable"].cast(pa.string())
    wind = pc.ends_with(names, "component_of_wind").to_pylist()
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
            kept[n] = wind[n]
        elif kind == "temp" and "pilot" in parts and int(station[-4:]) % 5 == 4:
            kinds[n], kept[n] = "pilot", wind[n]
    for name, texts in (("report_type", kinds), ("station_id", stations), ("platform", platforms)):
        table = set_column(table, name, repeated_column(texts))
    return table.filter(pa.array(kept))


def _station(kind: str, station: str) -> str:
    """Return a station name that the format of the reports can encode."""
    if kind == "ship":
        return f"SIM{int(station.rsplit('-', 1)[1]):04d}"
    return str(_WMO[kind] + int(station.rsplit("-", 1)[1])) if kind in _WMO else station
