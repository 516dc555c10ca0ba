"""Write GRIB2 files of a result: members, ensemble mean and spread, one message for each field.

Only codes of the WMO are used, none local to a centre, so that every reader knows them. Precipitation
is the sum of the hour before the valid time: in an analysis its reference time is an hour earlier.

Messages are ordered by hour, with the same fields in the same order, the only order in which CDO reads
files of several hours. Packing is simple (template 5.0), which every reader supports: GDAL, and so
QGIS, lacks CCSDS (5.42), and ecCodes loses digits of fields with a small range in complex packing (5.3).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import eccodes
import numpy as np
from numpy.typing import NDArray

from model.domain.ensembles import AntitheticPairs
from model.domain.errors import StorageError
from model.domain.grids import Grid
from model.domain.windows import HOUR
from worker.observations.lexicons import GRIB2_CODES
from worker.results.outputs.formats import product_file, put_file
from worker.results.outputs.product import Field, Product, Written, field_of, mean_and_spread

__all__ = ["Message", "messages", "write_product"]

TABLES = 28
BITS = 16
PACKING = "grid_simple"
MISSING = 9.999e20
UNKNOWN_CENTRE = 255
WATER = 1000.0
"""Density of water in kg m-3, to convert metres of water to kg m-2."""


# Product definition templates (table 4.0), at a point in time and over an interval.
_TEMPLATES = {"members": (1, 11), "mean": (2, 12), "spread": (2, 12)}
_DERIVED = {"mean": 0, "spread": 4}  # table 4.7: unweighted mean, spread of all members


@dataclass(frozen=True, eq=False)
class Message:
    """One horizontal field and the GRIB keys that describe it.

    Attributes:
        keys: Keys in the order in which they are set.
        values: Rows north to south, NaN where missing, with shape (Y, X).
    """

    keys: dict[str, Any]
    values: NDArray[np.float32]


def _grid_keys(grid: Grid) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "Ni": grid.nlon,
        "Nj": grid.nlat,
        "latitudeOfFirstGridPointInDegrees": float(grid.latitude[0]),
        "longitudeOfFirstGridPointInDegrees": 0.0,
        "latitudeOfLastGridPointInDegrees": float(grid.latitude[-1]),
        "longitudeOfLastGridPointInDegrees": float(grid.longitude[-1]),
        "iDirectionIncrementInDegrees": 360.0 / grid.nlon,
    }
    if grid.kind == "gaussian":
        return {**keys, "N": grid.nlat // 2}
    return {**keys, "jDirectionIncrementInDegrees": 180.0 / (grid.nlat - 1)}


def _time_keys(product: Product, time: datetime, accumulated: bool) -> dict[str, Any]:
    forecast = product.kind.forecast
    start = product.reference_time if forecast else time
    if accumulated and not forecast:
        start -= HOUR
    step = round((time - start) / HOUR)
    return {
        "significanceOfReferenceTime": 1 if forecast else 0,
        "dataDate": int(f"{start:%Y%m%d}"),
        "dataTime": int(f"{start:%H%M}"),
        "stepUnits": "h",
        "stepRange": f"{step - 1}-{step}" if accumulated else str(step),
    }


def _constant_keys(product: Product) -> dict[str, Any]:
    forecast = product.kind.forecast
    return {
        "tablesVersion": TABLES,
        "centre": UNKNOWN_CENTRE,
        "productionStatusOfProcessedData": 1 if product.simulated else 0,
        "typeOfProcessedData": 4 if forecast else 0,
    }


def _field_keys(product: Product, field: Field, level: int | None, what: str) -> dict[str, Any]:
    discipline, category, number, kind, height = GRIB2_CODES[field.variable.id]
    accumulated = field.variable.id == "total_precipitation"
    keys: dict[str, Any] = {
        "productDefinitionTemplateNumber": _TEMPLATES[what][accumulated],
        "discipline": discipline,
        "parameterCategory": category,
        "parameterNumber": number,
        "typeOfGeneratingProcess": 4 if product.kind.forecast else 0,
        "typeOfLevel": kind,
        "level": level if height is None else height,
        "numberOfForecastsInEnsemble": product.members,
    }
    if accumulated:
        keys["typeOfStatisticalProcessing"] = 1
    if what in _DERIVED:
        keys["derivedForecast"] = _DERIVED[what]
    return keys


def messages(product: Product, what: str) -> Iterator[Message]:
    """Yield the messages of one file, in the order in which they are written.

    Arguments:
        product: The result.
        what: `members`, `mean` or `spread`.
    """
    constant = {**_constant_keys(product), **_grid_keys(product.grid)}
    for t, time in enumerate(product.times):
        for variable in product.variables:
            accumulated = variable.id == "total_precipitation"
            scale = np.float32(WATER if accumulated else 1.0)
            surface = variable.kind == "surface"
            field = field_of(product, variable, slice(t, t + 1))
            values = field.values if what == "members" else _statistic(field, what, product.pairs)
            for k, level in enumerate((None,) if surface else product.levels):
                keys = {**constant, **_field_keys(product, field, level, what)}
                keys |= _time_keys(product, time, accumulated)
                for m in range(len(values)):
                    plane = values[m, 0] if surface else values[m, 0, k]
                    # 6: a perturbed member (table 4.6)
                    member = {"typeOfEnsembleForecast": 6, "perturbationNumber": m}
                    yield Message(keys | (member if what == "members" else {}), plane * scale)


def _statistic(field: Field, what: str, pairs: AntitheticPairs) -> NDArray[np.float32]:
    mean, spread = mean_and_spread(field.values, pairs)
    chosen = mean if what == "mean" else spread
    return field.values[:0] if chosen is None else chosen[None]


def _encode(message: Message, sample: str, stream: BinaryIO) -> None:
    handle = eccodes.codes_grib_new_from_samples(sample)
    try:
        for key, value in message.keys.items():
            eccodes.codes_set(handle, key, value)
        eccodes.codes_set(handle, "packingType", PACKING)
        eccodes.codes_set(handle, "bitsPerValue", BITS)
        missing = np.isnan(message.values)
        if missing.any():
            eccodes.codes_set(handle, "bitmapPresent", 1)
            eccodes.codes_set(handle, "missingValue", MISSING)
        values = np.where(missing, MISSING, message.values.astype(np.float64))
        eccodes.codes_set_values(handle, values.ravel())
        eccodes.codes_write(handle, stream)
    finally:
        eccodes.codes_release(handle)


def _write(product: Product, what: str, path: Path) -> None:
    sample = "regular_gg_pl_grib2" if product.grid.kind == "gaussian" else "regular_ll_pl_grib2"
    with path.open("wb") as stream:
        for message in messages(product, what):
            _encode(message, sample, stream)


def _compare(message: Message, handle: Any) -> None:
    eccodes.codes_set(handle, "missingValue", MISSING)
    found = eccodes.codes_get_values(handle).reshape(message.values.shape)
    found = np.where(found == MISSING, np.nan, found)
    # Packing rounds to the nearest step; the reference value is rounded to float32, too.
    allowed = 1.01 * eccodes.codes_get(handle, "packingError")
    error = np.nan_to_num(np.abs(found - message.values))
    missing_same = np.array_equal(np.isnan(found), np.isnan(message.values))
    if not missing_same or error.max() > allowed:
        name = eccodes.codes_get(handle, "shortName")
        raise StorageError(
            f"Expected the field '{name}' as written; it differs by {error.max():g}, more than the "
            f"packing's {allowed:g}.",
            variable=name,
        )


def _check(product: Product, what: str, path: Path) -> None:
    with path.open("rb") as stream:
        for message in messages(product, what):
            handle = eccodes.codes_grib_new_from_file(stream)
            if handle is None:
                raise StorageError(f"Expected more messages in {path.name}.")
            try:
                _compare(message, handle)
            finally:
                eccodes.codes_release(handle)


def write_product(product: Product, folder: Path) -> Written:
    """Write up to three files, each of which opens as one hypercube per type of level."""
    wanted = {"members": ("members",), "mean": ("mean", "spread")}.get(
        product.job.spec.fields, ("members", "mean", "spread")
    )
    written = []
    for what in wanted:
        if what == "spread" and product.members < 2:
            continue
        extension = "grib2" if what == "members" else f"{what}.grib2"
        path = product_file(product, folder, extension)
        put_file(path, partial(_write, product, what), partial(_check, product, what))
        written.append((path, "data"))
    return written
