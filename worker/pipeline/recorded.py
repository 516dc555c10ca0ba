"""What an earlier run of a job had to go on; a replay takes this in place of what is there now."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.backgrounds.restarts import Continuable

__all__ = ["RecordedInputs"]


@dataclass(frozen=True)
class RecordedInputs:
    """Inputs of a finished job.

    Attributes:
        earlier: The result it continued; None for a cold start or an uploaded first guess.
        batches: Uploads whose rows it saw; None takes all there are now.
        checks: Effective parameters of quality control, this job's own changes included; None
            takes the installation's.
        careful: Whether it took the smallest sub-batches.
    """

    earlier: Continuable | None
    batches: tuple[str, ...] | None
    checks: Mapping[str, Any] | None
    careful: bool = False
