"""Published analyses and their files."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from service.analysis_index import AnalysisFilter
from service.dependencies import GatewayDep, Reader
from service.examples import ANALYSIS, page_of, shown
from service.files import file_response
from service.openapi import problems
from service.schemas import AnalysisList, LatestAnalysis, LatestFile
from worker.jobs.kinds.base import UtcTime
from worker.jobs.manifest import AnalysisManifest

router = APIRouter(prefix="/v1", tags=["analyses"])

KINDS = ("filtering", "forecast", "reanalysis")
FLAVOURS = ("early", "final")
Kind = Literal["filtering", "forecast", "reanalysis"]
AnalysisId = Annotated[str, Path(description="From a job or a list.", max_length=100)]
FILE_RESPONSES = {
    **problems("not_found", "precondition_failed", "range_not_satisfiable"),
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


@router.get("/analyses", responses={**problems(), 200: shown(page_of(ANALYSIS))})
def list_analyses(
    gateway: GatewayDep,
    _: Reader,
    kind: Annotated[Kind | None, Query(description="Only these.")] = None,
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
    wanted = AnalysisFilter(kind, flavour, valid_from, valid_to)
    page = gateway.analyses.select(wanted, cursor, 1 if latest else limit)
    following = None if latest else page.next_cursor
    return AnalysisList(items=page.items, next_cursor=following, total=page.total)


@router.get("/analyses/latest.json", responses=problems())
def latest_analyses(
    request: Request, response: Response, gateway: GatewayDep, _: Reader
) -> dict[str, LatestAnalysis]:
    """The newest result of each kind (`filtering`) and of each kind and flavour
    (`filtering/final`), for scripts that always fetch the same address."""
    response.headers["Cache-Control"] = "no-cache"
    root = request.scope.get("root_path", "")
    wanted = {kind: AnalysisFilter(kind) for kind in KINDS}
    wanted |= {f"{k}/{f}": AnalysisFilter(k, f) for k in KINDS for f in FLAVOURS}
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


@router.get("/analyses/{analysis_id}", responses={**problems("not_found"), 200: shown(ANALYSIS)})
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
