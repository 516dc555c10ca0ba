"""Which part of a Range header is answered (RFC 9110, 14.1.2 and its examples)."""

import pytest

from service.errors import RangeNotSatisfiable
from service.routes.analyses import MAX_RANGES, satisfiable_range


@pytest.mark.parametrize(
    ("header", "settled"),
    [
        ("bytes=0-499", "bytes=0-499"),
        ("bytes=500-999", "bytes=500-999"),
        ("bytes=-500", "bytes=9500-9999"),
        ("bytes=9500-", "bytes=9500-9999"),
        ("bytes=0-0,-1", "bytes=0-0,9999-9999"),
        ("bytes= 0-999, 4500-5499, -1000", "bytes=0-999,4500-5499,9000-9999"),
        ("bytes=-20000", "bytes=0-9999"),
        ("bytes=9999-20000", "bytes=9999-9999"),
        ("bytes=0-9,20000-30000", "bytes=0-9"),  # one of them can be answered
        ("BYTES=1-2", "bytes=1-2"),
    ],
)
def test_ranges_of_a_file_of_10000_bytes(header: str, settled: str) -> None:
    assert satisfiable_range(header, 10_000) == settled


@pytest.mark.parametrize(
    "header",
    [
        "lines=1-2",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=5-4",
        "bytes 0-4",
        "bytes=1-2;3",
        "bytes=" + "9" * 60 + "-",
        "bytes=" + ",".join(f"{i}-{i}" for i in range(MAX_RANGES + 1)),
    ],
)
def test_headers_that_are_ignored(header: str) -> None:
    assert satisfiable_range(header, 10_000) is None


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=10000-", 10_000), ("bytes=-0", 10), ("bytes=0-", 0)]
)
def test_nothing_to_send(header: str, size: int) -> None:
    with pytest.raises(RangeNotSatisfiable) as caught:
        satisfiable_range(header, size)
    assert caught.value.headers["Content-Range"] == f"bytes */{size}"
