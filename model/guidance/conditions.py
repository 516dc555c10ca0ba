"""What a trajectory is conditioned on, before a guidance method is chosen."""

__all__ = ["Conditions"]

from collections.abc import Callable
from dataclasses import dataclass

from model.guidance.base import CovarianceFilter, Decode, ObservedBlankets
from model.guidance.fit import FitReport


@dataclass(frozen=True)
class Conditions:
    """The conditions, and what the model offers to meet them.

    Attributes:
        through: The conditions as seen through a decoder.
        decode: The model's decoder.
        tangent: A stand-in for the decoder that is cheap to differentiate.
        covariance: Of a closed-form prior given a noisy state; None if the model has none.
        report: Collects the fit to the observations.
    """

    through: Callable[[Decode], ObservedBlankets]
    decode: Decode
    tangent: Decode
    covariance: CovarianceFilter | None = None
    report: FitReport | None = None

    def observations(self) -> ObservedBlankets:
        """The conditions through the model's own decoder."""
        return self.through(self.decode)
