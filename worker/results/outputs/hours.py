"""Round a result hour by hour: which bits are kept is decided from rows of all its hours.

A result may be larger than the memory. Its hours are converted, rounded and written one at a time,
with the same values as if it were rounded whole, and compared one at a time with what is read back.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from model.domain.errors import StorageError
from model.domain.variables import Variable
from worker.results.outputs.bitround import bits_of_rows, sampled_rows, usable_rows
from worker.results.outputs.dataset import round_dataset, to_dataset
from worker.results.outputs.product import (
    Product,
    channels_of,
    clip,
    global_attributes,
    mean_and_spread,
)

__all__ = ["RoundedHours", "bits_of_result", "same_dataset"]

Float = NDArray[np.float32]


class RoundedHours:
    """The hours of a result as datasets with rounded values, of which one is held at a time.

    Arguments:
        product: The result.
        attributes: Global attributes, in the place of its own.

    Attributes:
        notes: Attributes of variables that are known once all hours have been rounded.
    """

    def __init__(self, product: Product, attributes: Mapping[str, str] | None = None) -> None:
        self.product = product
        self.kept = bits_of_result(product)
        self.notes: dict[str, dict[str, Any]] = {}
        self._attributes = global_attributes(product) | dict(attributes or {})
        self._rounding: list[dict[str, dict[str, Any]]] = []

    def each(self, write: Callable[[int, xr.Dataset], None]) -> None:
        """Call `write` with the number of each hour and its dataset.

        A loop over datasets would hold the last one while the next is made.
        """
        self._rounding = []
        for t in range(len(self.product.times)):
            write(t, self._rounded(t))
        self.notes = {name: _of_all([h[name] for h in self._rounding]) for name in self.kept}

    def _rounded(self, t: int) -> xr.Dataset:
        rounded = round_dataset(self._exact(t), self.kept)
        self._rounding.append({n: v.attrs for n, v in rounded.data_vars.items() if n in self.kept})
        return rounded

    def _exact(self, t: int) -> xr.Dataset:
        return to_dataset(self.product.hour(t)).assign_attrs(self._attributes)

    def check(self, found: xr.Dataset) -> None:
        """Compare what is read back with the exact values.

        Raises:
            StorageError: Naming the first variable that differs by more than its rounding.
        """
        for t in range(len(self._rounding)):
            self._check(t, found.isel(time=slice(t, t + 1)))

    def _check(self, t: int, found: xr.Dataset) -> None:
        exact = self._exact(t)
        for name, attributes in self._rounding[t].items():
            exact[name].attrs = attributes
        same_dataset(exact, found)


def _of_all(hours: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the attributes of a variable are for all hours together."""
    errors = np.max([hour["bit_rounding_max_error"] for hour in hours], axis=0)
    notes: dict[str, Any] = {"bit_rounding_max_error": errors}
    if "clipped_cells" in hours[0]:
        count = sum(hour["clipped_cells"].item() for hour in hours)
        notes["clipped_cells"] = (np.int32 if count < 2**31 else np.float64)(count)
    return notes


def bits_of_result(product: Product) -> dict[str, list[int]]:
    """Return the bits kept of each variable of the dataset, one number for each of its levels."""
    wanted, several = product.job.spec.fields, product.members > 1
    kinds = {
        "": wanted != "mean",
        "_mean": wanted != "members",
        "_spread": wanted != "members" and several,
    }
    kept: dict[str, list[int]] = {}
    for variable in product.variables:
        first, last = channels_of(product, variable)
        for kind in (kind for kind, there in kinds.items() if there):
            kept[f"{variable.short}{kind}"] = [
                _Rows(product, variable, channel, kind).bits for channel in range(first, last + 1)
            ]
    return kept


class _Rows:
    """The rows of a field on one level: of all members, of their mean or of their spread."""

    def __init__(self, product: Product, variable: Variable, channel: int, kind: str) -> None:
        self.product, self.variable, self.channel, self.kind = product, variable, channel, kind
        members, hours, _, rows, self.width = product.states.shape
        self.shape = (members if kind == "" else 1, hours, rows)

    @property
    def bits(self) -> int:
        """Return how many bits of the mantissa are kept, from sampled rows of members and their spread."""
        sampled = sampled_rows(int(np.prod(self.shape)), self.width)
        member, hour, row = np.unravel_index(sampled, self.shape)
        fields, around = self._fields(self.product.states[:, hour, self.channel, row])
        rows = fields[member, np.arange(len(sampled))]
        if usable_rows(rows).any():
            return bits_of_rows(rows, around)
        hours = [self._usable(hour) for hour in range(self.shape[1])]
        spreads = [spread for _, spread in hours if spread is not None]
        rows = np.concatenate([rows for rows, _ in hours])
        return bits_of_rows(rows, np.concatenate(spreads) if spreads else None)

    def _usable(self, hour: int) -> tuple[Float, Float | None]:
        """Return those rows of an hour that say something, and the spread there."""
        fields, around = self._fields(self.product.states[:, hour, self.channel])
        usable = usable_rows(fields)
        spread = None if around is None else np.broadcast_to(around, fields.shape)[usable]
        return fields[usable], spread

    def _fields(self, states: Float) -> tuple[Float, Float | None]:
        """Return the field in rows of all members, and the spread where it guides rounding.

        Arguments:
            states: With shape (M, n, X).

        Returns:
            With shapes (M or 1, n, X) and (n, X).
        """
        ensemble, _ = clip(self.variable, np.ascontiguousarray(states))
        mean, spread = mean_and_spread(ensemble, self.product.pairs)
        if self.kind == "":
            return ensemble, spread
        if self.kind == "_mean" or spread is None:
            return mean[None], spread
        return spread[None], None


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
    if a.dtype.kind == "M":  # a time of arrival has fractions that float64 holds to 0.2 us
        if (np.abs(a - b) > np.timedelta64(1, "us")).any():
            _fail(name, "other times")
        return
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


def same_dataset(wanted: xr.Dataset, found: xr.Dataset) -> None:
    """Compare dimensions, coordinates, missing values and values.

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
