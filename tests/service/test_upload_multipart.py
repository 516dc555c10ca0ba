"""Bodies written by a real client library come out byte for byte, however they are cut."""

import random
from collections.abc import AsyncIterator

import httpx
import pytest

from service.errors import RequestError
from service.upload_requests import FilePart, boundary_of, file_chunks

CONTENT = random.Random(1).randbytes(70_000) + b"\r\n--\r\n"


def encoded(**parts) -> tuple[str, bytes]:
    request = httpx.Request("POST", "http://x/", **parts)
    return request.headers["content-type"], request.read()


async def cut(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


@pytest.mark.parametrize("size", [1_000_000, 4096, 37])
async def test_file_and_fields(size: int) -> None:
    content_type, body = encoded(
        files={"file": ("späte Werte.bufr", CONTENT)}, data={"options": '{"a": 1}'}
    )
    part = FilePart(boundary_of(content_type))
    received = b"".join([c async for c in file_chunks(part, cut(body, size))])
    assert received == CONTENT
    assert part.filename == "späte Werte.bufr"
    assert part.fields == {"options": '{"a": 1}'}


async def read(content_type: str, body: bytes) -> None:
    async for _ in file_chunks(FilePart(boundary_of(content_type)), cut(body, 1000)):
        pass


async def test_two_files_are_refused() -> None:
    with pytest.raises(RequestError, match="one file"):
        await read(*encoded(files=[("file", ("a", b"1")), ("file", ("b", b"2"))]))


async def test_cut_body_is_refused() -> None:
    content_type, body = encoded(files={"file": ("a", CONTENT)})
    with pytest.raises(RequestError, match="closing boundary"):
        await read(content_type, body[:-10])


async def test_no_file_is_refused() -> None:
    content_type, body = encoded(files={"other": (None, b"1")})
    with pytest.raises(RequestError, match="filename"):
        await read(content_type, body)


async def test_nonsense_is_refused() -> None:
    with pytest.raises(RequestError, match="multipart"):
        await read("multipart/form-data; boundary=x", b"nonsense" * 100)


def test_boundary() -> None:
    assert boundary_of("multipart/form-data; boundary=abc") == "abc"
    assert boundary_of("application/octet-stream") is None
    with pytest.raises(RequestError):
        boundary_of("multipart/form-data")
