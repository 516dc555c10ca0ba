"""Bit by bit: the files of a result against those of its replay."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from worker.replay.verdict import ArrayComparison
from worker.restart import RESTART_NAME, read_restart

__all__ = ["COMPARED", "compare_files"]

COMPARED = (".safetensors", ".nc", ".parquet")
"""Endings of the files that are compared; others hold the same numbers in other forms."""


def compare_files(recorded: Path, found: Path) -> list[ArrayComparison]:
    """Every array of two files of the same name."""
    if recorded.name == RESTART_NAME:
        read = _restart
    elif recorded.suffix == ".nc":
        read = _netcdf
    else:
        read = _parquet
    one, other = dict(read(recorded)), dict(read(found))
    names = [*one, *(name for name in other if name not in one)]
    return [_compare(recorded.name, name, one.get(name), other.get(name)) for name in names]


def _restart(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    restart = read_restart(path)
    yield "latents", restart.latents.numpy()
    yield "times", np.array([time.isoformat() for time in restart.times])


def _netcdf(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    with netCDF4.Dataset(path) as dataset:
        dataset.set_auto_maskandscale(False)
        yield from _variables(dataset, "")


def _variables(group: Any, prefix: str) -> Iterator[tuple[str, NDArray[Any]]]:
    for name, variable in group.variables.items():
        variable.set_auto_maskandscale(False)
        yield f"{prefix}{name}", np.asarray(variable[...])
    for name, inner in group.groups.items():
        yield from _variables(inner, f"{prefix}{name}/")


def _parquet(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    table = pq.read_table(path)
    for name in table.column_names:
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(pa.string())
        if pa.types.is_floating(column.type):
            yield name, column.to_numpy()  # null is NaN
        else:
            yield name, np.array(column.to_pylist(), dtype=object).astype(str)


def _compare(
    file: str, name: str, one: NDArray[Any] | None, other: NDArray[Any] | None
) -> ArrayComparison:
    if (
        one is None
        or other is None
        or one.shape != other.shape
        or one.dtype.kind != other.dtype.kind
    ):
        size = max(array.size for array in (one, other) if array is not None)
        return ArrayComparison(file, name, size, max(size, 1))
    if one.dtype != other.dtype or one.dtype.kind not in "fiu":
        return ArrayComparison(file, name, one.size, int((one != other).sum()))
    differing = int((_bits(one) != _bits(other)).sum())
    return ArrayComparison(file, name, one.size, differing, _largest(one, other))


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    """The numbers as unsigned integers of the same size: NaN equals NaN, 0 is not -0."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def _largest(one: NDArray[Any], other: NDArray[Any]) -> float | None:
    if not one.size:
        return None
    difference = np.abs(one.astype(np.float64) - other.astype(np.float64))
    finite = difference[np.isfinite(difference)]
    return float(finite.max()) if finite.size else None
