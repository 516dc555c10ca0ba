"""Write the input of another weather model from analyses, as that model reads it.

Fields are never invented: one that the analyses lack is read from a file that the user names, or the
export is refused with the names of all missing fields. `provenance.json` beside the files names the
source of each field.
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
from numpy.typing import NDArray

from model.domain.errors import InvalidInput
from model.domain.files import replaced_file
from model.domain.grids import Grid
from worker.downstream.models import DownstreamModel, Input
from worker.downstream.sources import FieldSource

__all__ = ["ExportPlan", "described", "plan_export", "write_export"]

Plane = NDArray[np.float32]
EPOCH = datetime(1970, 1, 1)


@dataclass(frozen=True, eq=False)
class ExportPlan:
    """Sources chosen for the fields of an export.

    Attributes:
        model: The model to prepare input for.
        time: Time of the analysis, UTC.
        chosen: Source of each field at each time; a constant has the time of the analysis.
        missing: Fields that no source has, at each time.
        attributes: Attributes of the analysis: its id, checkpoint, whether it is simulated.
    """

    model: DownstreamModel
    time: datetime
    chosen: dict[tuple[Input, datetime], FieldSource]
    missing: dict[datetime, list[Input]]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def times(self) -> list[datetime]:
        """Return the times of the input, oldest first."""
        return [self.time + timedelta(hours=hours) for hours in self.model.hours]

    def planes(self, wanted: Input) -> Iterator[Plane]:
        """Yield a field at the times of the input; once if it is constant.

        Raises:
            InvalidInput: If it has cells without a value.
        """
        for time in [self.time] if wanted.quantity.constant else self.times:
            source = self.chosen[wanted, time]
            found = source.plane(wanted, time, self.model.grid)
            if not np.isfinite(found).all():
                raise InvalidInput(
                    f"Expected '{wanted.name}' at every point; {int((~np.isfinite(found)).sum())} "
                    f"of {found.size} in '{source.name}' have no value."
                )
            yield found.astype(np.float32)

    def provenance(self) -> dict[str, Any]:
        """Return the content of `provenance.json`: the fields written and the source of each."""
        fields: dict[str, dict[str, str]] = {}
        for (wanted, time), source in self.chosen.items():
            fields.setdefault(wanted.name, {})[f"{time:%Y-%m-%dT%H:%M:%SZ}"] = source.name
        kept = ("analysis_id", "title", "comment", "flags", "checkpoint", "code_version")
        return {
            "model": self.model.name,
            "title": self.model.title,
            "time": f"{self.time:%Y-%m-%dT%H:%M:%SZ}",
            "analysis": {k: str(v) for k, v in self.attributes.items() if k in kept},
            "fields": fields,
        }


def plan_export(
    model: DownstreamModel,
    time: datetime,
    sources: Sequence[FieldSource],
    attributes: Mapping[str, Any] | None = None,
) -> ExportPlan:
    """Choose the source of each field: the first that holds it.

    Arguments:
        model: The model to prepare input for.
        time: Time of the analysis, UTC.
        sources: Analyses first, then what the user names to fill gaps.
        attributes: Attributes of the analysis, for the provenance.
    """
    chosen: dict[tuple[Input, datetime], FieldSource] = {}
    missing: dict[datetime, list[Input]] = {}
    for wanted in model.inputs:
        hours = (0,) if wanted.quantity.constant else model.hours
        for when in (time + timedelta(hours=h) for h in hours):
            source = next((s for s in sources if s.holds(wanted, when)), None)
            if source is None:
                missing.setdefault(when, []).append(wanted)
            else:
                chosen[wanted, when] = source
    return ExportPlan(model, time, chosen, missing, attributes or {})


def described(missing: Sequence[Input]) -> str:
    """Return fields as a short text: `vertical_velocity at 50, 100 hPa; skin_temperature`."""
    levels: dict[str, list[int]] = {}
    for wanted in missing:
        found = levels.setdefault(wanted.quantity.id, [])
        if wanted.level is not None:
            found.append(wanted.level)
    return "; ".join(
        f"{name} at {', '.join(map(str, sorted(at)))} hPa" if at else name
        for name, at in levels.items()
    )


def write_export(plan: ExportPlan, folder: Path) -> list[Path]:
    """Write the input of a model and its provenance into a folder, and return the files.

    Raises:
        InvalidInput: If fields are missing; names all of them. Nothing is written then.
    """
    if plan.missing:
        words = " | ".join(
            f"{time:%Y-%m-%dT%H:%MZ}: {described(fields)}"
            for time, fields in sorted(plan.missing.items())
        )
        raise InvalidInput(
            f"Expected every field that {plan.model.title} takes; missing at {words}. Name an "
            "analysis six hours earlier with --previous, and a NetCDF or GRIB file that holds what "
            "analyses lack with --fill.",
            missing={str(t): [f.name for f in fields] for t, fields in plan.missing.items()},
        )
    folder.mkdir(parents=True, exist_ok=True)
    written = _WRITERS[plan.model.form](plan, folder)
    path = folder / "provenance.json"
    with replaced_file(path) as partial:
        partial.write_text(json.dumps(plan.provenance(), indent=1) + "\n")
    return [*written, path]


# -- one array for each field (AIFS, by anemoi-inference)


def _write_npz(plan: ExportPlan, folder: Path) -> list[Path]:
    """Write `date`, `latitudes`, `longitudes` and each field with shape (times, points)."""
    path = folder / "input.npz"
    grid = plan.model.grid
    assert not isinstance(grid, Grid)  # noqa: S101
    with replaced_file(path) as partial, zipfile.ZipFile(partial, "w") as archive:

        def put(name: str, values: NDArray[Any]) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(values), allow_pickle=False)

        put("date", np.array(plan.time.replace(tzinfo=None), dtype="datetime64[s]"))
        for name, values in zip(("latitudes", "longitudes"), grid.points, strict=True):
            put(name, values)
        for wanted in plan.model.inputs:
            planes = list(plan.planes(wanted))
            put(wanted.array, np.stack(planes * (len(plan.times) if len(planes) == 1 else 1)))
    return [path]


# -- bare arrays (Pangu-Weather)


def _write_npy(plan: ExportPlan, folder: Path) -> list[Path]:
    """Write `input_surface.npy` (4, Y, X) and `input_upper.npy` (5, 13, Y, X), float32."""
    written = []
    for array, inputs in _by_array(plan.model).items():
        path = folder / f"{array}.npy"
        shape = (*_leading(inputs), *_horizontal(plan.model)[1])
        with replaced_file(path) as partial:
            values = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
            for wanted in inputs:
                (values[wanted.index],) = plan.planes(wanted)
            values.flush()
            del values
        written.append(path)
    return written


def _by_array(model: DownstreamModel) -> dict[str, list[Input]]:
    found: dict[str, list[Input]] = {}
    for wanted in model.inputs:
        found.setdefault(wanted.array, []).append(wanted)
    return found


def _leading(inputs: Sequence[Input]) -> tuple[int, ...]:
    return tuple(max(at) + 1 for at in zip(*(wanted.index for wanted in inputs), strict=True))


def _horizontal(model: DownstreamModel) -> tuple[Grid, tuple[int, int]]:
    assert isinstance(model.grid, Grid)  # noqa: S101
    return model.grid, model.grid.shape


# -- NetCDF (GraphCast, FourCastNet 3, Aurora)


@dataclass(frozen=True)
class _ArrayLayout:
    """Dimensions of the arrays of a NetCDF file.

    Attributes:
        lat, lon: Names of the horizontal dimensions.
        before: Dimensions of arrays before that of the level or channel, by name and size.
        inner: Name of the dimension of level or channel.
        ascending: Whether rows run south to north.
    """

    lat: str
    lon: str
    before: Callable[[ExportPlan], dict[str, int]]
    inner: str
    ascending: bool = False


_FORMS = {
    "graphcast": _ArrayLayout(
        "lat", "lon", lambda p: {"batch": 1, "time": len(p.times)}, "level", True
    ),
    "fcn3": _ArrayLayout("lat", "lon", lambda p: {"time": len(p.times)}, "variable"),
    "aurora": _ArrayLayout(
        "latitude", "longitude", lambda p: {"batch": 1, "history": len(p.times)}, "level"
    ),
}


def _write_netcdf(plan: ExportPlan, folder: Path) -> list[Path]:
    path = folder / "input.nc"
    form = _FORMS[plan.model.form]
    with replaced_file(path) as partial, netCDF4.Dataset(partial, "w") as file:
        _coordinates(plan, form, file)
        before = tuple(form.before(plan))
        for array, inputs in _by_array(plan.model).items():
            constant, inner = inputs[0].quantity.constant, bool(inputs[0].index)
            dims = () if constant else (*before, *((form.inner,) if inner else ()))
            made = file.createVariable(array, "f4", (*dims, form.lat, form.lon))
            for wanted in inputs:
                for t, plane in enumerate(plan.planes(wanted)):
                    place: tuple[int, ...] = () if constant else (*_time(before, t), *wanted.index)
                    made[place + (...,)] = plane[::-1] if form.ascending else plane
    return [path]


def _time(before: tuple[str, ...], t: int) -> tuple[int, ...]:
    """Return the index of the t-th time along the leading dimensions."""
    return (0,) * (len(before) - 1) + (t,)


def _coordinates(plan: ExportPlan, form: _ArrayLayout, file: netCDF4.Dataset) -> None:
    """Write dimensions and coordinates under the names that the model's own code reads."""
    grid, (rows, columns) = _horizontal(plan.model)
    sizes = {**form.before(plan), form.lat: rows, form.lon: columns}
    inner = len(plan.model.inputs) if form.inner == "variable" else len(plan.model.levels)
    for name, size in {**sizes, form.inner: inner}.items():
        file.createDimension(name, size)
    latitude = grid.latitude[::-1] if form.ascending else grid.latitude
    for name, values in ((form.lat, latitude), (form.lon, grid.longitude)):
        file.createVariable(name, "f4", (name,))[:] = values
    if form.inner == "level":
        file.createVariable("level", "i4", ("level",))[:] = plan.model.levels
    else:
        names = file.createVariable("variable", str, ("variable",))
        for i, wanted in enumerate(plan.model.inputs):
            names[i] = _earth2studio(wanted)
    if plan.model.form == "graphcast":
        lead = file.createVariable("time", "i8", ("time",))
        lead.units = "hours"  # read as a time delta: the last frame is hour 0
        lead[:] = [hours for hours in plan.model.hours]
        _moments(file, "datetime", ("batch", "time"), plan.times)
    elif plan.model.form == "aurora":
        _moments(file, "time", ("batch",), plan.times[-1:])
        file.createVariable("rollout_step", "i8", ())[...] = 0
    else:
        _moments(file, "time", ("time",), plan.times)
    file.setncatts({"appa_provenance": json.dumps(plan.provenance())})


