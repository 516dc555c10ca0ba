"""Ways to condition a denoiser on observations, one method per file."""

from collections.abc import Callable

from model.domain.registry import Registry
from model.guidance.base import Guidance
from model.guidance.mmps import MMPS, MMPSSettings
from model.guidance.sda import SDA, SDASettings

__all__ = ["GUIDANCE", "GuidanceSettings"]

GuidanceSettings = MMPSSettings | SDASettings

GUIDANCE: Registry[Callable[..., Guidance]] = Registry("guidance", mmps=MMPS, sda=SDA)
"""By the `method` of their settings: (observations, settings, report) -> guidance."""
