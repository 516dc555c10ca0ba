"""What a rehearsal leaves behind, as plain values: the audit looks at nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

__all__ = ["AnalysisEvidence", "BatchUse", "CycleEvidence", "Evidence", "Sending", "Standstill"]


@dataclass(frozen=True)
class Sending:
    """What a sender wrote down about a delivery; all times by the operational clock.

    Attributes:
        name: Of the delivery.
        batch_id: What the gateway called it.
        tried: Start of the first try that may have been accepted.
        acknowledged: When the gateway's answer was there.
        refused: Tries that certainly were not accepted.
    """

    name: str
    batch_id: str
    tried: datetime
    acknowledged: datetime
    refused: int = 0


@dataclass(frozen=True)
class Standstill:
    """When nothing ran: all was killed at `killed`, processes were started again from `restarted`
    on, and all of them were ready at `ready`."""

    killed: datetime
    restarted: datetime
    ready: datetime


@dataclass(frozen=True)
class BatchUse:
    """Rows of one upload in the feedback of one analysis.

    Attributes:
        rows: All.
        late: Rejected as late.
        entered: Passed on to the checks against window and background: in time and not spoilt.
        used: Assimilated, or merged into something assimilated.
        duplicates: Rejected as repeating another report.
    """

    rows: int
    late: int = 0
    entered: int = 0
    used: int = 0
    duplicates: int = 0


@dataclass(frozen=True)
class AnalysisEvidence:
    """A published analysis.

    Attributes:
        analysis_id, valid_time, flavour, revision, cut_off: As in its manifest.
        window_start, window_end: As in its manifest.
        flags, background, cycle: As in its manifest.
        counted: `used` in its manifest.
        used: Rows without a rejection in its feedback.
        repeated: Of these, values that are there more than once.
        batches: By upload.
        digest: Of the observations that entered, whatever their uploads were called.
        error: Standardised RMSE against the truth; None where there is nothing to compare with.
        created: When it was finished, real seconds since 1970.
    """

    analysis_id: str
    valid_time: datetime
    flavour: str
    revision: int
    cut_off: datetime | None
    window_start: datetime | None
    window_end: datetime | None
    flags: tuple[str, ...]
    background: Mapping[str, Any]
    cycle: Mapping[str, Any]
    counted: int
    used: int
    repeated: int
    batches: Mapping[str, BatchUse]
    digest: str
    error: float | None = None
    created: float = 0.0

    @property
    def key(self) -> str:
        """For people."""
        return f"{self.valid_time:%Y%m%dT%H}Z_{self.flavour}"

    @property
    def identity(self) -> tuple[datetime, str, int, str]:
        """What must be the same however the day was run."""
        return self.valid_time, self.flavour, self.revision, self.digest


@dataclass(frozen=True)
class CycleEvidence:
    """A cycle's record at the end."""

    key: str
    state: str
    analysis_id: str
    caught_up: bool
    behind_seconds: float
    decided: datetime | None


@dataclass(frozen=True)
class Evidence:
    """All of it.

    Attributes:
        analyses: Published with a flavour.
        cycles: By key.
        sendings: In order.
        stored: Values that each upload left in the store; -1 for one that was not taken in.
        taken_in: When each upload was in the store, by the operational clock.
        standstill: The outage as it was; None if there was none.
        climatology: Standardised RMSE of the climatology by valid time.
        speed: Operational seconds in a real one.
        kills: Model workers killed while at work, by the operational clock.
    """

    analyses: tuple[AnalysisEvidence, ...]
    cycles: Mapping[str, CycleEvidence]
    sendings: tuple[Sending, ...]
    stored: Mapping[str, int] = field(default_factory=dict)
    taken_in: Mapping[str, datetime] = field(default_factory=dict)
    standstill: Standstill | None = None
    climatology: Mapping[datetime, float] = field(default_factory=dict)
    speed: float = 1.0
    kills: tuple[datetime, ...] = ()
