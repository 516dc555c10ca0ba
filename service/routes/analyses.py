"""Serve results: lists, the latest, pins, verification, and files with byte ranges and entity tags.

Files carry an entity tag that is their SHA-256 and may be cached for ever (RFC 9110).
"""

import base64
import os
import pathlib
import re
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import FileResponse, StreamingResponse

from service.auth import GatewayDep, JobWriter, Reader
from service.errors import NotFound, PreconditionFailed, RangeNotSatisfiable
from service.openapi import (
    ANALYSIS,
    VERIFICATION,
    example_page,
    example_response,
    problem_responses,
)
from service.query_parameters import listed_names
from service.schemas import (
    MAX_ITEMS,
    AnalysisList,
    AnalysisView,
    LatestAnalysis,
    LatestFile,
    PinView,
    VerificationPage,
)
from worker.contract.kinds import KINDS, KindName, UtcTime
from worker.contract.suites import CHALLENGER
from worker.results.entries import ResultFilter
from worker.results.manifest import AnalysisManifest, ManifestFile, Pin, pin, pins, unpin
from worker.results.store import Read, result_store
from worker.results.verification.series import (
    SeriesFilter,
    find_series,
    newest_revisions,
    page_series,
)

MAX_RANGES = 16
IMMUTABLE = "private, max-age=31536000, immutable"
_RANGE = re.compile(r"(\d*)-(\d*)")


class PublishedFile(FileResponse):
    """A file response with large reads and a bound on ranges."""

    chunk_size = 1 << 20
    max_ranges = MAX_RANGES


def _listed(header: str) -> list[str]:
    return [tag.strip().removeprefix("W/") for tag in header.split(",")]


def satisfiable_range(header: str, size: int) -> str | None:
    """Return the part of a Range header that lies in a file of `size` bytes, in absolute positions.

    Returns:
        A header such as `bytes=0-99,200-299`; None if the header must be ignored (another unit,
        malformed, or more than `MAX_RANGES` ranges).

    Raises:
        RangeNotSatisfiable: If it is well formed but no range of it touches the file.
    """
    unit, _, text = header.partition("=")
    parts = [p.strip() for p in text.split(",") if p.strip()]
    if unit.strip().lower() != "bytes" or not parts or len(parts) > MAX_RANGES:
        return None
    kept: list[str] = []
    for part in parts:
        match = _RANGE.fullmatch(part)
        # More digits than any file has bytes would only burn time.
        if match is None or part == "-" or len(part) > 40:
            return None
        first, last = match.groups()
        if first and last and int(last) < int(first):
            return None
        start = int(first) if first else max(0, size - int(last))
        end = min(int(last), size - 1) if first and last else size - 1
        if start < size and (first or int(last) > 0):
            kept.append(f"{start}-{end}")
    if not kept:
        raise RangeNotSatisfiable(size, header)
    return "bytes=" + ",".join(kept)


def _normalise_range(request: Request, etag: str, size: int) -> None:
    """Drop a Range header that must be ignored, and keep only the satisfiable part of others."""
    headers = MutableHeaders(scope=request.scope)
    asked, condition = headers.get("range"), headers.get("if-range")
    if asked is None:
        return
    del headers["range"]
    if condition is not None:
        del headers["if-range"]
        if condition != etag:  # another version, or a date: we promise tags only
            return
    settled = satisfiable_range(asked, size)
    if settled is not None:
        headers["range"] = settled


