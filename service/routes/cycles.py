"""List, read, explain and rerun cycles."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Body, Header, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from model.domain.errors import InvalidInput
from service.auth import GatewayDep, JobWriter, Reader
from service.cycle_explanation import CycleExplanation, explain
from service.gateway import Gateway
from service.openapi import CYCLE, example_page, example_response, problem_responses
from service.schemas import MAX_ITEMS, CyclePage, CycleView
from worker.contract import clock
from worker.contract.batches import IdempotencyConflict
from worker.contract.cycles import CycleRecord, CycleState, Flavour, parse_cycle_key
from worker.contract.kinds import UtcTime
from worker.contract.record_store import MoveRefused
from worker.results.entries import ResultFilter

router = APIRouter(prefix="/v1", tags=["cycles"])

MAX_REVISIONS = 500
CycleKey = Annotated[
    str,
    Path(
        description="Valid time and flavour, such as `20250101T06Z_early`.",
        pattern=r"^\d{8}T\d{2}Z_(early|final)$",
    ),
]


class RerunRequest(BaseModel):
    """Options of a rerun; all may be omitted."""

    model_config = ConfigDict(extra="forbid")

    cut_off: UtcTime | None = Field(
        default=None, description="Last arrival accepted (UTC); null for all that has arrived."
    )


@router.get(
    "/cycles", responses={**problem_responses(), 200: example_response(example_page(CYCLE))}
)
def list_cycles(
    gateway: GatewayDep,
    key: Reader,
    state: Annotated[CycleState | None, Query(description="Only cycles in this state.")] = None,
    flavour: Annotated[Flavour | None, Query(description="Only cycles of this flavour.")] = None,
    valid_from: Annotated[UtcTime | None, Query(description="Earliest valid time (UTC).")] = None,
    valid_to: Annotated[UtcTime | None, Query(description="Latest valid time (UTC).")] = None,
    limit: Annotated[int, Query(ge=1, le=500, description=MAX_ITEMS)] = 50,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the previous page.", max_length=100)
    ] = None,
) -> CyclePage:
    """Return cycles, latest valid time first, and the final before the early one."""
    page = gateway.stores.cycles.select(
        state=state or "",
        flavour=flavour or "",
        start=valid_from,
        end=valid_to,
        cursor=cursor or "",
        limit=limit,
    )
    items = [CycleView.of(cycle, key) for cycle in page.items]
    return CyclePage(items=items, next_cursor=page.next_cursor, total=page.total)


@router.get(
    "/cycles/{key}", responses={**problem_responses("not_found"), 200: example_response(CYCLE)}
)
def read_cycle(key: CycleKey, gateway: GatewayDep, caller: Reader) -> CycleView:
    """Return the state of a cycle."""
    parse_cycle_key(key)
    return CycleView.of(gateway.stores.cycles.get(key), caller)


@router.get("/cycles/{key}/explain", responses=problem_responses("not_found", "storage_error"))
def explain_cycle(key: CycleKey, gateway: GatewayDep, caller: Reader) -> CycleExplanation:
    """Return what the newest analysis used, what was late, what was rejected and why, what changed."""
    time, _flavour = parse_cycle_key(key)
    cycle = CycleView.of(gateway.stores.cycles.get(key), caller)
    of_time = ResultFilter(kind="filtering", valid_from=time, valid_to=time)
    page = gateway.analyses.select(of_time, None, MAX_REVISIONS)
    return explain(gateway.layout, cycle, [m for m in page.items if m.flavour])


@router.post(
    "/cycles/{key}/rerun",
    status_code=202,
    responses={
        **problem_responses("not_found", "move_refused", "idempotency_conflict"),
        200: {
            "description": "The Idempotency-Key was used before: the cycle in its present state.",
            **example_response(CYCLE | {"revision": 3}),
        },
        202: example_response(CYCLE | {"state": "due", "revision": 3, "published": None}),
    },
)
def rerun_cycle(
    response: Response,
    key: CycleKey,
    gateway: GatewayDep,
    caller: JobWriter,
    request: Annotated[RerunRequest | None, Body()] = None,
    idempotency_key: Annotated[
        str, Header(description="The same key starts no second rerun.", max_length=255)
    ] = "",
) -> CycleView:
    """Compute the final analysis again, as its next revision, with what has arrived since."""
    _time, flavour = parse_cycle_key(key)
    record = gateway.stores.cycles.get(key)
    if flavour is not Flavour.FINAL:
        raise InvalidInput(
            f"Expected the key of a final analysis; got '{key}'. A rerun takes later observations, "
            "which makes it another final analysis.",
            field="key",
        )
    requested = request.cut_off if request else None
    asked = requested.isoformat() if requested else "all there is"
    unique = f"{caller.id}:{idempotency_key}" if idempotency_key else ""
    before = gateway.stores.cycles.asked_before(key, unique) if unique else None
    if before is not None:
        if before != asked:
            raise IdempotencyConflict(
                f"Expected the same rerun under Idempotency-Key '{idempotency_key}' as before "
                f"(cut-off: {before}); got cut-off: {asked}. Use a new key for another rerun.",
                field="Idempotency-Key",
            )
        response.status_code = 200
        return CycleView.of(record, caller)
    now = clock.now()
    cut_off = _cut_off(gateway, record, requested, now)
    due = gateway.stores.cycles.rerun(
        record, cut_off, now, caller.id, unique_key=unique, asked=asked
    )
    return CycleView.of(due, caller)


def _cut_off(
    gateway: Gateway, record: CycleRecord, requested: datetime | None, now: datetime
) -> datetime:
    """Return the cut-off of a rerun: the one requested, or now.

    Raises:
        MoveRefused: If no policy of the cycles says how to compute it.
        InvalidInput: If the cut-off lies before the valid time or in the future.
    """
    if not gateway.layout.cycles_file.exists():
        raise MoveRefused(
            "Expected a policy of the cycles (cycles.yaml in the data folder), which says how to "
            "compute it; there is none. See: appa cycles init.",
            id=record.id,
        )
    cut_off = requested or now
    if not record.valid_time <= cut_off <= now:
        raise InvalidInput(
            f"Expected a cut-off from the valid time to now ({now.isoformat()}); got "
            f"{cut_off.isoformat()}.",
            field="cut_off",
        )
    return cut_off
