"""The service with results in a bucket: gateway, commands, and a whole stack on a real server."""

import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
import xarray as xr

from deploy.local import LocalStack, StackOptions
from tests.deploy.up import ended, submit, upload
from tests.objects.conftest import MakeLayout
from tests.objects.s3_server import S3Server
from tests.objects.test_publication import LARGE, publish
from tests.service.gateway_process import StartGateway
from tests.warm_start import run_warm
from tests.worker.processes import wait_for
from worker.contract.layout import Layout
from worker.results.catalogue import Catalogue
from worker.results.publication import send_folders
from worker.results.store import result_store


def test_files_and_ranges_are_passed_on_without_a_copy(
    machine: MakeLayout, start_gateway: StartGateway, server: S3Server
) -> None:
    publish(machine(), "an-1")
    process = start_gateway(APPA_RESULTS_URL=server.url)
    with httpx.Client(base_url=process.url, timeout=60) as http:
        about = http.get("/v1/analyses/an-1").json()
        address, size = "/v1/analyses/an-1/a.nc", len(LARGE)
        whole = http.get(address)
        assert whole.status_code == 200 and whole.content == LARGE
        assert whole.headers["content-length"] == str(size)
        assert whole.headers["etag"] == f'"{about["files"][0]["sha256"]}"'
        head = http.head(address)
        assert head.headers["content-length"] == str(size) and head.content == b""
        for asked, first, last in (
            ("bytes=0-99", 0, 99),
            ("bytes=-7", size - 7, size - 1),
            ("bytes=5000000-11999999", 5_000_000, 11_999_999),  # of more than one request
            (f"bytes={size - 1}-", size - 1, size - 1),
        ):
            part = http.get(address, headers={"Range": asked})
            assert part.status_code == 206
            assert part.headers["content-range"] == f"bytes {first}-{last}/{size}"
            assert part.content == LARGE[first : last + 1]
        assert http.get(address, headers={"Range": f"bytes={size}-"}).status_code == 416
        held = {"If-None-Match": whole.headers["etag"]}
        assert http.get(address, headers=held).status_code == 304
        cache = Layout(process.data_dir, server.url).analysis_file("an-1", "a.nc")
        assert not cache.exists()
        several = http.get(address, headers={"Range": "bytes=0-1,100-101"})
        assert (
            several.status_code == 206 and "multipart/byteranges" in several.headers["content-type"]
        )
        assert LARGE[100:102] in several.content
        assert cache.read_bytes() == LARGE
        assert http.get("/v1/analyses/an-none").status_code == 404
        listed = http.get("/v1/analyses").json()["items"]
        assert [item["id"] for item in listed] == ["an-1"]


def test_a_gateway_says_that_the_bucket_is_gone_and_is_well_again(
    machine: MakeLayout, start_gateway: StartGateway, server: S3Server
) -> None:
    publish(machine(), "an-1", data=b"x" * 100)
    process = start_gateway(APPA_RESULTS_URL=server.url)
    with httpx.Client(base_url=process.url, timeout=60) as http:

        def told() -> dict:
            answer = http.get("/health/ready").json()
            return answer.get("context", answer)

        assert told()["checks"]["results"]["ok"]
        assert http.get("/v1/analyses/an-1").status_code == 200
        server.stop()
        wait_for(lambda: not told()["checks"]["results"]["ok"])
        assert "results: Expected the bucket" in http.get("/health/ready").text
        answer = http.get("/v1/analyses/an-1/a.nc")
        assert (answer.status_code, answer.json()["code"]) == (503, "storage_error")
        assert http.get("/v1/analyses/an-1").status_code == 200  # known here
        server.start()
        wait_for(lambda: told()["checks"]["results"]["ok"])
        assert http.get("/v1/analyses/an-1/a.nc").content == b"x" * 100