def file_response(
    request: Request, entry: ManifestFile, path: pathlib.Path, remote: Read | None = None
) -> Response:
    """Return the response to GET or HEAD of an immutable file.

    Arguments:
        request: Its Range, If-Range, If-Match and If-None-Match headers are honoured.
        entry: Its entry in the manifest; the SHA-256, quoted, is the ETag.
        path: An existing file, unless it is read from a bucket.
        remote: Reads the file from a bucket.

    Raises:
        PreconditionFailed: If-Match names another version.
        RangeNotSatisfiable: No byte asked for is in the file.
    """
    etag = f'"{entry.sha256}"'
    headers = {"ETag": etag, "Cache-Control": IMMUTABLE, "X-Content-Type-Options": "nosniff"}
    wanted = request.headers.get("if-match")
    if wanted and wanted.strip() != "*" and etag not in _listed(wanted):
        raise PreconditionFailed(f"Expected version {wanted}; the file is {etag}.", etag=etag)
    held = request.headers.get("if-none-match")
    if held and (held.strip() == "*" or etag in _listed(held)):
        return Response(status_code=304, headers=headers)
    stat = None if remote else os.stat(path)
    _normalise_range(request, etag, stat.st_size if stat else entry.size)
    digest = base64.b64encode(bytes.fromhex(entry.sha256)).decode()
    headers["Repr-Digest"] = f"sha-256=:{digest}:"  # RFC 9530
    disposition = "inline" if entry.media_type.startswith("image/") else "attachment"
    if remote is not None:
        headers["Content-Disposition"] = f'{disposition}; filename="{path.name}"'
        return _remote_file(request, entry, remote, headers)
    return PublishedFile(
        path,
        headers=headers,
        media_type=entry.media_type,
        stat_result=stat,
        filename=path.name,
        content_disposition_type=disposition,
    )


def _remote_file(
    request: Request, entry: ManifestFile, read: Read, headers: dict[str, str]
) -> Response:
    """Return the response with a file, or one range of it, streamed from the bucket.

    Raises:
        FileNotFoundError: If it was deleted.
        StorageError: If it cannot be read now.
    """
    first, last, status = 0, entry.size - 1, 200
    if asked := Headers(scope=request.scope).get("range"):  # as `_normalise_range` left it
        first, last = (int(text) for text in asked.removeprefix("bytes=").split("-"))
        headers["Content-Range"], status = f"bytes {first}-{last}/{entry.size}", 206
    headers |= {"Accept-Ranges": "bytes", "Content-Length": str(last - first + 1)}
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=entry.media_type)
    return StreamingResponse(read(first, last), status, headers, media_type=entry.media_type)


router = APIRouter(prefix="/v1", tags=["analyses"])

PinnedId = Annotated[
    str,
    Path(
        description="Id of the analysis.",
        max_length=100,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$",
    ),
]


class PinRequest(BaseModel):
    """A note to store with a pin."""

    model_config = ConfigDict(extra="forbid")

    note: str = Field(default="", max_length=500, description="What it is kept for.")


@router.get("/pins", responses=problem_responses())
def list_pins(gateway: GatewayDep, key: Reader) -> list[PinView]:
    """Return the pins of all analyses, oldest first."""
    return [PinView.of(p, key) for p in pins(gateway.layout)]


@router.post(
    "/analyses/{analysis_id}/pin", responses=problem_responses("not_found", "storage_error")
)
def pin_analysis(
    gateway: GatewayDep,
    key: JobWriter,
    analysis_id: PinnedId,
    request: Annotated[PinRequest | None, Body(description="Optional.")] = None,
) -> PinView:
    """Keep an analysis from retention; one that is pinned keeps its first pin."""
    note = request.note if request else ""
    made = pin(gateway.layout, Pin(analysis_id=analysis_id, by=key.id, note=note))
    return PinView.of(made, key)


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
AnalysisId = Annotated[str, Path(description="Id of the analysis.", max_length=100)]
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
    206: {"description": "The requested ranges."},
    304: {"description": "The client's copy is up to date."},
}


@router.get(
    "/analyses", responses={**problem_responses(), 200: example_response(example_page(ANALYSIS))}
)
def list_analyses(
    gateway: GatewayDep,
    _: Reader,
    kind: Annotated[KindName | None, Query(description="Only analyses of this kind.")] = None,
    flavour: Annotated[
        Literal["early", "final", "challenger"] | None,
        Query(description="Only cycled analyses of this flavour; by default no challenger's."),
    ] = None,
    valid_from: Annotated[UtcTime | None, Query(description="Earliest valid time (UTC).")] = None,
    valid_to: Annotated[UtcTime | None, Query(description="Latest valid time (UTC).")] = None,
    latest: Annotated[bool, Query(description="Only the latest match.")] = False,
    limit: Annotated[int, Query(ge=1, le=500, description=MAX_ITEMS)] = 50,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the previous page.", max_length=200)
    ] = None,
) -> AnalysisList:
    """Return analyses, latest valid time first; of one valid time the highest revision first."""
    query = ResultFilter(kind, flavour, valid_from, valid_to)
    page = gateway.analyses.select(query, cursor, 1 if latest else limit)
    items = [AnalysisView.of(manifest) for manifest in page.items]
    next_cursor = None if latest else page.next_cursor
    return AnalysisList(items=items, next_cursor=next_cursor, total=page.total)


