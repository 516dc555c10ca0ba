"""Serve horizontal fields of results for maps: values, what a result holds, what exists by time."""

import json
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Query, Response

from model.domain.coastlines import light_coastlines
from model.domain.errors import InvalidInput
from service.auth import GatewayDep, Reader
from service.errors import AnswerTooLarge, NotFound
from service.gateway import Gateway
from service.maps.answers import (
    FieldCatalogue,
    FieldValues,
    ShownResult,
    Timeline,
    TimelineEntry,
    frame,
)
from service.maps.requests import FieldRequest, MapView, parse_statistic
from service.openapi import problem_responses
from service.query_parameters import check_years, parse_box
from worker.contract.kinds import KindName, UtcTime
from worker.results.entries import Entry, ResultFilter

MAX_SIDE = 4096
MAX_JSON_VALUES = 200_000
MAX_RESULTS = 2000
BINARY = "application/octet-stream"
FOR_EVER = "private, max-age=31536000, immutable"

router = APIRouter(prefix="/v1/fields", tags=["fields"])

_DATA_PROBLEMS = ("not_found", "unknown_name", "not_installed", "storage_error")

Flavour = Annotated[
    Literal["early", "final", "challenger"] | None,
    Query(description="Only cycled analyses of this flavour; by default no challenger's."),
]


@dataclass(frozen=True)
class Wanted:
    """Which result is asked for.

    Attributes:
        result: Its id.
        fixed: Whether it was named by its id, which never changes content.
    """

    result: str
    fixed: bool


def _wanted(
    gateway: GatewayDep,
    _: Reader,
    result: Annotated[
        str | None,
        Query(description="Id of the result, or `latest-final` and the like.", max_length=100),
    ] = None,
    kind: Annotated[
        KindName | None, Query(description="Without `result`: the newest one of this kind.")
    ] = None,
    flavour: Flavour = None,
    time: Annotated[
        UtcTime | None,
        Query(description="Valid time (UTC); default: the analysis time, or the first one after."),
    ] = None,
) -> Wanted:
    """Return the result that a request means.

    Raises:
        NotFound: If nothing published fits.
    """
    check_years("time", time)
    if result is not None:
        known = gateway.analyses.find(result) is not None
        return Wanted(result, known)
    wanted = ResultFilter(kind, flavour, start=time, end=time, with_dataset=True)
    manifest = gateway.analyses.latest(wanted)
    if manifest is None:
        asked = {"kind": kind, "flavour": flavour, "time": time and time.isoformat()}
        given = ", ".join(f"{name}={value}" for name, value in asked.items() if value)
        raise NotFound(
            f"Expected a published result with a data set for {given or 'any kind'}; there is none. "
            "List what exists with GET /v1/fields/timeline."
        )
    return Wanted(manifest.id, fixed=False)


WantedDep = Annotated[Wanted, Depends(_wanted)]
Time = Annotated[UtcTime | None, Query(description="Valid time (UTC).")]


def _view(
    view: Annotated[
        Literal["global", "north", "south"],
        Query(description="Latitudes and longitudes, or a polar stereographic plane."),
    ] = "global",
    width: Annotated[
        int, Query(ge=1, le=MAX_SIDE, description="Most columns; polar views have this many.")
    ] = 1440,
    height: Annotated[int, Query(ge=1, le=MAX_SIDE, description="Most rows.")] = 721,
    box: Annotated[
        str | None,
        Query(description="West,south,east,north of a global view, degrees.", max_length=200),
    ] = None,
    centre: Annotated[
        float, Query(ge=-360, le=360, description="Vertical meridian of a polar view, degrees.")
    ] = 0.0,
    edge: Annotated[
        float, Query(ge=-85, le=85, description="Latitude at the middle of a polar view's edges.")
    ] = 30.0,
) -> MapView:
    """Return the view of a request."""
    found = parse_box(box)
    if found is not None and view != "global":
        raise InvalidInput(
            f"Expected 'box' with view=global only; got view={view}. Use 'edge'.", field="box"
        )
    return MapView(view, width, height, found, centre, edge)


ViewDep = Annotated[MapView, Depends(_view)]


def _request(
    wanted: WantedDep,
    field: Annotated[
        str, Query(description="Such as `t2m`, `t`, `gh`, `ws`, `r`, `thickness`.", max_length=50)
    ],
    level: Annotated[float | None, Query(gt=0, le=1100, description="Pressure level, hPa.")] = None,
    base: Annotated[
        float | None,
        Query(gt=0, le=1100, description="Lower level of a layer, hPa; default: the lowest."),
    ] = None,
    time: Time = None,
    statistic: Annotated[
        str,
        Query(
            description="`mean`, `spread`, `member:N`, `increment`, `difference:ID`, `probability`.",
            max_length=120,
        ),
    ] = "mean",
    threshold: Annotated[
        float | None, Query(description="Of a probability, in the units of the field.")
    ] = None,
    direction: Annotated[
        Literal["above", "below"], Query(description="Which side of the threshold counts.")
    ] = "above",
    other_time: Annotated[
        UtcTime | None,
        Query(description="Valid time of the result subtracted; default: the same."),
    ] = None,
) -> FieldRequest:
    """Return the field of a request."""
    check_years("other_time", other_time)
    made = parse_statistic(statistic, threshold, direction, other_time)
    return FieldRequest(wanted.result, field, level, base, time, made)


RequestDep = Annotated[FieldRequest, Depends(_request)]

