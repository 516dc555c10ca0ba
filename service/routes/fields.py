"""Serve horizontal fields of results for maps: values, what a result holds, what exists by time."""

import json
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Literal

import numpy as np
from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Response
from numpy.typing import NDArray

from model.domain.coastlines import light_coastlines
from model.domain.errors import InvalidInput
from service.auth import GatewayDep, Reader
from service.errors import AnswerTooLarge, NotFound
from service.gateway import Gateway
from service.maps.answers import (
    FieldCatalogue,
    FieldInfo,
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
JSON = "application/json"
FOR_EVER = "private, max-age=31536000, immutable"

router = APIRouter(prefix="/v1/fields", tags=["fields"])

_DATA_PROBLEMS = ("not_found", "unknown_name", "not_installed", "storage_error")

Flavour = Annotated[
    Literal["early", "final", "challenger"] | None,
    Query(description="Only cycled analyses of this flavour; by default no challenger's."),
]


@dataclass(frozen=True)
class Wanted:
    """The result requested: by name, or the newest that matches."""

    name: str | None
    kind: KindName | None
    flavour: str | None
    time: datetime | None

    def find(self, gateway: Gateway) -> tuple[str, bool]:
        """Return the id of the result, and whether the request named that id, so that the answer is fixed.

        Raises:
            NotFound: If nothing published fits.
        """
        if self.name is not None:
            return self.name, gateway.analyses.find(self.name) is not None
        time = self.time
        wanted = ResultFilter(self.kind, self.flavour, start=time, end=time, with_dataset=True)
        manifest = gateway.analyses.latest(wanted)
        if manifest is None:
            asked = {"kind": self.kind, "flavour": self.flavour, "time": time and time.isoformat()}
            given = ", ".join(f"{name}={value}" for name, value in asked.items() if value)
            raise NotFound(
                f"Expected a published result with a data set for {given or 'any kind'}; there is "
                "none. List what exists with GET /v1/fields/timeline."
            )
        return manifest.id, False


async def _wanted(
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
    """Return which result a request means; it is looked for where data sets are read."""
    check_years("time", time)
    return Wanted(result, kind, flavour, time)


WantedDep = Annotated[Wanted, Depends(_wanted)]
Time = Annotated[UtcTime | None, Query(description="Valid time (UTC).")]


async def _view(
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


async def _request(
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
    """Return the field of a request, of a result that is still to be found."""
    check_years("other_time", other_time)
    made = parse_statistic(statistic, threshold, direction, other_time)
    return FieldRequest("", field, level, base, time, made)


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
    body, fixed = await gateway.data_sets.run(_answer, gateway, wanted, request, view, f)
    caching = FOR_EVER if fixed else "no-cache"
    media = BINARY if f == "binary" else JSON
    return Response(body, media_type=media, headers={"Cache-Control": caching})


def _answer(
    gateway: Gateway, wanted: Wanted, request: FieldRequest, view: MapView, form: str
) -> tuple[bytes, bool]:
    result, fixed = wanted.find(gateway)
    info, values = gateway.data_sets.fields.view(replace(request, result=result), view)
    return _written(info, values, form), fixed


def _written(info: FieldInfo, values: NDArray[np.float32], form: str) -> bytes:
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


@router.get(
    "/catalogue", response_model=FieldCatalogue, responses=problem_responses(*_DATA_PROBLEMS)
)
async def read_field_catalogue(gateway: GatewayDep, wanted: WantedDep) -> Response:
    """Return the fields, levels, times and statistics of one result."""
    body, fixed = await gateway.data_sets.run(_catalogue, gateway, wanted)
    caching = "private, max-age=3600" if fixed else "no-cache"
    return Response(body, media_type=JSON, headers={"Cache-Control": caching})


def _catalogue(gateway: Gateway, wanted: Wanted) -> tuple[str, bool]:
    result, fixed = wanted.find(gateway)
    return gateway.data_sets.fields.catalogue(result).model_dump_json(), fixed


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
    return Response(body, media_type=JSON, headers=headers)


@cache
def _coastlines() -> bytes:
    return json.dumps(light_coastlines(), separators=(",", ":")).encode()


@router.get("/timeline", response_model=Timeline, responses=problem_responses("storage_error"))
async def read_timeline(
    gateway: GatewayDep,
    _: Reader,
    kind: Annotated[KindName | None, Query(description="Only results of this kind.")] = None,
    flavour: Flavour = None,
    valid_from: Annotated[UtcTime | None, Query(description="First valid time (UTC).")] = None,
    valid_to: Annotated[UtcTime | None, Query(description="Last valid time (UTC).")] = None,
    limit: Annotated[
        int, Query(ge=1, le=MAX_RESULTS, description="Most results; the newest are kept.")
    ] = 500,
) -> Response:
    """Return the valid times that exist, each with the results that hold it."""
    check_years("valid_from", valid_from)
    check_years("valid_to", valid_to)
    wanted = ResultFilter(kind, flavour, start=valid_from, end=valid_to, with_dataset=True)
    body = await to_thread.run_sync(_timeline, gateway, wanted, limit)
    return Response(body, media_type=JSON)


def _timeline(gateway: Gateway, wanted: ResultFilter, limit: int) -> str:
    entries = gateway.analyses.entries(wanted)
    first, last = wanted.start, wanted.end
    by_time: dict[datetime, list[ShownResult]] = {}
    for entry in entries[:limit]:
        for time in _times(gateway, entry):
            if (first is None or time >= first) and (last is None or time <= last):
                by_time.setdefault(time, []).append(_shown(entry, time))
    items = [TimelineEntry(time=t, results=_ordered(by_time[t])) for t in sorted(by_time)]
    return Timeline(items=items, truncated=len(entries) > limit).model_dump_json()


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
