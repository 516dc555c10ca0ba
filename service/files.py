"""Serve published files: byte ranges, entity tags that are the SHA-256, caching for ever (RFC 9110)."""

import base64
import os
import re
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from service.errors import PreconditionFailed, RangeNotSatisfiable

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
    """The part of a Range header that lies in a file of `size` bytes, in absolute positions.

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


def _settle_range(request: Request, etag: str, size: int) -> None:
    """Leaves in the request only a Range header that shall and can be answered."""
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


def file_response(request: Request, path: Path, *, sha256: str, media_type: str) -> Response:
    """The answer to GET or HEAD of an immutable file.

    Arguments:
        request: Its Range, If-Range, If-Match and If-None-Match headers are honoured.
        path: An existing file.
        sha256: Of the file; quoted, it is the ETag.
        media_type: For Content-Type.

    Raises:
        PreconditionFailed: If-Match names another version.
        RangeNotSatisfiable: No byte asked for is in the file.
    """
    etag = f'"{sha256}"'
    headers = {"ETag": etag, "Cache-Control": IMMUTABLE, "X-Content-Type-Options": "nosniff"}
    wanted = request.headers.get("if-match")
    if wanted and wanted.strip() != "*" and etag not in _listed(wanted):
        raise PreconditionFailed(f"Expected version {wanted}; the file is {etag}.", etag=etag)
    held = request.headers.get("if-none-match")
    if held and (held.strip() == "*" or etag in _listed(held)):
        return Response(status_code=304, headers=headers)
    stat = os.stat(path)
    _settle_range(request, etag, stat.st_size)
    digest = base64.b64encode(bytes.fromhex(sha256)).decode()
    headers["Repr-Digest"] = f"sha-256=:{digest}:"  # RFC 9530
    return PublishedFile(
        path,
        headers=headers,
        media_type=media_type,
        stat_result=stat,
        filename=path.name,
        content_disposition_type="inline" if media_type.startswith("image/") else "attachment",
    )
