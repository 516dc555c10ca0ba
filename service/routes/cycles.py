"""List, read, explain and rerun cycles.

An explanation says what became of the observations of a cycle, and what changed between its
revisions. It is read from the manifest and the feedback file, in which every observation of the
window has exactly one outcome.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fastapi import APIRouter, Body, Header, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from model.domain.errors import InvalidInput, StorageError
from model.domain.observations import QC_FLAGS
from service.auth import GatewayDep, JobWriter, Reader
from service.gateway import Gateway
from service.maps.feedback import feedback_path
from service.openapi import CYCLE, example_page, example_response, problem_responses
from service.schemas import MAX_ITEMS, CyclePage, CycleView
from worker.contract import clock
from worker.contract.batches import IdempotencyConflict
from worker.contract.cycles import CycleRecord, CycleState, Flavour, parse_cycle_key
from worker.contract.kinds import ArrivalTime, UtcTime
from worker.contract.layout import Layout
from worker.contract.record_store import MoveRefused
from worker.contract.records import Record
from worker.results.entries import ResultFilter
from worker.results.manifest import AnalysisManifest

__all__ = ["CycleChange", "CycleExplanation", "LateNetwork", "OutcomeCount", "explain"]

_COLUMNS = ["batch_id", "observation_id", "report_type", "received_time", "rejected_by"]
_IDENTITY = ["batch_id", "observation_id"]


class OutcomeCount(Record):
    """Observed values of one network with one outcome."""

    network: str = Field(description="Report type.")
    outcome: str = Field(description="Name of the check that rejected them.")
    count: int = Field(description="Observed values.")
    meaning: str = Field(default="", description="What the check means.")


class LateNetwork(Record):
    """Values of one network that arrived after the cut-off."""

    network: str = Field(description="Report type.")
    count: int = Field(description="Observed values.")
    first: datetime = Field(description="Earliest arrival among them (UTC).")
    last: datetime = Field(description="Latest arrival among them (UTC).")


class CycleChange(Record):
    """Difference between an analysis and the previous revision of its valid time."""

    from_analysis: str = Field(description="The previous analysis.")
    from_flavour: str = Field(description="`early` or `final`.")
    from_revision: int = Field(description="Its revision.")
    from_cut_off: datetime | None = Field(default=None, description="Its cut-off (UTC).")
    added: dict[str, int] = Field(default={}, description="Values used only now, by network.")
    dropped: list[OutcomeCount] = Field(
        default=[], description="Values used before and rejected now, by network and check."
    )
    kept: int = Field(default=0, description="Number of values used by both.")


class CycleExplanation(Record):
    """What became of the observations of a cycle, in its newest analysis."""

    cycle: CycleView = Field(description="The cycle.")
    revisions: list[str] = Field(
        default=[], description="Analyses of this valid time, all flavours, oldest revision first."
    )
    window_start: datetime | None = Field(
        default=None, description="Start of the observation window, exclusive (UTC)."
    )
    window_end: datetime | None = Field(
        default=None, description="End of the observation window, inclusive (UTC)."
    )
    background: dict[str, str | int | float | None] = Field(
        default={}, description="First guess: source, analysis, age."
    )
    flags: list[str] = Field(default=[], description="Flags of the analysis.")
    outcomes: dict[str, int] = Field(default={}, description="Values by outcome, all networks.")
    used: dict[str, int] | None = Field(
        default=None, description="Values used, by network; null without a feedback file."
    )
    late: list[LateNetwork] = Field(
        default=[], description="Values that arrived after the cut-off."
    )
    rejected: list[OutcomeCount] = Field(
        default=[], description="Values rejected by a check, other than the late ones."
    )
    changed: CycleChange | None = Field(
        default=None, description="Difference from the previous revision; null if there is none."
    )


def explain(
    layout: Layout, cycle: CycleView, revisions: Sequence[AnalysisManifest]
) -> CycleExplanation:
    """Return what the newest analysis of `cycle` used and did not use.

    Arguments:
        layout: The data folder, which holds the feedback files.
        cycle: The cycle.
        revisions: Manifests of its valid time, of both flavours, in any order.
    """
    revisions = sorted(revisions, key=lambda m: (m.revision, m.created))
    found = CycleExplanation(cycle=cycle, revisions=[m.id for m in revisions])
    own = next((m for m in revisions if m.id == cycle.analysis_id), None)
    if own is None:
        return found
    found.window_start, found.window_end = own.window_start, own.window_end
    found.background = {k: v for k, v in own.background.items() if _is_plain(v)}
    found.flags, found.outcomes = own.flags, own.observations
    table = _feedback(layout, own)
    if table is None:
        return found
    found.used = _by_network(table.filter(pc.is_null(table["rejected_by"])))
    found.late = _late(table)
    found.rejected = _rejected(table)
    before = [m for m in revisions if m.revision < own.revision]
    if before:
        found.changed = _changed(layout, before[-1], table)
    return found


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _feedback(layout: Layout, manifest: AnalysisManifest) -> pa.Table | None:
    """Return the outcome columns of the feedback file; None when the analysis has none.

    Raises:
        StorageError: If it is gone or no feedback file.
    """
    path = feedback_path(layout, manifest)
    if path is None:
        return None
    try:
        table = pq.read_table(path, columns=_COLUMNS)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"Expected the feedback of '{manifest.id}'; {error}.") from error
    texts = ("batch_id", "report_type", "rejected_by")
    for name in texts:  # dictionaries of two files do not compare
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, table[name].cast(pa.string()))
    return table


def _by_network(table: pa.Table) -> dict[str, int]:
    groups = table.group_by("report_type").aggregate([("report_type", "count")])
    return {row["report_type"]: row["report_type_count"] for row in _rows(groups, "report_type")}


def _late(table: pa.Table) -> list[LateNetwork]:
    late = table.filter(pc.equal(table["rejected_by"], "late"))
    # whole microseconds: what a datetime can hold
    times = late["received_time"].cast(pa.timestamp("us", tz="UTC"), safe=False)
    late = late.set_column(late.schema.get_field_index("received_time"), "received_time", times)
    groups = late.group_by("report_type").aggregate(
        [("report_type", "count"), ("received_time", "min"), ("received_time", "max")]
    )
    return [
        LateNetwork(
            network=row["report_type"],
            count=row["report_type_count"],
            first=row["received_time_min"].astimezone(UTC),
            last=row["received_time_max"].astimezone(UTC),
        )
        for row in _rows(groups, "report_type")
    ]


def _rejected(table: pa.Table) -> list[OutcomeCount]:
    wanted = pc.and_(pc.is_valid(table["rejected_by"]), pc.not_equal(table["rejected_by"], "late"))
    return _outcomes(table.filter(pc.fill_null(wanted, False)))


def _outcomes(table: pa.Table) -> list[OutcomeCount]:
    keys = ["report_type", "rejected_by"]
    groups = table.group_by(keys).aggregate([("report_type", "count")])
    return [
        OutcomeCount(
            network=row["report_type"],
            outcome=row["rejected_by"],
            count=row["report_type_count"],
            meaning=QC_FLAGS[row["rejected_by"]].meaning if row["rejected_by"] in QC_FLAGS else "",
        )
        for row in _rows(groups, *keys)
    ]


def _rows(groups: pa.Table, *keys: str) -> list[dict]:  # type: ignore[type-arg]
    return sorted(groups.to_pylist(), key=lambda row: [row[key] for key in keys])


def _changed(layout: Layout, before: AnalysisManifest, table: pa.Table) -> CycleChange:
    change = CycleChange(
        from_analysis=before.id,
        from_flavour=before.flavour,
        from_revision=before.revision,
        from_cut_off=before.cut_off,
    )
    earlier = _feedback(layout, before)
    if earlier is None:
        return change
    used_before = earlier.filter(pc.is_null(earlier["rejected_by"])).select(_IDENTITY)
    used_now = table.filter(pc.is_null(table["rejected_by"]))
    change.added = _by_network(used_now.join(used_before, keys=_IDENTITY, join_type="left anti"))
    change.kept = used_before.join(
        used_now.select(_IDENTITY), keys=_IDENTITY, join_type="left semi"
    ).num_rows
    rejected_now = table.filter(pc.is_valid(table["rejected_by"]))
    change.dropped = _outcomes(
        rejected_now.join(used_before, keys=_IDENTITY, join_type="left semi")
    )
    return change


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

    cut_off: ArrivalTime | None = Field(
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
    before = gateway.stores.cycles.earlier_request(key, unique) if unique else None
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
        record, cut_off, now, caller.id, unique_key=unique, request=asked
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
