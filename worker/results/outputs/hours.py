"""Round a result hour by hour, with the bits to keep determined from rows of all hours.

A result may be larger than the memory. Its hours are converted, rounded and written one at a time,
with the same values as if it were rounded as a whole, and compared one at a time with the written file.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
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

SMALL_BYTES = 64_000_000
"""Largest dataset of a single hour that is kept for the comparison instead of made again."""


class RoundedHours:
    """The hours of a result as datasets with rounded values, one in memory at a time.

    Arguments:
        product: The result.
        attributes: Global attributes that replace its own.

    Attributes:
        notes: Attributes of variables that are known once all hours have been rounded.
    """

    def __init__(self, product: Product, attributes: Mapping[str, str] | None = None) -> None:
        self.product = product
        self.kept = bits_of_result(product)
        self.notes: dict[str, dict[str, Any]] = {}
        self._attributes = global_attributes(product) | dict(attributes or {})
        self._rounding: list[dict[str, dict[str, Any]]] = []
        self._only: xr.Dataset | None = None

    def each(self, write: Callable[[int, xr.Dataset], None]) -> None:
        """Call `write` with the number of each hour and its dataset.

        A generator would keep the last dataset in memory while the next is created.
        """
        self._rounding = []
        for t in range(len(self.product.times)):
            write(t, self._rounded(t))
        self.notes = {name: _of_all([h[name] for h in self._rounding]) for name in self.kept}

    def _rounded(self, t: int) -> xr.Dataset:
        exact = self._exact(t)
        if len(self.product.times) == 1 and exact.nbytes <= SMALL_BYTES:
            self._only = exact
        rounded = round_dataset(exact, self.kept)
        self._rounding.append({name: rounded.variables[name].attrs for name in self.kept})
        return rounded

    def _exact(self, t: int) -> xr.Dataset:
        return to_dataset(self.product.hour(t)).assign_attrs(self._attributes)

    def check(self, read: Callable[[int], Mapping[Hashable, xr.Variable]]) -> None:
        """Compare the written file with the exact values.

        Arguments:
            read: Returns the variables of the hour of this number.

        Raises:
            StorageError: Naming the first variable that differs by more than its rounding.
        """
        for t in range(len(self._rounding)):
            self._check(t, read(t))

    def _check(self, t: int, found: Mapping[Hashable, xr.Variable]) -> None:
        exact = self._exact(t) if self._only is None else self._only
        for name, attributes in self._rounding[t].items():
            exact.variables[name].attrs = attributes
        same_dataset(exact.variables, found)


def _of_all(hours: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Combine the attributes of a variable over all hours."""
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
        levels = [_Level(product, variable, channel) for channel in range(first, last + 1)]
        for kind in (kind for kind, there in kinds.items() if there):
            kept[f"{variable.short}{kind}"] = [level.bits(kind) for level in levels]
    return kept


Ensemble = tuple[Float, Float, Float | None]
"""Members (M, n, X), their mean and spread (n, X) in n rows; None as the spread of one member."""


class _Level:
    """A quantity on one level, sampled in rows of all hours."""

    def __init__(self, product: Product, variable: Variable, channel: int) -> None:
        self.product, self.variable, self.channel = product, variable, channel
        self.members, self.hours, _, self.rows, self.width = product.states.shape
        self._whole: Ensemble | None = None

    def bits(self, kind: str) -> int:
        """Return the bits to keep of all members, of their `_mean` or of their `_spread`."""
        shape = (self.members if kind == "" else 1, self.hours, self.rows)
        sampled = sampled_rows(int(np.prod(shape)), self.width)
        member, hour, row = np.unravel_index(sampled, shape)
        fields, around = _fields(self._at(hour, row), kind)
        rows = fields[member, np.arange(len(sampled))]
        if usable_rows(rows).any():
            return bits_of_rows(rows, around)
        hours = [self._usable(hour, kind) for hour in range(self.hours)]
        spreads = [spread for _, spread in hours if spread is not None]
        rows = np.concatenate([rows for rows, _ in hours])
        return bits_of_rows(rows, np.concatenate(spreads) if spreads else None)

    def _usable(self, hour: int, kind: str) -> tuple[Float, Float | None]:
        """Return the rows of an hour that are usable for bit information, and the spread there."""
        states = self.product.states[:, hour, self.channel]
        fields, around = _fields(self._ensemble(states), kind)
        usable = usable_rows(fields)
        spread = None if around is None else np.broadcast_to(around, fields.shape)[usable]
        return fields[usable], spread

    def _at(self, hour: NDArray[np.intp], row: NDArray[np.intp]) -> Ensemble:
        """Return rows of hours; if all rows are sampled, they are computed once and cached."""
        count = self.hours * self.rows
        if len(sampled_rows(count, self.width)) < count:
            return self._ensemble(self.product.states[:, hour, self.channel, row])
        if self._whole is None:
            states = self.product.states[:, :, self.channel]
            self._whole = self._ensemble(states.reshape(self.members, count, self.width))
        ensemble, mean, spread = self._whole
        place = hour * self.rows + row
        return ensemble[:, place], mean[place], None if spread is None else spread[place]

    def _ensemble(self, states: Float) -> Ensemble:
        """Return members, mean and spread of states with shape (M, n, X)."""
        ensemble, _ = clip(self.variable, np.ascontiguousarray(states))
        return ensemble, *mean_and_spread(ensemble, self.product.pairs)


def _fields(ensemble: Ensemble, kind: str) -> tuple[Float, Float | None]:
    """Return rows of the field of a kind, and the spread if it limits the rounding.

    Returns:
        With shapes (M or 1, n, X) and (n, X).
    """
    members, mean, spread = ensemble
    if kind == "":
        return members, spread
    if kind == "_mean" or spread is None:
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
    if a.dtype.kind == "M":  # fractions of arrival times are exact to 0.2 us in float64
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


def same_dataset(
    wanted: Mapping[Hashable, xr.Variable], found: Mapping[Hashable, xr.Variable]
) -> None:
    """Compare dimensions, coordinates, missing values and values.

    Arguments:
        wanted: Variables before rounding, with the attributes of the rounded ones.
        found: Variables read from the file.

    Raises:
        StorageError: Naming the first variable that differs.
    """
    for name, variable in wanted.items():
        if name not in found:
            _fail(str(name), "absent")
        _compare(str(name), variable, found[name])
