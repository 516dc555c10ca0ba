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
from service.schemas import CyclePage
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
    """How a cycle is made again."""

    model_config = ConfigDict(extra="forbid")

    cut_off: UtcTime | None = Field(
        default=None, description="Last arrival accepted (UTC); null for all that is there now."
    )


@router.get(
    "/cycles", responses={**problem_responses(), 200: example_response(example_page(CYCLE))}
)
def list_cycles(
    gateway: GatewayDep,
    _: Reader,
    state: Annotated[CycleState | None, Query(description="Only in this state.")] = None,
    flavour: Annotated[Flavour | None, Query(description="Only these.")] = None,
    valid_from: Annotated[UtcTime | None, Query(description="Earliest valid time (UTC).")] = None,
    valid_to: Annotated[UtcTime | None, Query(description="Latest valid time (UTC).")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the page before.", max_length=100)
    ] = None,
) -> CyclePage:
    """Cycles, latest valid time first; of one valid time the final analysis first."""
    page = gateway.stores.cycles.select(
        state=state or "",
        flavour=flavour or "",
        start=valid_from,
        end=valid_to,
        cursor=cursor or "",
        limit=limit,
    )
    return CyclePage(items=page.items, next_cursor=page.next_cursor, total=page.total)


@router.get(
    "/cycles/{key}", responses={**problem_responses("not_found"), 200: example_response(CYCLE)}
)
def read_cycle(key: CycleKey, gateway: GatewayDep, _: Reader) -> CycleRecord:
    """How far a cycle is."""
    parse_cycle_key(key)
    return gateway.stores.cycles.get(key)


@router.get("/cycles/{key}/explain", responses=problem_responses("not_found", "storage_error"))
def explain_cycle(key: CycleKey, gateway: GatewayDep, _: Reader) -> CycleExplanation:
    """What its newest analysis used, what came late, what was rejected and why, what changed."""
    time, _flavour = parse_cycle_key(key)
    record = gateway.stores.cycles.get(key)
    wanted = ResultFilter(kind="filtering", valid_from=time, valid_to=time)
    page = gateway.analyses.select(wanted, None, MAX_REVISIONS)
    return explain(gateway.layout, record, [m for m in page.items if m.flavour])


@router.post(
    "/cycles/{key}/rerun",
    status_code=202,
    responses={
        **problem_responses("not_found", "move_refused", "idempotency_conflict"),
        200: {
            "description": "The same Idempotency-Key came before: the cycle as it is now.",
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
        str, Header(description="Sending it again starts no second rerun.", max_length=255)
    ] = "",
) -> CycleRecord:
    """Makes the final analysis again, as the next revision, with what has arrived since."""
    _time, flavour = parse_cycle_key(key)
    record = gateway.stores.cycles.get(key)
    if flavour is not Flavour.FINAL:
        raise InvalidInput(
            f"Expected the key of a final analysis; got '{key}'. A rerun takes later observations, "
            "which makes it another final analysis.",
            field="key",
        )
    wanted = request.cut_off if request else None
    asked = wanted.isoformat() if wanted else "all there is"
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
        return record
    now = clock.now()
    cut_off = _cut_off(gateway, record, wanted, now)
    return gateway.stores.cycles.rerun(
        record, cut_off, now, caller.id, unique_key=unique, asked=asked
    )


def _cut_off(
    gateway: Gateway, record: CycleRecord, wanted: datetime | None, now: datetime
) -> datetime:
    """The cut-off of a rerun, if one can be made."""
    if not gateway.layout.cycles_file.exists():
        raise MoveRefused(
            "Expected a policy of the cycles (cycles.yaml in the data folder), which says how to "
            "make it; there is none. See: appa cycles init.",
            id=record.id,
        )
    cut_off = wanted or now
    if not record.valid_time <= cut_off <= now:
        raise InvalidInput(
            f"Expected a cut-off from the valid time to now ({now.isoformat()}); got "
            f"{cut_off.isoformat()}.",
            field="cut_off",
        )
    return cut_off
