"""The store: what readers see before, during and after publication and compaction."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.domain.errors import InvalidInput, ResourceExhausted, StorageError
from model.domain.observations import OBSERVATION_SCHEMA
from model.domain.windows import AssimilationWindow
from tests.objects.conftest import server
from tests.worker.tables import make_table
from worker.observations.store import store as publishing
from worker.observations.store.compaction import compact, compact_hour, sweep_hour
from worker.observations.store.store import ObservationStore

__all__ = ["server"]

DAY = datetime(2024, 1, 1, tzinfo=UTC)
NOW = DAY + timedelta(hours=12, minutes=30)


def hours(a, b):
    return AssimilationWindow(DAY + timedelta(hours=a), DAY + timedelta(hours=b))


def batch(name, *, received=NOW, minutes=(0, 30, 60, 90), **columns):
    """One row at each of `minutes` after 10 UTC."""
    times = np.datetime64("2024-01-01T10:00", "ns") + np.array(minutes) * np.timedelta64(1, "m")
    columns = {"time": times, "obs_value": 280.0 + np.array(minutes) / 100.0, **columns}
    return make_table(len(minutes), batch_id=name, received=received, **columns)


def publish(store, name, *, received=NOW, **columns):
    return store.publish(batch(name, received=received, **columns), name, received)


@pytest.fixture(params=["disk", "bucket"])
def store(request, tmp_path):
    if request.param == "disk":
        return ObservationStore(str(tmp_path / "obs"))
    server = request.getfixturevalue("server")
    return ObservationStore(server.observations_url, str(tmp_path / "copies"))


def rows(table):
    return sorted(
        zip(table["batch_id"].to_pylist(), table["observation_id"].to_pylist(), strict=True)
    )


def test_round_trip_keeps_every_column(store):
    table = batch(
        "b1", obs_error=np.array([1.0, np.nan, 2.0, 3.0]), rejected_by=[None, "track", None, None]
    )
    store.publish(table, "b1", NOW)
    back = store.read_window(hours(9, 13))
    assert back.schema == OBSERVATION_SCHEMA
    assert back.to_pylist() == table.to_pylist()


def test_files_of_an_earlier_version_are_read(tmp_path):
    """Without the columns that came later: they are null."""
    store, table = ObservationStore(str(tmp_path)), batch("b1")
    store.publish(table, "b1", NOW)
    for path in tmp_path.rglob("*.parquet"):
        old = pq.read_table(path).drop_columns(["scan_angle", "station_alias"])
        pq.write_table(old, path)
    assert store.read_window(hours(9, 13)).to_pylist() == table.to_pylist()
    store.publish(batch("b2", scan_angle=np.full(4, -48.5)), "b2", NOW)
    both = store.read_window(hours(9, 13))
    assert sorted(both["scan_angle"].to_pylist(), key=str) == [-48.5] * 4 + [None] * 4


def test_windows_exclude_their_start_and_include_their_end(store):
    publish(store, "b1")
    assert rows(store.read_window(hours(10, 11))) == [("b1", 1), ("b1", 2)]
    assert rows(store.read_window(hours(9, 10))) == [("b1", 0)]
    assert rows(store.read_window(hours(11, 12))) == [("b1", 3)]
    assert len(store.read_window(hours(12, 20))) == 0


def test_hourly_partitions_and_manifest(tmp_path):
    store = ObservationStore(str(tmp_path))
    manifest = publish(store, "b1")
    assert [f.path.rsplit("/", 1)[0] for f in manifest.files] == [
        "date=2024-01-01/hour=10", "date=2024-01-01/hour=11",
    ]  # fmt: skip
    assert manifest.rows == sum(f.rows for f in manifest.files) == 4
    assert (tmp_path / "batches/b1.json").exists()
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_half_published_batch_is_invisible(store, monkeypatch):
    real = publishing.write_file

    def dies_before_the_manifest(files, relative, content, **options):
        if relative.startswith("batches/"):
            raise StorageError("disk full")
        real(files, relative, content, **options)

    monkeypatch.setattr(publishing, "write_file", dies_before_the_manifest)
    with pytest.raises(StorageError):
        publish(store, "b1")
    assert len(store.read_window(hours(9, 13))) == 0
    monkeypatch.setattr(publishing, "write_file", real)
    # The next attempt decodes differently: its rows, and only its rows, are seen.
    publish(store, "b1", obs_value=[1.0, 2.0, 3.0, 4.0])
    assert store.read_window(hours(9, 13))["obs_value"].to_pylist() == [1.0, 2.0, 3.0, 4.0]


def test_publishing_twice_changes_nothing(store):
    first = publish(store, "b1")
    again = publish(store, "b1", obs_value=[1.0, 2.0, 3.0, 4.0])
    assert again == first
    assert len(store.read_window(hours(9, 13))) == 4


def test_any_past_cut_off_is_reproducible(store):
    late = NOW + timedelta(hours=5)
    publish(store, "b1")
    before = store.read_window(hours(9, 13), cut_off=NOW)
    publish(store, "b2", received=late)
    assert store.read_window(hours(9, 13), cut_off=NOW).equals(before)
    assert len(store.read_window(hours(9, 13), cut_off=late)) == 8
    compact(store.files, DAY, DAY + timedelta(hours=12), min_files=2, grace=timedelta(0))
    assert rows(store.read_window(hours(9, 13), cut_off=NOW)) == rows(before)
    assert len(store.read_window(hours(9, 13), cut_off=late)) == 8


def test_projection_and_restrictions(store):
    publish(store, "b1", report_type=["synop", "ship", "synop", "ship"])
    publish(store, "b2", variable="mean_sea_level_pressure", obs_value=np.full(4, 1e5))
    table = store.read_window(hours(9, 13), columns=["time", "obs_value"], report_types=["ship"])
    assert table.column_names == ["time", "obs_value"]
    assert len(table) == 2
    assert rows(store.read_window(hours(9, 13), variables=["mean_sea_level_pressure"])) == [
        ("b2", i) for i in range(4)
    ]
    assert len(store.read_window(hours(9, 13), batches=["b1"])) == 4


def test_used_only_and_row_limit(store):
    publish(store, "b1", rejected_by=["track", None, None, None])
    assert len(store.read_window(hours(9, 13), used_only=True)) == 3
    with pytest.raises(ResourceExhausted, match="at most 3 rows"):
        store.read_window(hours(9, 13), max_rows=3)


def test_empty_batch_is_published(store):
    manifest = store.publish(make_table(0), "b0", NOW)
    assert manifest.rows == 0
    assert store.files.manifest("b0") == manifest


def test_rows_of_another_batch_are_refused(store):
    with pytest.raises(InvalidInput, match="rows of batch 'b2' only"):
        store.publish(batch("b1"), "b2", NOW)


def test_unsafe_batch_id_is_refused(store):
    with pytest.raises(InvalidInput, match="batch id"):
        store.publish(make_table(0), "../x", NOW)


def test_compaction_keeps_rows_and_removes_files(store):
    for i in range(5):
        publish(store, f"b{i}", received=NOW + timedelta(minutes=i))
    before = store.read_window(hours(9, 13))
    report = compact(store.files, DAY, DAY + timedelta(hours=12), grace=timedelta(0))
    assert (report.hours, report.files_before, report.files_removed, report.rows) == (2, 10, 10, 20)
    assert rows(store.read_window(hours(9, 13))) == rows(before)
    assert len(store.files.visible(DAY + timedelta(hours=10)).paths) == 1
    # New arrivals after a compaction, and a second compaction.
    for i in range(5, 8):
        publish(store, f"b{i}", received=NOW + timedelta(minutes=i))
    assert len(store.read_window(hours(9, 13))) == 32
    compact(store.files, DAY, DAY + timedelta(hours=12), grace=timedelta(0))
    assert len(store.read_window(hours(9, 13))) == 32
    # A batch that was compacted away is still known.
    publish(store, "b0")
    assert len(store.read_window(hours(9, 13))) == 32


def test_readers_see_old_or_new_at_every_step_of_a_compaction(store):
    hour = DAY + timedelta(hours=10)
    for i in range(3):
        publish(store, f"b{i}")
    expected = rows(store.read_window(hours(9, 13)))
    compact_hour(store.files, hour)  # switched, nothing removed yet
    assert rows(store.read_window(hours(9, 13))) == expected
    assert sweep_hour(store.files, hour, timedelta(hours=1)) == 0  # too young
    assert sweep_hour(store.files, hour, timedelta(0)) == 3
    assert rows(store.read_window(hours(9, 13))) == expected


def test_crash_between_file_and_compaction_manifest(store, monkeypatch):
    from worker.observations.store import compaction

    for i in range(3):
        publish(store, f"b{i}")
    expected = rows(store.read_window(hours(9, 13)))
    real = compaction.write_file

    def dies(files, relative, content, **options):
        if "_compaction-" in relative:
            raise KeyboardInterrupt
        real(files, relative, content, **options)

    monkeypatch.setattr(compaction, "write_file", dies)
    with pytest.raises(KeyboardInterrupt):
        compact_hour(store.files, DAY + timedelta(hours=10))
    assert rows(store.read_window(hours(9, 13))) == expected
    monkeypatch.setattr(compaction, "write_file", real)
    compact_hour(store.files, DAY + timedelta(hours=10))
    assert rows(store.read_window(hours(9, 13))) == expected


def test_a_compaction_that_lost_the_race_leaves_no_trace(store, monkeypatch):
    from worker.observations.store import compaction

    hour = DAY + timedelta(hours=10)
    for i in range(3):
        publish(store, f"b{i}")
    real = compaction.write_file

    def overtaken(files, relative, content, **options):
        if "_compaction-" in relative:
            monkeypatch.setattr(compaction, "write_file", real)
            compact_hour(store.files, hour)
        real(files, relative, content, **options)

    monkeypatch.setattr(compaction, "write_file", overtaken)
    expected = rows(store.read_window(hours(9, 13)))
    with pytest.raises(StorageError, match="another writer won"):
        compact_hour(store.files, hour)
    assert rows(store.read_window(hours(9, 13))) == expected


def test_file_removed_under_a_reader_is_looked_for_again(store, monkeypatch):
    from worker.observations.store import files as observation_files

    hour = DAY + timedelta(hours=10)
    for i in range(3):
        publish(store, f"b{i}")
    expected = rows(store.read_window(hours(9, 13)))
    real = observation_files.StoreFiles.visible
    calls = []

    def stale_once(self, when, *rest):
        paths = real(self, when, *rest)
        if when == hour and not calls:
            calls.append(1)
            compact_hour(store.files, hour)
            sweep_hour(store.files, hour, timedelta(0))
        return paths

    monkeypatch.setattr(observation_files.StoreFiles, "visible", stale_once)
    assert rows(store.read_window(hours(9, 13))) == expected
    assert calls


def test_too_many_hours_are_refused(store, monkeypatch):
    monkeypatch.setattr(publishing, "MAX_HOURS", 1)
    with pytest.raises(InvalidInput, match="at most 1 different hours"):
        publish(store, "b1")


def test_reading_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, worker.observations.store.query as q, worker.observations.export; "
    code += "sys.exit('torch' in sys.modules or 'celery' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_published_tables_are_checked(store):
    with pytest.raises(InvalidInput, match="Expected the columns"):
        store.publish(pa.table({"a": [1]}), "b1", NOW)
