"""A cycle: one valid time, analysed early and once more when the late observations are in.

A cycle is data with a deadline. Its record says how far it is; the moves between its states are
compare-and-set in Redis, so that any number of schedulers may make them.
"""

import re
from datetime import UTC, datetime
from enum import StrEnum

from pydantic import Field

from model.domain.errors import InvalidInput
from worker.jobs.job import Record

__all__ = [
    "ALLOWED_CYCLE_MOVES",
    "CYCLE_DONE",
    "FIRST_REVISION",
    "CycleRecord",
    "CycleState",
    "Flavour",
    "cycle_key",
    "parse_cycle_key",
]


class Flavour(StrEnum):
    """Which analysis of a valid time."""

    EARLY = "early"
    FINAL = "final"


FIRST_REVISION: dict[Flavour, int] = {Flavour.EARLY: 1, Flavour.FINAL: 2}
"""The early analysis is revision 1, the final one 2, whether or not there was an early one;
reruns count on from there."""


class CycleState(StrEnum):
    """Where a cycle is in its life."""

    WAITING = "waiting"
    DUE = "due"
    SUBMITTED = "submitted"
    PUBLISHED = "published"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


ALLOWED_CYCLE_MOVES: dict[CycleState, frozenset[CycleState]] = {
    CycleState.WAITING: frozenset({CycleState.DUE, CycleState.SKIPPED, CycleState.CANCELLED}),
    CycleState.DUE: frozenset(
        {CycleState.SUBMITTED, CycleState.SKIPPED, CycleState.CANCELLED, CycleState.DUE}
    ),
    CycleState.SUBMITTED: frozenset(
        {CycleState.PUBLISHED, CycleState.FAILED, CycleState.CANCELLED, CycleState.DUE}
    ),
    CycleState.PUBLISHED: frozenset({CycleState.DUE}),
    CycleState.FAILED: frozenset({CycleState.DUE}),
    CycleState.SKIPPED: frozenset({CycleState.DUE}),
    CycleState.CANCELLED: frozenset({CycleState.DUE}),
}
"""`waiting`: the cut-off is ahead, or observations that came in time are still being taken in;
`due`: decided, waits for room; `due -> due`: why it still waits;
`submitted -> due`: tried again after a failed job;
the moves back to `due` from an end are reruns."""

CYCLE_DONE = frozenset(
    {CycleState.PUBLISHED, CycleState.FAILED, CycleState.SKIPPED, CycleState.CANCELLED}
)
_KEY = re.compile(r"(\d{8}T\d{2})Z_(early|final)")


def cycle_key(valid_time: datetime, flavour: str) -> str:
    """`20031001T06Z_early`: sorts by valid time, the early analysis first."""
    return f"{valid_time.astimezone(UTC):%Y%m%dT%H}Z_{Flavour(flavour).value}"


def parse_cycle_key(key: str) -> tuple[datetime, Flavour]:
    """Valid time and flavour of a key.

    Raises:
        InvalidInput: If it is none.
    """
    form = _KEY.fullmatch(key)
    try:
        if form is None:
            raise ValueError
        time = datetime.strptime(form[1], "%Y%m%dT%H").replace(tzinfo=UTC)
    except ValueError:
        raise InvalidInput(
            f"Expected the key of a cycle such as '20031001T06Z_early'; got {key!r}.", field="key"
        ) from None
    return time, Flavour(form[2])


class CycleRecord(Record):
    """One valid time and flavour."""

    id: str = Field(description="Key, such as `20031001T06Z_early`; sorts by valid time.")
    valid_time: datetime = Field(description="Time of the analysis (UTC).")
    flavour: Flavour = Field(description="`early` or `final`.")
    cut_off: datetime = Field(description="Last arrival accepted (UTC).")
    state: CycleState = Field(default=CycleState.WAITING, description="How far it is.")
    job_id: str = Field(default="", description="The newest job submitted for it.")
    analysis_id: str = Field(default="", description="The newest analysis published for it.")
    revision: int = Field(
        default=1, ge=1, description="1 early, 2 final, more for reruns; of the newest job."
    )
    decided: datetime | None = Field(
        default=None, description="When its observations were complete and it became due (UTC)."
    )
    caught_up: bool = Field(
        default=False,
        description="Whether it became due so late that the next cut-off had passed, too.",
    )
    behind_seconds: float = Field(default=0.0, description="From the cut-off to the decision.")
    message: str = Field(default="", description="Why it was skipped, failed or tried again.")
    attempts: int = Field(default=0, ge=0, description="Jobs submitted for this revision.")
    published: datetime | None = Field(
        default=None, description="When the analysis could be read (UTC)."
    )
    forecast_job_id: str = Field(default="", description="The forecast that it started.")
    forecast_id: str = Field(default="", description="Under this name the forecast is published.")
    asked_by: str = Field(default="", description="API key that asked for the rerun.")
    token: int = Field(default=0, ge=0, description="Rises with every change of the record.")
    api_key: str = Field(default="", description="Always empty: cycles belong to nobody.")

    @property
    def key(self) -> str:
        """The record's id."""
        return self.id

    @property
    def rerun(self) -> int:
        """0 for the regular analysis, 1 for the first rerun after it, …"""
        return max(0, self.revision - FIRST_REVISION[self.flavour])

    @property
    def done(self) -> bool:
        """Whether nothing more happens to it unless someone asks for a rerun."""
        return self.state in CYCLE_DONE

    @property
    def freshness_seconds(self) -> float | None:
        """From the cut-off to the published analysis."""
        if self.published is None:
            return None
        return (self.published - self.cut_off).total_seconds()

    @property
    def unique_key(self) -> str:
        """Under this key its job is created: the same for all schedulers, new for each retry."""
        retry = f".{self.attempts}" if self.attempts else ""
        return f"cycle:{self.id}:{self.rerun}{retry}"
