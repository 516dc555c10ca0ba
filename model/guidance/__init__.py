"""Ways to condition a denoiser on observations, one method per file."""

from collections.abc import Callable

from model.domain.registry import Registry
from model.guidance.base import Guidance
from model.guidance.conditions import Conditions
from model.guidance.mmps import MMPS, MMPSSettings
from model.guidance.prior_covariance import PriorCovarianceSettings, build_prior_covariance
from model.guidance.sda import SDA, SDASettings

__all__ = ["GUIDANCE", "GuidanceSettings"]

GuidanceSettings = MMPSSettings | SDASettings | PriorCovarianceSettings

Build = Callable[[Conditions, GuidanceSettings], Guidance]

GUIDANCE: Registry[Build] = Registry(
    "guidance",
    mmps=lambda c, settings: MMPS(c.observations(), settings, c.report),
    sda=lambda c, settings: SDA(c.observations(), settings, c.report),
    prior_covariance=build_prior_covariance,
)
"""By the `method` of their settings."""
