"""From a file to rows in the store."""

import io
import json
import tarfile
from datetime import UTC, datetime, timedelta

import pytest

from model.domain.errors import ConfigurationError, DecodeError
from model.domain.windows import AssimilationWindow
from tests.worker.decoders.bufr_messages import synop
from worker.contract.batches import BatchRecord
from worker.contract.layout import Layout
from worker.observations.qc.run import run_checks
from worker.observations.store.store import ObservationStore
from worker.pipeline.ingest import IngestOptions, ingest, ingest_batch
from worker.sandbox import Limits

RECEIVED = datetime(2024, 1, 1, 12, 30, tzinfo=UTC)
WINDOW = AssimilationWindow(RECEIVED - timedelta(hours=6), RECEIVED)
AFTERWARDS = datetime(2026, 3, 1, 7, tzinfo=UTC)
ALL_TIMES = AssimilationWindow(datetime(2020, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC))
LIMITS = Limits(cpu_seconds=60, wall_seconds=60.0)

CSV = """time,lat,lon,variable,obs_value,station_id,units
2024-01-01T12:00:00Z,50,10,2m_temperature,281,a,K
2024-01-01T12:00:00Z,50,10,mean_sea_level_pressure,1013,a,hPa
2024-01-01T12:00:00Z,50,10,2m_temperature,281,a,K
2024-01-01T12:00:00Z,51,10,2m_temperature,25,b,K
2024-01-01T12:00:00Z,51,10,total_precipitation,2,b,mm
2024-01-01T12:00:00Z,95,10,2m_temperature,281,c,K
noon,52,10,2m_temperature,281,d,K
"""


@pytest.fixture
def store(tmp_path):
    return ObservationStore(str(tmp_path / "observations"))


def run(tmp_path, store, content, name="x.csv", batch="b1", **options):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    asked = IngestOptions(limits=LIMITS, **options)
    return ingest(batch, path, store=store, received_time=RECEIVED, options=asked)


def test_rows_errors_outcomes_and_counts(tmp_path, store):
    report = run(tmp_path, store, CSV, report_type="synop")
    rows = store.read_window(WINDOW).to_pylist()
    assert [(r["station_id"], r["rejected_by"]) for r in rows] == [
        ("a", None), ("a", None), ("a", "duplicate"), ("b", "bounds"), ("b", "passive"), ("c", "domain"),
    ]  # fmt: skip
    assert [r["obs_error"] for r in rows] == [2.5, 100.0, 2.5, 2.5, None, 2.5]
    assert {r["report_type"] for r in rows} == {"synop"}
    assert {r["received_time"] for r in rows} == {RECEIVED}
    summary = report.summary
    assert (summary.observations, summary.used, summary.undecoded) == (6, 2, 1)
    assert summary.by_rejection == {"bounds": 1, "domain": 1, "duplicate": 1, "passive": 1}
    assert summary.by_variable["2m_temperature"] == 4
    assert summary.decode_report["rejected"] == {"no_time": 1}
    assert report.manifest.rows == 6
    assert report.manifest.provenance["quality_control"]["bounds"]["enabled"]


def test_an_archive_of_several_forms(tmp_path, store):
    """Text, tables and BUFR in one compressed archive, through the limited process into the store."""
    metar = b"SADL31 EDZW 011220 CCA\nMETAR EDDF 011220Z 24015KT 9999 M01/M03 Q1013=\n"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, data in (("a.csv", CSV.encode()), ("b/metar.txt", metar), ("c.bufr", synop())):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    report = run(tmp_path, store, packed.getvalue(), "many.tgz", report_type="synop")
    decoded = report.summary.decode_report
    assert decoded["format"] == "archive"
    assert decoded["members"]["a.csv"] == 6 and decoded["members"]["b/metar.txt"] == 5
    # An empty SYNOP gives no row, and says so under its name.
    assert any(q["detail"].startswith("c.bufr: synop") for q in decoded["quarantined"])
    rows = store.read_window(WINDOW).to_pylist()
    found = {r["variable"]: r for r in rows if r["station_id"] == "EDDF"}
    assert found["2m_dewpoint_temperature"]["obs_value"] == pytest.approx(270.15)
    assert found["2m_dewpoint_temperature"]["obs_error"] == 3.0
    assert {r["rejected_by"] for r in found.values()} == {None}
    assert {r["update_sequence"] for r in found.values()} == {1}


def test_running_twice_gives_the_same(tmp_path, store):
    first = run(tmp_path, store, CSV)
    again = run(tmp_path, store, CSV)
    assert again == first
    assert len(store.read_window(WINDOW)) == 6


def test_overrides_of_errors_and_checks(tmp_path, store):
    entry = {"report_types": ["other"], "variable": "2m_temperature", "error": 0.5}
    run(
        tmp_path, store, CSV,
        errors=(None, {"entries": [entry]}),
        checks=({"bounds": {"enabled": False}},),
    )  # fmt: skip
    rows = store.read_window(WINDOW, variables=["2m_temperature"]).to_pylist()
    assert {r["obs_error"] for r in rows} == {0.5}
    assert "bounds" not in {r["rejected_by"] for r in rows}


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "x.bufr", "wrong_format"),
        (b"", "x.csv", "empty_file"),
        (b"PAR1" + b"\0" * 100, "x.parquet", "undecodable"),
        (b"time,lat\n1,2\n", "x.csv", "invalid_table"),
        (b"\x1f\x8b" + b"\0" * 50, "x.bufr", "undecodable"),
        (b"BUFR\0\0\1\4" + b"\xff" * 300, "x.bufr", None),
    ],
)
def test_bad_input_ends_in_a_typed_error(tmp_path, store, content, name, reason):
    with pytest.raises(DecodeError, match="at least one observation") as caught:
        run(tmp_path, store, content, name)
    assert reason is None or caught.value.context["reason"] == reason
    assert caught.value.context["decode_report"]["rows"] == 0
    assert list(store.files.batches()) == []


