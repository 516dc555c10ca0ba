"""Reading a written file back: it must hold what was to be written."""

import numpy as np
import xarray as xr

from model.domain.errors import StorageError

__all__ = ["recorded", "same_dataset"]


def _fail(name: str, what: str) -> None:
    raise StorageError(
        f"Expected to read back what was written; variable '{name}': {what}. The file was not "
        "published; check the disk and try again.",
        variable=name,
    )


def _compare(name: str, wanted: xr.Variable, found: xr.Variable) -> None:
    if wanted.dims != found.dims or wanted.shape != found.shape:
        _fail(name, f"expected {wanted.dims} {wanted.shape}, got {found.dims} {found.shape}")
    a, b = np.asarray(wanted.values), np.asarray(found.values)
    if a.dtype.kind != "f":
        if not np.array_equal(a, b):
            _fail(name, "other values")
        return
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        _fail(name, "other missing values")
    allowed = np.asarray(wanted.attrs.get("bit_rounding_max_error", 0.0), dtype=np.float64)
    if allowed.size > 1:
        allowed = allowed[:, None, None]
    error = np.nan_to_num(np.abs(a - b, dtype=np.float64))
    if (error > allowed).any():
        _fail(name, f"differs by {error.max():g}, more than the recorded rounding")


def recorded(dataset: xr.Dataset, rounded: xr.Dataset) -> xr.Dataset:
    """The exact values with the attributes of the rounded ones, to compare a file with."""
    return dataset.assign(
        {n: (v.dims, v.values, rounded[n].attrs) for n, v in dataset.data_vars.items()}
    )


def same_dataset(wanted: xr.Dataset, found: xr.Dataset) -> None:
    """Compares dimensions, coordinates, missing values and values.

    Arguments:
        wanted: Before rounding, with the attributes of the rounded one.
        found: As read from the file.

    Raises:
        StorageError: Naming the first variable that differs.
    """
    for name in wanted.variables:
        if name not in found.variables:
            _fail(str(name), "absent")
        _compare(str(name), wanted[name].variable, found[name].variable)
