"""Sources and archives as users of a running system see them: API, metrics, and a pull to rows."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gateway_process import GatewayProcess
from typer.testing import CliRunner

from appa_client import AppaClient
from deploy.commands.sources import app
from tests.worker.decoders.bufr_messages import synop
from tests.worker.processes import Processes
from worker.contract.feeds import SourceStatus
from worker.observations.store.files import StoreFiles
from worker.observations.store.query import ObservationQuery, read_rows

MINUTE_AGO = datetime.now(UTC) - timedelta(minutes=1)


def test_sources_are_shown_with_backlog_lag_and_refusals(http, gateway, stores):
    status = SourceStatus(
        name="gb",
        broker="mqtts://gb.example.org",
        topics=["cache/#"],
        connected=True,
        since=MINUTE_AGO,
        backlog=7,
        lag_seconds=12.5,
        latency_seconds=1.5,
        received=20,
        duplicates=3,
        accepted=9,
        refused={"too_large": 1},
        last_received=MINUTE_AGO,
    )
    gone = SourceStatus(name="old", connected=True, reported=MINUTE_AGO)
    stores.sources.write([status, gone])
    with AppaClient(gateway.url) as client:
        found = {source.name: source for source in client.sources()}
    assert (found["gb"].backlog, found["gb"].lag_seconds) == (7, 12.5)
    assert found["gb"].connected and found["gb"].refused == {"too_large": 1}
    assert not found["old"].connected
    assert found["old"].detail.startswith("no report")
    lines = http.get("/metrics").text.splitlines()
    for line in (
        'appa_source_connected{source="gb"} 1.0',
        'appa_source_connected{source="old"} 0.0',
        'appa_source_backlog{source="gb"} 7.0',
        'appa_source_lag_seconds{source="gb"} 12.5',
        'appa_source_latency_seconds{source="gb"} 1.5',
        'appa_source_received_total{source="gb"} 20.0',
        'appa_source_accepted_total{source="gb"} 9.0',
        'appa_source_refused_total{reason="too_large",source="gb"} 1.0',
    ):
        assert line in lines
    stores.sources.write([])
    assert http.get("/v1/sources").json() == []
    assert not re.search("^appa_source.*gb", http.get("/metrics").text, re.M)


@pytest.fixture
def ingest(gateway: GatewayProcess, tmp_path: Path):
    """A real ingest worker of the gateway's installation."""
    folder = gateway.layout.root
    processes = Processes(gateway.redis_url, gateway.prefix, folder)
    processes.appa("worker", "ingest")
    yield
    processes.end()


def tree(root: Path) -> None:
    """One hour of an archive: two good files, NCEP's own form, and a table with other names."""
    hour = root / "gdas.20260301" / "06" / "atmos"
    hour.mkdir(parents=True)
    good = b"".join(synop(stationNumber=n, airTemperature=270.0 + n) for n in range(1, 4))
    (hour / "gdas.t06z.adpsfc.tm00.bufr_d").write_bytes(good)
    (hour / "gdas.t06z.prepbufr.nr").write_bytes(b"BUFR" + bytes(200))
    (hour / "gdas.t06z.readme.tm00.bufr_d").write_text("<html></html>")
    (hour / "gdas.t06z.pgrb2.0p25.f000").write_bytes(b"GRIB")
    day = root / "conv" / "adpsfc" / "NC000001" / "OBS_DATE=2026-03-01"
    day.mkdir(parents=True)
    foreign = pa.table(
        {"LAT": np.array([50.0]), "LON": np.array([10.0]), "TMDB": np.array([280.0])}
    )
    pq.write_table(foreign, day / "gdas.20260301.NC000001.parquet")


def pulled(gateway: GatewayProcess, *arguments: str) -> dict:
    data = ["--data", str(gateway.layout.root), "--url", gateway.url, "--json"]
    result = CliRunner().invoke(app, ["pull", *arguments, *data])
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def test_a_pull_ends_in_rows_and_names_what_is_not_read(gateway, ingest, tmp_path):
    tree(tmp_path)
    period = ["2026-03-01T05", "2026-03-01T07", "--root", str(tmp_path)]
    listed = pulled(gateway, "gdas", *period, "--dry-run")
    assert len(listed) == 3
    found = pulled(gateway, "gdas", *period)
    assert found["states"] == {"ingested": 1, "rejected": 1, "not_decoded": 1}
    unread = {Path(one["file"]).name: one["why"] for one in found["not_read"]}
    assert set(unread) == {"gdas.t06z.prepbufr.nr", "gdas.t06z.readme.tm00.bufr_d"}
    assert all(unread.values())
    query = ObservationQuery(
        start=datetime(2026, 3, 1, 5, tzinfo=UTC),
        end=datetime(2026, 3, 1, 6, tzinfo=UTC),
        variables=("2m_temperature",),
        limit=1000,
    )
    rows = read_rows(StoreFiles.of(gateway.layout), query)
    assert sorted(rows["obs_value"].to_pylist()) == [271.0, 272.0, 273.0]
    again = pulled(gateway, "gdas", *period)
    assert (again["done_before"], again["states"]) == (2, {"not_decoded": 1})
    parquet = pulled(gateway, "nnja", *period)
    assert parquet["states"] == {"rejected": 1}
    assert "OBS_DATE=2026-03-01" in parquet["not_read"][0]["file"]