_FIELD: dict[int | str, dict[str, Any]] = {
    200: {
        "description": (
            "Binary: uint32 length of the metadata, metadata as JSON, values as float32, all "
            "little-endian. With f=json the same as one object."
        ),
        "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}},
    },
}


@router.get(
    "",
    response_model=FieldValues,
    responses={**problem_responses(*_DATA_PROBLEMS, "answer_too_large"), **_FIELD},
)
async def read_field(
    gateway: GatewayDep,
    wanted: WantedDep,
    request: RequestDep,
    view: ViewDep,
    f: Annotated[Literal["binary", "json"], Query(description="Form of the answer.")] = "binary",
) -> Response:
    """Return a horizontal field of a result with all that a map needs to draw it."""
    body = await gateway.data_sets.run(_answer, gateway, request, view, f)
    caching = FOR_EVER if wanted.fixed else "no-cache"
    media = BINARY if f == "binary" else "application/json"
    return Response(body, media_type=media, headers={"Cache-Control": caching})


def _answer(gateway: Gateway, request: FieldRequest, view: MapView, form: str) -> bytes:
    info, values = gateway.data_sets.fields.view(request, view)
    if form == "binary":
        return frame(info, np.ascontiguousarray(values, dtype="<f4").tobytes())
    if values.size > MAX_JSON_VALUES:
        raise AnswerTooLarge(
            f"Expected at most {MAX_JSON_VALUES} values with f=json; {values.size} are asked for. "
            "Take f=binary, or a smaller 'width', 'height' or 'box'.",
            values=int(values.size),
            limit=MAX_JSON_VALUES,
        )
    listed = [[v if v == v else None for v in row] for row in values.tolist()]
    return FieldValues(**info.model_dump(), values=listed).model_dump_json().encode()


@router.get("/catalogue", responses=problem_responses(*_DATA_PROBLEMS))
async def read_field_catalogue(gateway: GatewayDep, wanted: WantedDep) -> FieldCatalogue:
    """Return the fields, levels, times and statistics of one result."""
    found: FieldCatalogue = await gateway.data_sets.run(_catalogue, gateway, wanted.result)
    return found


def _catalogue(gateway: Gateway, result: str) -> Any:
    return gateway.data_sets.fields.catalogue(result)


@router.get("/colours", responses=problem_responses("not_installed"))
async def read_colours(gateway: GatewayDep, _: Reader, response: Response) -> dict[str, list[str]]:
    """Return the colour maps that fields suggest: 256 colours each, from low to high."""
    response.headers["Cache-Control"] = "private, max-age=86400"
    module = await gateway.data_sets.run(gateway.data_sets.module, "extracted")
    found: dict[str, list[str]] = module.colour_maps()
    return found


@router.get("/coastlines", responses=problem_responses("not_installed"))
async def read_coastlines(gateway: GatewayDep, _: Reader) -> Response:
    """Return coastlines as lists of [longitude, latitude], for maps that are drawn by the reader."""
    body = await gateway.data_sets.run(_coastlines)
    headers = {"Cache-Control": "private, max-age=86400"}
    return Response(body, media_type="application/json", headers=headers)


@cache
def _coastlines() -> bytes:
    return json.dumps(light_coastlines(), separators=(",", ":")).encode()


@router.get("/timeline", responses=problem_responses("storage_error"))
def read_timeline(
    gateway: GatewayDep,
    _: Reader,
    kind: Annotated[KindName | None, Query(description="Only results of this kind.")] = None,
    flavour: Flavour = None,
    valid_from: Annotated[UtcTime | None, Query(description="First valid time (UTC).")] = None,
    valid_to: Annotated[UtcTime | None, Query(description="Last valid time (UTC).")] = None,
    limit: Annotated[
        int, Query(ge=1, le=MAX_RESULTS, description="Most results; the newest are kept.")
    ] = 500,
) -> Timeline:
    """Return the valid times that exist, each with the results that hold it."""
    check_years("valid_from", valid_from)
    check_years("valid_to", valid_to)
    wanted = ResultFilter(kind, flavour, start=valid_from, end=valid_to, with_dataset=True)
    entries = gateway.analyses.entries(wanted)
    by_time: dict[datetime, list[ShownResult]] = {}
    for entry in entries[:limit]:
        for time in _times(gateway, entry):
            if (valid_from is None or time >= valid_from) and (
                valid_to is None or time <= valid_to
            ):
                by_time.setdefault(time, []).append(_shown(entry, time))
    items = [TimelineEntry(time=t, results=_ordered(by_time[t])) for t in sorted(by_time)]
    return Timeline(items=items, truncated=len(entries) > limit)


def _times(gateway: Gateway, entry: Entry) -> list[datetime]:
    if entry.first_time == entry.last_time:
        return [entry.first_time]
    manifest = gateway.analyses.find(entry.id)
    return [] if manifest is None else manifest.times


def _shown(entry: Entry, time: datetime) -> ShownResult:
    return ShownResult(
        id=entry.id,
        kind=entry.kind,
        flavour=entry.flavour,
        revision=entry.revision,
        reference_time=entry.valid_time,
        lead_hours=(time - entry.valid_time).total_seconds() / 3600.0,
        created=entry.created,
    )


def _ordered(results: list[ShownResult]) -> list[ShownResult]:
    return sorted(results, key=lambda r: (r.lead_hours, -r.revision, -r.created.timestamp()))
