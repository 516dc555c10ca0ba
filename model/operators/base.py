r"""What an observation operator is, and how a family of operators is described.

All of ours are built from one form. A state :math:`x` with shape :math:`(T, C, Y, X)` is sampled
at a few points per observation (time, channel and cell weights, a :class:`Stencil`), which gives
:math:`K` *ingredients* :math:`z = S x` per observation, and a pointwise function joins them,

.. math:: H(x) = f(S x; \theta),

with :math:`f` the identity for the linear operators. So a whole observation set costs one sparse
product, whatever the number of families, and its adjoint another.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.operators.domain import ModelDomain, Points
from model.operators.stencil import Stencil

__all__ = ["Built", "ObservationOperator", "OperatorFamily"]


@runtime_checkable
class ObservationOperator(Protocol):
    r"""Observation operator :math:`H`, from model states to observation space.

    Differentiable with respect to ``states``: guidance needs :math:`\mathbf{H}^\top w` (vjp), and
    :math:`\mathbf{H} v` (jvp) by double backward or in forward mode.
    """

    def __call__(self, states: Tensor) -> Tensor:
        r"""
        Arguments:
            states: Physical states in SI units, with shape :math:`(*, T, C, Y, X)`; hourly,
                latitude north to south, longitude eastward from 0.

        Returns:
            The model equivalents :math:`H(x)`, in the units of the observed variable, with shape
            :math:`(*, N)`.
        """


@dataclass(frozen=True)
class Built:
    """The operator of one family for `n` points of one variable.

    Attributes:
        stencil: Where each of the `n` points takes its K ingredients.
        parameters: What the pointwise function needs besides, each with shape `(n,)`.
        accepted: Points inside the model's domain; the others have arbitrary stencils.
        reason: Quality-control outcome of the points that are not accepted.
    """

    stencil: Stencil
    accepted: NDArray[np.bool_]
    parameters: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    reason: str = "domain"


class OperatorFamily(Protocol):
    """One way to get from states to observations.

    Attributes:
        linear: Whether the operator is affine in the state.
    """

    linear: bool

    def accepts(self, variable: str, vertical_kind: str) -> bool:
        """Whether the family gives model equivalents of `variable` at that kind of height."""

    def build(self, points: Points, variable: str, domain: ModelDomain) -> Built | None:
        """Stencils for points that all observe `variable`.

        Returns:
            None if the states lack a channel that is needed, which makes the points passive.
        """

    def combine(self, ingredients: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """The pointwise function, from `(*, n, K)` to `(*, n)`; parameters have shape `(n,)`."""
