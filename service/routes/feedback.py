"""Serve the feedback of an analysis by network, variable, layer and outcome, for maps and for people.

The whole table is a file of the analysis; this gives what a map draws, and single rows.
"""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response

from model.domain.errors import InvalidInput
from model.domain.observations import QC_FLAGS, REPORT_TYPES, VERTICAL_KINDS
from model.domain.variables import VARIABLES
from service.auth import GatewayDep, Reader
from service.gateway import Gateway
from service.maps.answers import frame
from service.maps.feedback import (
    LAYER_NAMES,
    FeedbackFilter,
    FeedbackPoints,
    read_points,
    read_rows,
)
from service.openapi import problem_responses
from service.query_parameters import check_known, listed_names
from service.routes.fields import BINARY, FOR_EVER

MAX_POINTS = 500_000
MAX_ROWS = 1_000

router = APIRouter(prefix="/v1", tags=["analyses"])

_KNOWN: dict[str, Collection[str]] = {
    "variables": VARIABLES,
    "networks": REPORT_TYPES,
    "layers": (*LAYER_NAMES, *VERTICAL_KINDS),
    "rejected_by": QC_FLAGS,
}
_FEEDBACK: dict[int | str, dict[str, Any]] = {
    200: {
        "description": (
            "Binary: uint32 length of the metadata, metadata as JSON, then the columns that the "
            "metadata list, all little-endian. With f=json whole rows."
        ),
        "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}},
    },
}


def _row_numbers(texts: list[str] | None) -> tuple[int, ...]:
    names = listed_names(texts)
    if len(names) > MAX_ROWS or not all(n.isascii() and n.isdigit() and len(n) < 19 for n in names):
        raise InvalidInput(
            f"Expected at most {MAX_ROWS} row numbers from 0; got '{','.join(names)[:80]}'.",
            field="rows",
        )
    return tuple(map(int, names))


@router.get(
    "/analyses/{analysis_id}/feedback",
    response_model=FeedbackPoints,
    responses={**problem_responses("not_found", "unknown_name", "storage_error"), **_FEEDBACK},
)
def read_feedback(
    gateway: GatewayDep,
    _: Reader,
    analysis_id: Annotated[str, Path(description="Id of the analysis.", max_length=100)],
    variables: Annotated[list[str] | None, Query(description="Variable ids.")] = None,
    networks: Annotated[list[str] | None, Query(description="Report types.")] = None,
    layers: Annotated[
        list[str] | None, Query(description="`surface`, `400-600 hPa` …, as in verification.")
    ] = None,
    outcome: Annotated[
        Literal["all", "used", "rejected"], Query(description="Outcome of quality control.")
    ] = "all",
    rejected_by: Annotated[
        list[str] | None, Query(description="Only values rejected by these checks.")
    ] = None,
    stations: Annotated[
        list[str] | None, Query(description="Only what these stations reported, by their ids.")
    ] = None,
    rows: Annotated[
        list[str] | None, Query(description="Only these rows, by their numbers.")
    ] = None,
    limit: Annotated[
        int,
        Query(
            ge=1,
            le=MAX_POINTS,
            description=f"Most rows, evenly chosen; at most {MAX_ROWS} with f=json.",
        ),
    ] = MAX_POINTS,
    f: Annotated[Literal["binary", "json"], Query(description="Form of the answer.")] = "binary",
) -> Response:
    """Return observed values of an analysis: place, departures, error and outcome of each.

    Lists are comma-separated or repeat the parameter.
    """
    given = {"variables": variables, "networks": networks, "layers": layers}
    names = {k: tuple(listed_names(v)) for k, v in {**given, "rejected_by": rejected_by}.items()}
    for parameter, listed in names.items():
        for name in listed:
            check_known(parameter, name, _KNOWN[parameter])
    named = tuple(listed_names(stations))
    wanted = FeedbackFilter(**names, stations=named, outcome=outcome, rows=_row_numbers(rows))
    return _answer(gateway, analysis_id, wanted, limit, f)


def _answer(
    gateway: Gateway, analysis_id: str, wanted: FeedbackFilter, limit: int, form: str
) -> Response:
    manifest = gateway.analyses.get(analysis_id)
    caching = {"Cache-Control": FOR_EVER}
    if form == "json":
        found = read_rows(gateway.layout, manifest, wanted, min(limit, MAX_ROWS))
        return Response(found.model_dump_json(), media_type="application/json", headers=caching)
    body = frame(*read_points(gateway.layout, manifest, wanted, limit))
    return Response(body, media_type=BINARY, headers=caching)
