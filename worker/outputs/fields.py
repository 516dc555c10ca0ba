"""The fields of a result by quantity: clipped where negative values are unphysical, as views."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.domain.errors import InvalidInput
from model.domain.variables import Variable
from model.ensemble_spread import Twins
from worker.outputs.product import Product

__all__ = ["Field", "fields", "mean_and_spread"]

Float = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Field:
    """One quantity of all members and times.

    Attributes:
        variable: What it is.
        values: SI units, NaN where undefined, with shape (M, T, L, Y, X), or (M, T, Y, X) at the
            surface.
        clipped: Cells that were negative and are set to zero.
    """

    variable: Variable
    values: Float
    clipped: int = 0


def fields(product: Product) -> Iterator[Field]:
    """The quantities of the product in the order of its channels."""
    for variable in product.variables:
        values = _select(product, variable)
        if not variable.nonnegative:
            yield Field(variable, values)
            continue
        with np.errstate(invalid="ignore"):
            negative = values < 0
        yield Field(variable, np.where(negative, np.float32(0), values), int(negative.sum()))


def _select(product: Product, variable: Variable) -> Float:
    chosen = [i for i, c in enumerate(product.channels) if c.variable == variable.id]
    if variable.kind == "surface":
        return product.states[:, :, chosen[0]]
    levels = tuple(product.channels[i].level for i in chosen)
    if levels != product.levels or chosen[-1] - chosen[0] != len(chosen) - 1:
        raise InvalidInput(
            f"Expected neighbouring channels of '{variable.id}' on the levels {product.levels}; "
            f"got {levels}."
        )
    return product.states[:, :, chosen[0] : chosen[-1] + 1]


def mean_and_spread(values: Float, twins: Twins) -> tuple[Float, Float | None]:
    """Ensemble mean, and standard deviation (None for one member).

    Arguments:
        values: With shape (M, *).
        twins: How the members depend on each other, from which the divisor follows.
    """
    mean = values.mean(axis=0, dtype=np.float64)
    spread = twins.std(values)
    return mean.astype(np.float32), None if spread is None else spread.astype(np.float32)