@router.get("/analyses/latest.json", responses=problem_responses())
def latest_analyses(
    request: Request, response: Response, gateway: GatewayDep, _: Reader
) -> dict[str, LatestAnalysis]:
    """Return the latest result of each kind (`filtering`) and of each kind and flavour
    (`filtering/final`), for scripts that always fetch the same address.
    """
    response.headers["Cache-Control"] = "no-cache"
    root = request.scope.get("root_path", "")
    queries = {kind: ResultFilter(kind) for kind in KINDS}
    queries |= {f"{k}/{f}": ResultFilter(k, f) for k in KINDS for f in FLAVOURS}
    latest = {name: gateway.analyses.latest(query) for name, query in queries.items()}
    return {name: _latest(manifest, root) for name, manifest in latest.items() if manifest}


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
def read_analysis(analysis_id: AnalysisId, gateway: GatewayDep, _: Reader) -> AnalysisView:
    """Return an analysis: files with size and SHA-256, window, counts, scores, provenance."""
    return AnalysisView.of(gateway.analyses.get(analysis_id))


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
    file: Annotated[str, Path(description="Name of the file.", max_length=255)],
    gateway: GatewayDep,
    _: Reader,
) -> Response:
    """Return a file, or byte ranges of it; its ETag is its SHA-256, and it never changes."""
    entry, path = gateway.analyses.file(analysis_id, file)
    results = result_store(gateway.layout)
    remote = results.remote(analysis_id, entry)
    if remote is not None and "," in request.headers.get("range", ""):  # several ranges
        path, remote = results.file(analysis_id, file), None
    try:
        return file_response(request, entry, path, remote)
    except FileNotFoundError as error:
        raise NotFound(
            f"Expected a file of a published analysis; '{file}' of '{analysis_id}' was just deleted."
        ) from error


SERIES_FLAVOURS = {"early": "early", "final": "final", CHALLENGER: CHALLENGER, "job": ""}


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
        Literal["early", "final", "challenger", "job"] | None,
        Query(
            description="Analyses of the cycles, or of single jobs (`job`); all but "
            "challengers' by default."
        ),
    ] = None,
    valid_from: Annotated[UtcTime | None, Query(description="First valid time (UTC).")] = None,
    valid_to: Annotated[UtcTime | None, Query(description="Last valid time (UTC).")] = None,
    revisions: Annotated[
        Literal["newest", "all"],
        Query(description="Which revisions of each valid time and flavour."),
    ] = "newest",
    limit: Annotated[int, Query(ge=1, le=20_000, description=MAX_ITEMS)] = 2_000,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the previous page.", max_length=300)
    ] = None,
) -> VerificationPage:
    """Return statistics over time: withheld stations, departures, chi-square, spectra, balance.

    Oldest valid time first. Lists are comma-separated or repeat the parameter. A page may hold
    fewer rows than `limit`; continue while there is a `next_cursor`.
    """
    rows = SeriesFilter(*map(listed_names, (statistic, network, variable, layer)))
    flavours = [] if flavour is None else [SERIES_FLAVOURS[flavour]]
    entries = find_series(gateway.layout, valid_from, valid_to, flavours)
    entries = [e for e in entries if flavour or e.flavour != CHALLENGER]
    if revisions == "newest":
        entries = newest_revisions(entries)
    page = page_series(gateway.layout, entries, rows, cursor, limit)
    return VerificationPage(items=page.rows, next_cursor=page.next_cursor)