def test_faulty_override_is_found_before_decoding(tmp_path, store):
    with pytest.raises(ConfigurationError):
        run(tmp_path, store, CSV, checks=({"bound": {}},))


def test_stopping_between_steps_publishes_nothing(tmp_path, store):
    class LeaseLostError(Exception):
        pass

    def lost():
        raise LeaseLostError

    path = tmp_path / "x.csv"
    path.write_text(CSV)
    with pytest.raises(LeaseLostError):
        ingest("b1", path, store=store, received_time=RECEIVED, check_lease=lost)
    assert len(store.read_window(WINDOW)) == 0


def test_real_aircraft_reports(tmp_path, store, realdata_dir):
    path = realdata_dir / "bufr/aircraft/pdbufr__aircraft_small.bufr"
    options = IngestOptions(limits=LIMITS)
    report = ingest("b1", path, store=store, received_time=RECEIVED, options=options)
    assert report.summary.messages == 10
    assert report.summary.by_report_type == {"aircraft": report.summary.observations}
    assert report.summary.used > 0


def test_a_correction_named_by_the_senders_file_wins(tmp_path):
    layout = Layout(tmp_path).create()
    for batch_id, name, temperature in (
        ("b1", "A_ISMD01EDZW011200CCA_C_EDZW_20240101123000_2.bufr", 275.0),
        ("b2", "A_ISMD01EDZW011200_C_EDZW_20240101121000_1.bufr", 282.0),
    ):
        layout.raw_batch(batch_id).mkdir()
        layout.raw_file(batch_id).write_bytes(synop(airTemperature=temperature))
        batch = BatchRecord(
            id=batch_id,
            sha256="0" * 64,
            size=1,
            container="bufr",
            file_name=name,
            created=AFTERWARDS,
        )
        ingest_batch(batch, layout, lambda: None)
    table = ObservationStore(str(layout.observations)).read_window(ALL_TIMES)
    checked, _ = run_checks(table, "window")
    rows = {r["obs_value"]: (r["update_sequence"], r["rejected_by"]) for r in checked.to_pylist()}
    assert rows == {275.0: (1, None), 282.0: (0, "duplicate")}


def test_a_correction_of_equal_bytes_is_an_upload_of_its_own():
    names = ["ISMD01EDZW011200", "ISMD01EDZW011200CCA", "ISMD01EDZW011200CCB", "other.bufr"]
    for container, different in (("bufr", 3), ("text", 3), ("crex", 3), ("archive", 3), ("csv", 1)):
        keys = [
            BatchRecord(
                id="b", sha256="0" * 64, size=1, container=container, file_name=name
            ).identity
            for name in names
        ]
        assert keys[0] == keys[3]
        assert len(set(keys)) == different


def test_data_announced_as_updated_replace_those_before(tmp_path, store):
    """WIS2 says so with the link `update`; the bulletin need not have a mark of its own."""
    metar = "SADL31 EDZW 011220{}\nMETAR EDDF 011220Z 24015KT 9999 {} Q1013=\n"
    for batch, version, mark, air in (
        ("b1", 2, "", "05/M03"), ("b2", 0, "", "01/M03"), ("b3", 0, " CCA", "02/M03")
    ):  # fmt: skip
        run(tmp_path, store, metar.format(mark, air), f"{batch}.txt", batch, version=version)
    rows, _ = run_checks(store.read_window(WINDOW), "window")
    [used] = (
        row
        for row in rows.to_pylist()
        if row["variable"] == "2m_temperature" and row["rejected_by"] is None
    )
    assert (used["update_sequence"], used["obs_value"]) == (2, pytest.approx(278.15))


def test_an_update_of_equal_bytes_is_an_upload_of_its_own():
    keys = {
        BatchRecord(id="b", sha256="0" * 64, size=1, container="bufr", version=version).identity
        for version in (0, 1, 2, 2)
    }
    assert len(keys) == 3


def test_an_installation_and_an_upload_override_errors(tmp_path):
    def entries(error):
        return {
            "entries": [{"report_types": ["synop"], "variable": "2m_temperature", "error": error}]
        }

    layout = Layout(tmp_path).create()
    (tmp_path / "errors.yaml").write_text(json.dumps(entries(1.5)))
    (tmp_path / "checks.yaml").write_text("bounds: {enabled: false}\n")
    for name, errors, expected in (("b1", {}, 1.5), ("b2", entries(0.5), 0.5)):
        layout.raw_batch(name).mkdir()
        layout.raw_file(name).write_text(CSV)
        options = {"report_type": "synop", "errors": errors}
        batch = BatchRecord(
            id=name, sha256="0", size=1, container="csv", options=options, created=RECEIVED
        )
        summary = ingest_batch(batch, layout, lambda: None)
        assert "bounds" not in summary.by_rejection
        store = ObservationStore(str(layout.observations))
        table = store.read_window(WINDOW, batches=[name], variables=["2m_temperature"])
        assert set(table["obs_error"].to_pylist()) == {expected}
