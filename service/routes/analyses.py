"""List published analyses, serve their files, pin them, and read their verification.

Pinned results are kept by retention whatever their age.
"""

from typing import Annotated, Literal

from fastapi import APIRouter, Body, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service.auth import GatewayDep, JobWriter, Reader
from service.errors import NotFound
from service.files import file_response
from service.openapi import (
    ANALYSIS,
    VERIFICATION,
    example_page,
    example_response,
    problem_responses,
)
from service.query_parameters import listed_names
from service.schemas import AnalysisList, LatestAnalysis, LatestFile, VerificationPage
from worker.contract.kinds import KINDS, KindName, UtcTime
from worker.results.entries import ResultFilter
from worker.results.manifest import AnalysisManifest, Pin, pin, pins, unpin
from worker.results.verification.series import (
    SeriesFilter,
    find_series,
    newest_revisions,
    page_series,
)

router = APIRouter(prefix="/v1", tags=["analyses"])

PinnedId = Annotated[
    str,
    Path(
        description="From a job or a list.",
        max_length=100,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$",
    ),
]


class PinRequest(BaseModel):
    """What a pin says."""

    model_config = ConfigDict(extra="forbid")

    note: str = Field(default="", max_length=500, description="What it is kept for.")


@router.get("/pins", responses=problem_responses())
def list_pins(gateway: GatewayDep, _: Reader) -> list[Pin]:
    """Return all pins, oldest first."""
    return pins(gateway.layout)


@router.post(
    "/analyses/{analysis_id}/pin", responses=problem_responses("not_found", "storage_error")
)
def pin_analysis(
    gateway: GatewayDep,
    key: JobWriter,
    analysis_id: PinnedId,
    request: Annotated[PinRequest | None, Body(description="May be left out.")] = None,
) -> Pin:
    """Keep an analysis from retention; one that is pinned keeps its first pin."""
    note = request.note if request else ""
    return pin(gateway.layout, Pin(analysis_id=analysis_id, by=key.id, note=note))


@router.delete(
    "/analyses/{analysis_id}/pin",
    status_code=204,
    responses=problem_responses("not_found", "storage_error"),
)
def unpin_analysis(gateway: GatewayDep, _: JobWriter, analysis_id: PinnedId) -> None:
    """Remove a pin; the analysis is then kept as long as others of its kind."""
    if not unpin(gateway.layout, analysis_id):
        raise NotFound(f"Expected a pinned analysis; '{analysis_id}' has no pin.")


FLAVOURS = ("early", "final")
AnalysisId = Annotated[str, Path(description="From a job or a list.", max_length=100)]
FILE_RESPONSES = {
    **problem_responses("not_found", "precondition_failed", "range_not_satisfiable"),
    200: {
        "description": "The file.",
        "headers": {
            "ETag": {"description": "SHA-256 of the file.", "schema": {"type": "string"}},
            "Accept-Ranges": {"description": "`bytes`", "schema": {"type": "string"}},
        },
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    206: {"description": "The ranges asked for."},
    304: {"description": "The client's copy is this file."},
}


@router.get(
    "/analyses", responses={**problem_responses(), 200: example_response(example_page(ANALYSIS))}
)
def list_analyses(
    gateway: GatewayDep,
    _: Reader,
    kind: Annotated[KindName | None, Query(description="Only these.")] = None,
    flavour: Annotated[
        Literal["early", "final"] | None, Query(description="Only these, from the cycles.")
    ] = None,
    valid_from: Annotated[UtcTime | None, Query(description="Earliest valid time (UTC).")] = None,
    valid_to: Annotated[UtcTime | None, Query(description="Latest valid time (UTC).")] = None,
    latest: Annotated[bool, Query(description="Only the newest one that matches.")] = False,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the page before.", max_length=200)
    ] = None,
) -> AnalysisList:
    """Analyses, latest valid time first; of one valid time the highest revision first."""
    wanted = ResultFilter(kind, flavour, valid_from, valid_to)
    page = gateway.analyses.select(wanted, cursor, 1 if latest else limit)
    following = None if latest else page.next_cursor
    return AnalysisList(items=page.items, next_cursor=following, total=page.total)