def appa(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_warm("command", "deploy.cli", arguments, {**os.environ, **environment})


def test_results_of_a_folder_are_sent_to_a_bucket(machine: MakeLayout, server: S3Server) -> None:
    layout = machine()
    folder = Layout(layout.root).create()
    for hour in range(3):
        publish(folder, f"an-{hour}", data=b"%d" % hour * 100, hour=hour)
    publish(machine(), "an-1", data=b"another's", hour=1)
    folder.analysis_file("an-2", "a.nc").write_bytes(b"damaged")
    where = ["--data", str(layout.root)]
    doctor = appa("doctor", *where, "--json", APPA_RESULTS_URL=server.url)
    found = {f["name"]: f for f in json.loads(doctor.stdout)["findings"] if f["area"] == "results"}
    assert "3 results" in found["data folder"]["found"]
    assert found["an object is created once"]["state"] == "ok"
    sent = appa("catalogue", "send", *where, APPA_RESULTS_URL=server.url)
    assert sent.returncode == 1
    assert "1 result sent" in sent.stdout
    assert "'an-1': another result" in sent.stderr and "'an-2': not as" in sent.stderr
    assert folder.analysis_file("an-1", "a.nc").read_bytes() == b"1" * 100
    assert result_store(machine()).file("an-0", "a.nc").read_bytes() == b"0" * 100
    assert result_store(machine()).file("an-1", "a.nc").read_bytes() == b"another's"
    assert send_folders(layout)[0] == 0
    again = appa("catalogue", "send", *where, "--json", APPA_RESULTS_URL=server.url)
    answer = json.loads(again.stdout)
    assert (again.returncode, answer["sent"], answer["to"]) == (1, 0, server.url.rstrip("/"))
    assert set(answer["not_sent"]) == {"an-1", "an-2"}
    shown = appa("catalogue", "rebuild", *where, "--json", APPA_RESULTS_URL=server.url)
    assert json.loads(shown.stdout)["total"] == 2


def test_an_exercise_uses_no_bucket_of_its_surroundings(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = {
        "APPA_RESULTS_URL": server.url,
        "APPA_UPLOADS_URL": server.uploads_url,
        "APPA_OBSERVATIONS_URL": server.observations_url,
    }
    for name, url in urls.items():
        monkeypatch.setenv(name, url)
    stack = LocalStack(StackOptions(tmp_path / "real", port=0, quiet=True))
    assert {name: stack.supervisor.environment[name] for name in urls} == urls
    assert f"{stack.layout.uploads_url}/" == server.uploads_url
    exercise = LocalStack(StackOptions(tmp_path / "try", port=0, quiet=True, buckets=False))
    assert {exercise.supervisor.environment[name] for name in urls} == {""}
    assert exercise.layout == Layout(tmp_path / "try")


def test_from_upload_to_a_downloaded_analysis(up, machine: MakeLayout, server: S3Server) -> None:
    stack = up(
        APPA_RESULTS_URL=server.url,
        APPA_UPLOADS_URL=server.uploads_url,
        APPA_OBSERVATIONS_URL=server.observations_url,
        APPA_REPORT_SECONDS="0.5",
    )
    url = stack.url
    assert upload(url)["state"] == "ingested"
    job = ended(submit(url, outputs=["netcdf", "feedback"]))
    assert job["state"] == "succeeded", stack.output.read_text()
    name = job["analysis_id"]
    assert server.names("manifests/") == [f"manifests/{name}.json"]
    for folder in ("analyses", "raw", "observations"):
        assert not list((stack.data / folder).glob("*"))
    latest = stack.data / "latest.json"
    wait_for(latest.exists)
    shutil.rmtree(stack.data / "results-cache")  # copies may go at any time
    about = httpx.get(f"{url}/v1/analyses/{name}").json()
    data = next(file for file in about["files"] if file["role"] == "data")
    address = f"{url}/v1/analyses/{name}/{data['name']}"
    start = httpx.get(address, headers={"Range": "bytes=0-3"})
    assert (start.status_code, start.content) == (206, b"\x89HDF")
    rest = httpx.get(address, headers={"Range": "bytes=4-"}).content
    assert len(rest) == data["size"] - 4
    with (
        xr.open_dataset(io.BytesIO(start.content + rest), engine="h5netcdf") as whole,
        xr.open_zarr(f"{url}/v1/data/{name}/zarr") as served,  # from a copy, made for it
    ):
        xr.testing.assert_equal(served[list(whole)[0]], whole[list(whole)[0]])
    table = next(file for file in about["files"] if file["role"] == "feedback")
    content = httpx.get(f"{url}/v1/analyses/{name}/{table['name']}").content
    assert pq.read_table(io.BytesIO(content)).num_rows > 0
    after = {"kind": "filtering", "valid_time": "2024-01-01T13:00:00Z", "members": 2, "steps": 3}
    second = ended(submit(url, **after))
    assert second["state"] == "succeeded", stack.output.read_text()
    chained = httpx.get(f"{url}/v1/analyses/{second['analysis_id']}").json()
    assert chained["background"]["analysis_id"] == name  # its restart file came from the bucket
    assert stack.interrupt() == 0
    with Catalogue(machine()) as elsewhere:
        assert elsewhere.rebuild() == 2
