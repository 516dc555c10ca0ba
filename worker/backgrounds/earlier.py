"""Known states of earlier hours: what a background is made of, wherever they come from."""

from datetime import datetime
from typing import Any, Protocol

from worker.restart import Restart

__all__ = ["Earlier"]


class Earlier(Protocol):
    """States that can be continued: those of a published result, or an uploaded first guess."""

    @property
    def restart(self) -> Restart:
        """Their times and latents."""

    @property
    def source(self) -> str:
        """What `Background.source` says."""

    @property
    def mirrored(self) -> bool:
        """Whether members 0 and 1, 2 and 3 … have opposite perturbations."""

    @property
    def flags(self) -> tuple[str, ...]:
        """What a reader of the result must know."""

    def describe(self) -> dict[str, Any]:
        """Which states these are, for the manifest; JSON-able."""

    def hours_to(self, time: datetime) -> int:
        """States up to and including `time`."""