@router.get("/analyses/latest.json", responses=problem_responses())
def latest_analyses(
    request: Request, response: Response, gateway: GatewayDep, _: Reader
) -> dict[str, LatestAnalysis]:
    """The newest result of each kind (`filtering`) and of each kind and flavour
    (`filtering/final`), for scripts that always fetch the same address."""
    response.headers["Cache-Control"] = "no-cache"
    root = request.scope.get("root_path", "")
    wanted = {kind: ResultFilter(kind) for kind in KINDS}
    wanted |= {f"{k}/{f}": ResultFilter(k, f) for k in KINDS for f in FLAVOURS}
    found = {name: gateway.analyses.latest(one) for name, one in wanted.items()}
    return {name: _latest(manifest, root) for name, manifest in found.items() if manifest}


def _latest(manifest: AnalysisManifest, root: str) -> LatestAnalysis:
    url = f"{root}/v1/analyses/{manifest.id}"
    return LatestAnalysis(
        analysis_id=manifest.id,
        kind=manifest.kind,
        valid_time=manifest.valid_time,
        flavour=manifest.flavour,
        revision=manifest.revision,
        created=manifest.created,
        files=[LatestFile(url=f"{url}/{f.name}", **f.model_dump()) for f in manifest.files],
    )


@router.get(
    "/analyses/{analysis_id}",
    responses={
        **problem_responses("not_found"),
        200: example_response(ANALYSIS),
    },
)
def read_analysis(analysis_id: AnalysisId, gateway: GatewayDep, _: Reader) -> AnalysisManifest:
    """The manifest: files with size and SHA-256, window, counts, scores, provenance."""
    return gateway.analyses.get(analysis_id)


@router.get("/analyses/{analysis_id}/{file}", response_class=Response, responses=FILE_RESPONSES)
@router.head(
    "/analyses/{analysis_id}/{file}",
    operation_id="head_analysis_file",
    response_class=Response,
    responses=FILE_RESPONSES,
)
def read_analysis_file(
    request: Request,
    analysis_id: AnalysisId,
    file: Annotated[str, Path(description="From the manifest.", max_length=255)],
    gateway: GatewayDep,
    _: Reader,
) -> Response:
    """A file, or byte ranges of it; its ETag is its SHA-256 and it never changes."""
    entry, path = gateway.analyses.file(analysis_id, file)
    return file_response(request, path, sha256=entry.sha256, media_type=entry.media_type)


SERIES_FLAVOURS = {"early": "early", "final": "final", "job": ""}


@router.get(
    "/verification",
    responses={
        **problem_responses("storage_error"),
        200: example_response({"items": [VERIFICATION], "next_cursor": None}),
    },
)
def read_verification(
    gateway: GatewayDep,
    _: Reader,
    statistic: Annotated[
        list[str] | None,
        Query(description="Such as `withheld_rmse_analysis`.", max_length=50),
    ] = None,
    network: Annotated[
        list[str] | None, Query(description="Report types, or `all`.", max_length=50)
    ] = None,
    variable: Annotated[
        list[str] | None, Query(description="Variable ids, or `all`.", max_length=50)
    ] = None,
    layer: Annotated[
        list[str] | None, Query(description="`surface`, `400-600 hPa`, `all` …", max_length=50)
    ] = None,
    flavour: Annotated[
        Literal["early", "final", "job"] | None,
        Query(description="Analyses of the cycles, or of single jobs."),
    ] = None,
    valid_from: Annotated[UtcTime | None, Query(description="First valid time (UTC).")] = None,
    valid_to: Annotated[UtcTime | None, Query(description="Last valid time (UTC).")] = None,
    revisions: Annotated[
        Literal["newest", "all"], Query(description="Of each valid time and flavour.")
    ] = "newest",
    limit: Annotated[int, Query(ge=1, le=20_000)] = 2_000,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the page before.", max_length=300)
    ] = None,
) -> VerificationPage:
    """Scores against withheld stations, departures, chi-square, estimated errors, spectra, balance.

    Oldest valid time first. Lists may be comma-separated, or the parameter repeated. A page
    may hold fewer rows than asked for; go on while there is a `next_cursor`.
    """
    wanted = SeriesFilter(*map(listed_names, (statistic, network, variable, layer)))
    flavours = [] if flavour is None else [SERIES_FLAVOURS[flavour]]
    entries = find_series(gateway.layout, valid_from, valid_to, flavours)
    if revisions == "newest":
        entries = newest_revisions(entries)
    page = page_series(gateway.layout, entries, wanted, cursor, limit)
    return VerificationPage(items=page.rows, next_cursor=page.next_cursor)
