"""Published analyses over HTTP, read by a real client; files are never seen half written."""

import base64
import hashlib
import random
import shutil
import subprocess
from datetime import UTC, datetime
from email.parser import BytesParser

import acting_worker
import httpx
import pytest
from gateway_process import GatewayProcess, StartGateway

DATA = random.Random(5).randbytes(3_000_000)
HASH = hashlib.sha256(DATA).hexdigest()
NAME = "appa_an_20250101T06Z_v1.nc"


@pytest.fixture(scope="module")
def published(gateway: GatewayProcess) -> str:
    acting_worker.publish(gateway.layout, "an-files", {NAME: DATA, "ql.png": b"\x89PNG"})
    return f"/v1/analyses/an-files/{NAME}"


def test_manifest(http, published) -> None:
    manifest = http.get("/v1/analyses/an-files").json()
    assert manifest["files"][0] == {
        "name": NAME,
        "size": len(DATA),
        "sha256": HASH,
        "media_type": "application/netcdf",
        "role": "data",
    }


def test_whole_file(http, published) -> None:
    answer = http.get(published)
    assert answer.content == DATA
    assert answer.headers["etag"] == f'"{HASH}"'
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "application/netcdf"
    digest = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
    assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"
    head = http.head(published)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "etag", "content-type"):
        assert head.headers[name] == answer.headers[name]


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=1000-1999", 1000, 2000),
        ("bytes=2999990-", 2_999_990, 3_000_000),
        ("bytes=-5", 2_999_995, 3_000_000),
        ("bytes=2999000-9999999", 2_999_000, 3_000_000),
    ],
)
def test_one_range(http, published, asked: str, start: int, end: int) -> None:
    answer = http.get(published, headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/3000000"
    assert answer.content == DATA[start:end]


def test_many_ranges(http, published) -> None:
    answer = http.get(published, headers={"Range": "bytes=0-9,100-119,-4"})
    assert answer.status_code == 206
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    parts = BytesParser().parsebytes(head + answer.content).get_payload()
    assert [p["content-range"] for p in parts] == [
        "bytes 0-9/3000000",
        "bytes 100-119/3000000",
        "bytes 2999996-2999999/3000000",
    ]
    assert len(parts[1].get_payload(decode=True)) == 20
    too_many = ",".join(f"{10 * i}-{10 * i}" for i in range(17))
    assert http.get(published, headers={"Range": f"bytes={too_many}"}).status_code == 200


def test_range_not_satisfiable(http, published) -> None:
    answer = http.get(published, headers={"Range": "bytes=3000000-"})
    assert (answer.status_code, answer.json()["code"]) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"] == "bytes */3000000"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Range": "bytes=0-9", "If-Range": f'"{HASH}"'}, 206),
        ({"Range": "bytes=0-9", "If-Range": '"other"'}, 200),
        ({"Range": "bytes=0-9", "If-Range": f'W/"{HASH}"'}, 200),
        ({"Range": "lines=0-9"}, 200),
        ({"If-None-Match": f'"x", W/"{HASH}"'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"x"'}, 200),
        ({"If-Match": f'"{HASH}"'}, 200),
        ({"If-Match": '"x"'}, 412),
    ],
)
def test_conditions(http, published, headers: dict, status: int) -> None:
    assert http.get(published, headers=headers).status_code == status


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_resumes(gateway: GatewayProcess, published, tmp_path) -> None:
    target = tmp_path / NAME
    target.write_bytes(DATA[:1_234_567])
    command = ["curl", "-sS", "--fail", "-C", "-", "-o", str(target), gateway.url + published]
    subprocess.run(command, check=True, timeout=60)
    assert target.read_bytes() == DATA


def test_what_has_no_manifest_is_not_there(http, gateway: GatewayProcess) -> None:
    acting_worker.publish(gateway.layout, "an-torn", {"a.nc": b"1"}, manifest=False)
    (gateway.layout.analyses / "an-bad").mkdir()
    (gateway.layout.analyses / "an-bad" / "manifest.json").write_text("{")
    listed = [m["id"] for m in http.get("/v1/analyses?limit=500").json()["items"]]
    assert not {"an-torn", "an-bad"} & set(listed)
    for path in ("an-torn", "an-torn/a.nc", "an-bad"):
        assert http.get(f"/v1/analyses/{path}").status_code == 404


def test_only_listed_files_are_served(http, gateway: GatewayProcess, published) -> None:
    (gateway.layout.analysis("an-files") / "stray.nc").write_bytes(b"1")
    (gateway.layout.root / "keys.json.bak").write_text("secret")
    for path in (
        "an-files/stray.nc",
        "an-files/..%2F..%2Fkeys.json.bak",
        "an-files/%2e%2e%2f%2e%2e%2fkeys.json.bak",
        "..%2f/keys.json.bak",
        "an-files%2F..%2F..%2Fkeys.json.bak",
        "an-files/%00",
        "%2Fetc/passwd",
        "an-files/" + "a" * 255,
    ):
        answer = http.get(f"/v1/analyses/{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path


def test_lists(start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    with httpx.Client(base_url=gateway.url, timeout=30) as http:
        assert http.get("/v1/analyses").json() == {"items": [], "next_cursor": None, "total": 0}
        assert http.get("/v1/analyses/latest.json").json() == {}
        for hour in range(6):
            valid = datetime(2025, 1, 1, hour, tzinfo=UTC)
            acting_worker.publish(gateway.layout, f"an-{hour}", {NAME: b"1"}, valid=valid)
        newest = datetime(2025, 1, 1, 5, tzinfo=UTC)
        acting_worker.publish(
            gateway.layout, "an-5-b", {NAME: b"2"}, valid=newest, revision=2, flavour="final"
        )
        acting_worker.publish(gateway.layout, "fc-5", {NAME: b"3"}, valid=newest, kind="forecast")

        def ids(**params) -> list[str]:
            return [m["id"] for m in http.get("/v1/analyses", params=params).json()["items"]]

        assert ids(kind="filtering") == ["an-5-b", "an-5", "an-4", "an-3", "an-2", "an-1", "an-0"]
        assert ids(kind="filtering", latest=True) == ["an-5-b"]
        assert ids(flavour="final") == ["an-5-b"]
        window = {"valid_from": "2025-01-01T02:00:00Z", "valid_to": "2025-01-01T03:00:00"}
        assert ids(**window) == ["an-3", "an-2"]
        page = http.get("/v1/analyses", params={"limit": 5}).json()
        rest = http.get("/v1/analyses", params={"limit": 5, "cursor": page["next_cursor"]}).json()
        assert (len(page["items"]), len(rest["items"]), rest["next_cursor"]) == (5, 3, None)
        latest = http.get("/v1/analyses/latest.json").json()
        assert latest["filtering"]["analysis_id"] == "an-5-b"
        assert latest["forecast"]["analysis_id"] == "fc-5"
        assert latest["filtering/final"]["analysis_id"] == "an-5-b"
        assert "filtering/early" not in latest
        file = latest["filtering"]["files"][0]
        assert http.get(file["url"]).content == b"2"
        assert file["sha256"] == hashlib.sha256(b"2").hexdigest()
        shutil.rmtree(gateway.layout.analysis("an-5-b"))  # retention
        assert ids(kind="filtering", latest=True) == ["an-5"]
        assert http.get("/v1/analyses/an-5-b").status_code == 404
        assert http.get(f"/v1/analyses/an-5-b/{NAME}").status_code == 404
