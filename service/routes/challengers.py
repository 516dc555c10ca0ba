"""Show the suite on trial and those before it, and promote or drop it.

A trial is named by the suite, whose id holds a digest of its content: what is promoted is what the
caller has looked at, also if the policy was changed meanwhile.
"""

from datetime import datetime
from typing import Annotated

import structlog
from fastapi import APIRouter, Body, Path
from pydantic import BaseModel, ConfigDict, Field
from redis.exceptions import RedisError

from service.auth import Administrator, GatewayDep, Reader
from service.errors import NotFound
from service.gateway import Gateway
from service.keys import ApiKey
from service.openapi import CHALLENGER, example_response, problem_responses
from service.schemas import TrialView
from worker.contract.events import EventType
from worker.contract.record_store import MoveRefused
from worker.contract.suites import Outcome, SuiteStore, Trial

__all__ = ["ChallengersView", "Decision", "Promotion", "ReignView"]

log = structlog.get_logger()

router = APIRouter(prefix="/v1", tags=["cycles"])

SuiteId = Annotated[
    str,
    Path(
        description="Id of the challenger, as in the answer to `GET /v1/challengers`.",
        pattern=r"^[a-z0-9][a-z0-9_]{0,39}-[0-9a-f]{8}$",
    ),
]


class ReignView(BaseModel):
    """Since when a suite has been champion."""

    suite_id: str = Field(description="Its id; empty for what the policy says of itself.")
    since: datetime | None = Field(description="UTC; null if no suite was ever promoted.")
    note: str = Field(description="Why.")


class ChallengersView(BaseModel):
    """The champion, the challenger, and the trials before."""

    champion: ReignView = Field(description="The suite that the cycles run.")
    challenger: TrialView | None = Field(description="The suite on trial; null without one.")
    history: list[TrialView] = Field(description="Trials that ended, newest first.")
    reigns: list[ReignView] = Field(description="Champions before, newest first.")


class Decision(BaseModel):
    """Request to end a trial, with a note on why."""

    model_config = ConfigDict(extra="forbid")

    note: str = Field(default="", max_length=500, description="Kept in the history.")


class Promotion(Decision):
    """Request to promote a challenger, with a note on why."""

    force: bool = Field(
        default=False, description="Also if it is worse than the champion, or has no analysis yet."
    )


Note = Annotated[Decision | None, Body(description="Optional.")]


@router.get(
    "/challengers",
    responses={**problem_responses("storage_error"), 200: example_response(CHALLENGER)},
)
def read_challengers(gateway: GatewayDep, key: Reader) -> ChallengersView:
    """Return the suite on trial with its differences from the champion, and the history."""
    suites = SuiteStore(gateway.layout.suites_file)
    views = [TrialView.of(t, suites.counts(t), suites.newest(t), key) for t in suites.trials()]
    running = next((view for view in views if view.ended is None), None)
    reigns = [ReignView(**r.model_dump(exclude={"by"})) for r in suites.champion_periods()]
    first = ReignView(suite_id="", since=None, note="")
    return ChallengersView(
        champion=reigns[0] if reigns else first,
        challenger=running,
        history=[view for view in views if view.ended is not None],
        reigns=[*reigns[1:], *([first] if reigns else [])],
    )


@router.post(
    "/challengers/{suite_id}/promote",
    responses=problem_responses("not_found", "move_refused", "storage_error"),
)
def promote_challenger(
    suite_id: SuiteId,
    gateway: GatewayDep,
    key: Administrator,
    request: Annotated[Promotion | None, Body(description="Optional.")] = None,
) -> TrialView:
    """Make the challenger the champion: the next cycles run its suite and go on from its analyses."""
    suites, wanted = SuiteStore(gateway.layout.suites_file), request or Promotion()
    trial = _running(suites, suite_id)
    published = suites.counts(trial).get("published", 0)
    if not wanted.force and (trial.verdict == "worse" or not published):
        reason = "is worse than the champion" if published else "has no analysis yet"
        raise MoveRefused(f"Expected a challenger to promote; '{suite_id}' {reason}. Or force it.")
    return _end(gateway, suites, trial, Outcome.PROMOTED, key, wanted.note)


@router.post(
    "/challengers/{suite_id}/drop",
    responses=problem_responses("not_found", "move_refused", "storage_error"),
)
def drop_challenger(
    suite_id: SuiteId, gateway: GatewayDep, key: Administrator, request: Note = None
) -> TrialView:
    """End the trial of a challenger; the same suite gets no other one."""
    suites = SuiteStore(gateway.layout.suites_file)
    trial = _running(suites, suite_id)
    return _end(gateway, suites, trial, Outcome.DROPPED, key, request.note if request else "")


@router.post("/champion/revert", responses=problem_responses("move_refused", "storage_error"))
def revert_champion(gateway: GatewayDep, key: Administrator, request: Note = None) -> ReignView:
    """Make the suite champion again that was champion before the last promotion."""
    suites = SuiteStore(gateway.layout.suites_file)
    period = suites.revert(key.id, request.note if request else "")
    log.info("champion reverted", suite=period.suite_id, key=key.id)
    return ReignView(**period.model_dump(exclude={"by"}))


def _running(suites: SuiteStore, suite_id: str) -> Trial:
    """Return the trial that runs, if it is that of a suite.

    Raises:
        NotFound: If another one runs, or none.
    """
    trial = suites.trial()
    if trial is None or trial.suite_id != suite_id:
        there = f"'{trial.suite_id}' runs" if trial else "none runs"
        raise NotFound(f"Expected the challenger that runs; got '{suite_id}', {there}.")
    return trial


def _end(
    gateway: Gateway, suites: SuiteStore, trial: Trial, outcome: Outcome, key: ApiKey, note: str
) -> TrialView:
    ended = suites.end(trial, outcome, key.id, note)
    log.info("challenger ended", suite=trial.suite_id, outcome=outcome.value, key=key.id)
    about = {"suite": trial.suite_id, "outcome": outcome.value, "trial": trial.id}
    try:
        gateway.stores.events.emit(EventType.CHALLENGER_ENDED, str(trial.id), about)
    except RedisError as error:  # the trial has ended, with or without the event
        log.warning("event not emitted", suite=trial.suite_id, error=str(error))
    return TrialView.of(ended, suites.counts(ended), suites.newest(ended), key)
