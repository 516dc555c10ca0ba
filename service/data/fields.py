"""Extract horizontal fields of published results: any variable, level, time and statistic.

Values are read lazily from the NetCDF or Zarr file: one level of one time, all members where the
statistic needs them. Derived quantities are computed member by member before any statistic. The means
and spreads that a file stores are taken from it. The newest extracted fields stay in memory, so that
panning, zooming and the tiles of a map read the file once.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from model.domain.ensembles import AntitheticPairs
from model.domain.errors import InvalidInput, UnknownName
from model.domain.grids import Grid
from service.data.cache import BoundedCache
from service.data.extracted import Extracted
from service.data.library import DatasetLibrary
from service.data.views import grid_of, place
from service.errors import NotFound
from service.maps.answers import (
    AvailableField,
    DisplayUnits,
    FieldCatalogue,
    FieldInfo,
)
from service.maps.fields import MapField, Parts, available_fields, field_named
from service.maps.requests import FieldRequest, MapView, Statistic
from worker.results.catalogue import Catalogue
from worker.results.manifest import AnalysisManifest

__all__ = ["FieldReader"]

KEPT_BYTES = 100_000_000
"""Size of the cache of extracted fields: 24 at 0.25 degrees, thousands of a coarse grid."""

BACKGROUND_ROLE = "background"

Array = NDArray[Any]


class FieldReader:
    """Extracts fields; safe to use from several threads.

    Arguments:
        library: Open data sets.
        analyses: What is published.
    """

    def __init__(self, library: DatasetLibrary, analyses: Catalogue) -> None:
        self._library = library
        self._analyses = analyses
        self._kept: BoundedCache[FieldRequest, Extracted] = BoundedCache(
            KEPT_BYTES, lambda one: one.values.nbytes
        )

    def extract(self, request: FieldRequest) -> Extracted:
        """Return a field on the grid of its result.

        Raises:
            NotFound: If there is no such result, or it holds no data set or no background.
            UnknownName: If the result has no such field.
            InvalidInput: If a level, time, member or statistic does not fit; the message lists what
                does.
            StorageError: If the file cannot be read.
        """
        opened = _Opened.of(self._library, self._analyses, request.result)
        settled = opened.settle(request)

        def read() -> Extracted:
            values = self._compute(opened, settled)
            field = opened.field(settled.name)
            return Extracted(settled, field, values, opened.grid, opened.manifest)

        return self._kept.get(settled, read)  # the tiles of a map ask for one field at once

    def settle(self, request: FieldRequest) -> FieldRequest:
        """Return the request with the result's id, and a time and levels that it holds.

        Raises:
            NotFound, UnknownName, InvalidInput, StorageError: As `extract` does; no values are read.
        """
        return _Opened.of(self._library, self._analyses, request.result).settle(request)

    def levels(self, result: str) -> list[float]:
        """Return the pressure levels of a result in hPa."""
        return _Opened.of(self._library, self._analyses, result).levels

    def view(self, request: FieldRequest, view: MapView) -> tuple[FieldInfo, NDArray[np.float32]]:
        """Return the metadata and the values (rows, columns) of a field in a view."""
        found = self.extract(request)
        placed = place(found.values, found.grid, view, vector=found.vector)
        return found.describe(placed.grid), placed.values

    def catalogue(self, result: str) -> FieldCatalogue:
        """Return what can be asked of a result.

        Raises:
            NotFound: If there is no such result, or it holds no data set.
        """
        return _Opened.of(self._library, self._analyses, result).catalogue

    def _compute(self, opened: "_Opened", request: FieldRequest) -> NDArray[np.float32]:
        statistic = request.statistic
        values = opened.statistic(request)
        if statistic.kind == "increment":
            values = values - self._background(opened, request)
        if statistic.kind == "difference":
            values = values - self._other(opened, request)
        return np.asarray(values, dtype=np.float32)

    def _background(self, opened: "_Opened", request: FieldRequest) -> Array:
        manifest = opened.manifest
        if not any(file.role == BACKGROUND_ROLE for file in manifest.files):
            raise NotFound(
                f"Expected a result with its background; '{manifest.id}' has none. Ask for the "
                "output `background` when submitting the job, or take statistic=difference:ID of "
                "an earlier forecast.",
                analysis_id=manifest.id,
            )
        field = opened.field(request.name)
        if not field.linear:
            raise InvalidInput(
                f"Expected statistic=increment of a field that the mean background gives; "
                f"'{field.name}' is made of members. Ask for {' or '.join(field.needs)}.",
                field="statistic",
            )
        dataset = self._library.get(manifest.id, BACKGROUND_ROLE).plain
        return replace(opened, dataset=dataset).statistic(request)

    def _other(self, opened: "_Opened", request: FieldRequest) -> Array:
        statistic = request.statistic
        other = _Opened.of(self._library, self._analyses, statistic.other)
        wanted = replace(
            request,
            result=statistic.other,
            time=statistic.other_time or request.time,
            statistic=Statistic(),
        )
        if other.grid.shape != opened.grid.shape or other.grid.kind != opened.grid.kind:
            raise InvalidInput(
                f"Expected two results on one grid; '{opened.manifest.id}' has {opened.grid.shape}, "
                f"'{other.manifest.id}' has {other.grid.shape} ({other.grid.kind}).",
                field="statistic",
            )
        return other.statistic(other.settle(wanted))


@dataclass(frozen=True, eq=False)
class _Opened:
    """A result whose fields are read."""

    manifest: AnalysisManifest
    dataset: xr.Dataset

    @classmethod
    def of(cls, library: DatasetLibrary, analyses: Catalogue, name: str) -> "_Opened":
        result = library.resolve(name)
        manifest, held = analyses.get(result), library.get(result)
        known = held.views.get("fields")
        if not isinstance(known, cls) or known.manifest is not manifest:
            known = held.views["fields"] = cls(manifest, held.plain)
        return known

    @cached_property
    def grid(self) -> Grid:
        return grid_of(self.dataset)

    @cached_property
    def stored(self) -> dict[str, set[str]]:
        """Return the short names of stored variables, each with what there is of it."""
        found: dict[str, set[str]] = {}
        for name, variable in self.dataset.data_vars.items():
            if {"latitude", "longitude"} <= set(variable.dims):
                short, _, kind = str(name).partition("_")
                found.setdefault(short, set()).add(kind or "members")
        return found

    @cached_property
    def times(self) -> list[datetime]:
        moments = self.dataset["time"].values.astype("datetime64[us]").astype(object)
        return [moment.replace(tzinfo=UTC) for moment in moments]

    @cached_property
    def levels(self) -> list[float]:
        """Return the pressure levels in hPa."""
        if "air_pressure" not in self.dataset:
            return []
        return [float(p) / 100.0 for p in self.dataset["air_pressure"].values]

    def field(self, name: str) -> MapField:
        """Return the quantity of this name.

        Raises:
            UnknownName: If this result cannot show it; lists what it can.
        """
        field = field_named(name)
        if field is None or not set(field.needs) <= set(self.stored):
            known = [f.name for f in available_fields(self.stored)]
            raise UnknownName(
                f"Expected a field of '{self.manifest.id}', one of {', '.join(known)}; got "
                f"'{name[:80]}'.",
                field="field",
                known=known,
            )
        return field

    def settle(self, request: FieldRequest) -> FieldRequest:
        """Return the request with the result's id, and a time and levels that it holds."""
        field = self.field(request.name)
        level = self._level(request.level, "level", field.name) if field.leveled else None
        base = None
        if field.layer:
            base = self._level(request.base or max(self.levels), "base", field.name)
            if level is not None and level >= base:
                raise InvalidInput(
                    f"Expected 'level' above 'base'; got {level:g} and {base:g} hPa.", field="level"
                )
        time = self._time(request.time)
        return replace(request, result=self.manifest.id, level=level, base=base, time=time)

    def _level(self, level: float | None, name: str, field: str) -> float:
        for known in self.levels:
            if level is not None and abs(known - level) < 1e-3 * known:
                return known
        known_levels = ", ".join(f"{x:g}" for x in self.levels)
        raise InvalidInput(
            f"Expected '{name}' of '{field}' to be one of {known_levels} hPa; got "
            f"{'none' if level is None else f'{level:g}'}.",
            field=name,
        )

    def _time(self, time: datetime | None) -> datetime:
        times = self.times
        if time is None:
            return next((t for t in times if t >= self.manifest.valid_time), times[-1])
        if time in times:
            return time
        raise InvalidInput(
            f"Expected a valid time of '{self.manifest.id}', {len(times)} from "
            f"{times[0]:%Y-%m-%dT%H:%MZ} to {times[-1]:%Y-%m-%dT%H:%MZ}; got "
            f"{time:%Y-%m-%dT%H:%MZ}.",
            field="time",
        )

    def statistic(self, request: FieldRequest) -> Array:
        """Return the statistic of a settled request, with shape (Y, X); for a difference of two results,
        that of the first.
        """
        field, wanted = self.field(request.name), request.statistic
        if wanted.kind == "member":
            return np.asarray(self._derive(field, request, self._member(wanted.member))[0])
        if wanted.kind == "spread":
            return self._spread(field, request)
        if wanted.kind == "probability":
            members = self._derive(field, request, None)
            beyond = members > wanted.threshold if wanted.above else members < wanted.threshold
            chance = beyond.mean(axis=0)
            return np.where(np.isfinite(members).all(axis=0), chance, np.nan)
        if field.linear and all("mean" in self.stored[name] for name in field.needs):
            return self._derive(field, request, "mean")
        return np.asarray(self._derive(field, request, None).mean(axis=0, dtype=np.float64))

    def _spread(self, field: MapField, request: FieldRequest) -> Array:
        if field.formula is None and "spread" in self.stored[field.name]:
            return self._derive(field, request, "spread")
        members = self._derive(field, request, None)
        spread = AntitheticPairs.of(range(len(members)), self.manifest.mirrored).std(members)
        if spread is None:
            raise InvalidInput(
                f"Expected several members for statistic=spread; '{self.manifest.id}' has one.",
                field="statistic",
            )
        return np.asarray(spread)

    def _member(self, number: int) -> int:
        numbers = [int(n) for n in self.dataset["realization"].values]
        if number not in numbers:
            raise InvalidInput(
                f"Expected a member of '{self.manifest.id}', {numbers[0]} to {numbers[-1]}; got "
                f"{number}.",
                field="statistic",
            )
        return numbers.index(number)

    def _derive(self, field: MapField, request: FieldRequest, of: str | int | None) -> Array:
        """Return a quantity: `mean` or `spread` (Y, X), one member (1, Y, X), or all (M, Y, X)."""
        self._check_members(field, of)
        at = {name: self._pick(name, request, request.level, of) for name in field.needs}
        below = {
            name: self._pick(name, request, request.base, of)
            for name in (field.needs if field.layer else ())
        }
        if field.formula is None:
            return at[field.name]
        pressure = np.nan if request.level is None else request.level * 100.0
        exact = [{name: a.astype(np.float64) for name, a in part.items()} for part in (at, below)]
        return np.asarray(field.formula(Parts(exact[0], exact[1], pressure)))

    def _check_members(self, field: MapField, of: str | int | None) -> None:
        lacking = [n for n in field.needs if "members" not in self.stored[n]]
        if lacking and not isinstance(of, str):
            raise InvalidInput(
                f"Expected the members of {', '.join(lacking)} in '{self.manifest.id}', which this "
                "statistic needs; its file has their mean and spread. Submit with "
                "fields=members_and_mean.",
                field="statistic",
            )

    def _pick(
        self, name: str, request: FieldRequest, level: float | None, of: str | int | None
    ) -> Array:
        """Return a stored variable, members first."""
        array = self.dataset[f"{name}_{of}" if isinstance(of, str) else name]
        assert request.time is not None  # noqa: S101 (settled)
        array = array.isel(time=self.times.index(request.time))
        if "air_pressure" in array.dims:
            array = array.isel(air_pressure=self.levels.index(level))  # type: ignore[arg-type]
        if isinstance(of, int):
            array = array.isel(realization=[of])
        return np.asarray(array.transpose(..., "latitude", "longitude").values)

    @cached_property
    def catalogue(self) -> FieldCatalogue:
        """Return what can be asked of this result."""
        grid, manifest = self.grid, self.manifest
        return FieldCatalogue(
            result=manifest.id,
            kind=manifest.kind,
            flavour=manifest.flavour,
            revision=manifest.revision,
            times=self.times,
            levels=self.levels,
            members=manifest.members,
            rows=grid.nlat,
            columns=grid.nlon,
            simulated="simulated" in manifest.flags,
            checkpoint=str(manifest.provenance.get("checkpoint", "")),
            fields=[self._available(field) for field in available_fields(self.stored)],
        )

    def _available(self, field: MapField) -> AvailableField:
        whole = all("members" in self.stored[name] for name in field.needs)
        means = field.linear and all("mean" in self.stored[name] for name in field.needs)
        spreads = field.formula is None and "spread" in self.stored[field.name]
        many = whole and self.dataset.sizes.get("realization", 1) > 1
        background = any(file.role == BACKGROUND_ROLE for file in self.manifest.files)
        allowed = {
            "mean": whole or means,
            "spread": many or spreads,
            "member": whole,
            "probability": whole,
            "increment": background and field.linear,
            "difference": whole or means,
        }
        shown = field.shown
        return AvailableField(
            field=field.name,
            long_name=field.long_name,
            units=field.units,
            display=DisplayUnits(units=shown.units, scale=shown.scale, offset=shown.offset),
            leveled=field.leveled,
            layer=field.layer,
            derived=field.formula is not None,
            statistics=[name for name, yes in allowed.items() if yes],
            colours=field.colours,
        )
