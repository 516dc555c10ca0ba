"""Below the disk watermark uploads and jobs are refused by name, and everything else goes on."""

import acting_worker
import httpx
from gateway_process import StartGateway

from worker.contract.store import open_stores

ROWS = b"station_id,time,lat,lon,variable,value\nx,2025-01-01T00:00:00Z,1,2,2m_temperature,280\n"
JOB = {"kind": "filtering", "valid_time": "2025-01-01T06:00:00Z"}


def metric(text: str, name: str) -> float:
    [line] = [one for one in text.splitlines() if one.startswith(f"{name} ")]
    return float(line.split()[1])


def test_work_is_refused_until_there_is_room(start_gateway: StartGateway, tmp_path) -> None:
    data = tmp_path / "data"
    gateway = start_gateway(data, APPA_DISK_LOW_BYTES=str(2**60))
    stores = open_stores(gateway.redis_url, gateway.prefix)
    acting_worker.report(stores)
    acting_worker.report(stores, queue="ingest")
    acting_worker.publish(gateway.layout, "an-there", {"a.nc": b"x"})
    with httpx.Client(base_url=gateway.url, timeout=30) as http:
        for answer in (
            http.post("/v1/observations", content=ROWS),
            http.post("/v1/jobs", json=JOB),
        ):
            problem = answer.json()
            assert (answer.status_code, problem["code"]) == (507, "disk_low")
            assert problem["context"]["needed_bytes"] == 2**60 * 5 // 4
            assert 0 < problem["context"]["free_bytes"] < 2**60
            assert int(answer.headers["retry-after"]) > 0
        assert http.get("/v1/analyses/an-there/a.nc").content == b"x"
        ready = http.get("/health/ready").json()
        assert ready["ready"] and not ready["checks"]["disk"]["ok"]
        assert any("New work is refused" in warning for warning in ready["warnings"])
        metrics = http.get("/metrics").text
        assert metric(metrics, "appa_disk_low") == 1
        assert metric(metrics, "appa_disk_free_bytes") < metric(metrics, "appa_disk_needed_bytes")
    gateway.stop()
    roomy = start_gateway(data, APPA_DISK_LOW_BYTES="0")
    with httpx.Client(base_url=roomy.url, timeout=30) as http:
        assert http.post("/v1/observations", content=ROWS).status_code == 202
        assert http.get("/health/ready").status_code == 503  # no worker under the new prefix
        assert metric(http.get("/metrics").text, "appa_disk_low") == 0
    stores.redis.close()


def test_pins(gateway, http: httpx.Client) -> None:
    acting_worker.publish(gateway.layout, "an-pinned", {"a.nc": b"x"})
    made = http.post("/v1/analyses/an-pinned/pin", json={"note": "the storm"})
    assert (made.status_code, made.json()["note"]) == (200, "the storm")
    again = http.post("/v1/analyses/an-pinned/pin")
    assert again.json() == made.json()
    assert [p["analysis_id"] for p in http.get("/v1/pins").json()] == ["an-pinned"]
    assert http.delete("/v1/analyses/an-pinned/pin").status_code == 204
    assert http.get("/v1/pins").json() == []
    for answer in (
        http.delete("/v1/analyses/an-pinned/pin"),
        http.post("/v1/analyses/an-none/pin"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert http.get("/v1/pins").json() == []