def _moments(
    file: netCDF4.Dataset, name: str, dims: tuple[str, ...], times: Sequence[datetime]
) -> None:
    made = file.createVariable(name, "i8", dims)
    made.setncatts({"units": "seconds since 1970-01-01", "calendar": "standard"})
    values = [round((t.replace(tzinfo=None) - EPOCH).total_seconds()) for t in times]
    made[:] = np.array(values, dtype=np.int64).reshape(made.shape)


_EARTH2STUDIO = {
    "10m_u_component_of_wind": "u10m",
    "10m_v_component_of_wind": "v10m",
    "100m_u_component_of_wind": "u100m",
    "100m_v_component_of_wind": "v100m",
    "2m_temperature": "t2m",
    "mean_sea_level_pressure": "msl",
    "total_column_water_vapour": "tcwv",
    "u_component_of_wind": "u",
    "v_component_of_wind": "v",
    "geopotential": "z",
    "temperature": "t",
    "specific_humidity": "q",
}


def _earth2studio(wanted: Input) -> str:
    """Return the name of a field in earth2studio: `t2m`, `z500`."""
    return f"{_EARTH2STUDIO[wanted.quantity.id]}{wanted.level or ''}"


_WRITERS: dict[str, Callable[[ExportPlan, Path], list[Path]]] = {
    "npz": _write_npz,
    "npy": _write_npy,
    **dict.fromkeys(_FORMS, _write_netcdf),
}
