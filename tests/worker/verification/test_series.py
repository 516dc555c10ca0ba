"""The time series: one file for each result, found by window, written whole and only once."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.domain.errors import StorageError
from worker.contract.kinds import FilteringSpec
from worker.contract.layout import Layout
from worker.results.manifest import AnalysisManifest, describe_file
from worker.results.verification.series import (
    SERIES_NAME,
    SERIES_SCHEMA,
    SeriesEntry,
    SeriesFilter,
    StatisticRow,
    append_to_series,
    find_series,
    newest_revisions,
    read_entry,
    read_series,
    series_table,
)

START = datetime(2003, 10, 31, 22, tzinfo=UTC)
ROWS = [
    StatisticRow("all", "all", "all", "chi2", 1.5, 400),
    StatisticRow("temp", "temperature", "400-600 hPa", "rms_background", 0.8, 20),
    StatisticRow("temp", "temperature", "all", "rms_background", float("nan"), 20),
]


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path).create()


def publish(layout, entry, rows=ROWS):
    """A result with its statistics, as a job leaves it."""
    folder = layout.analysis(entry.analysis_id)
    folder.mkdir()
    pq.write_table(series_table(entry, rows), folder / SERIES_NAME)
    return AnalysisManifest(
        id=entry.analysis_id,
        job_id="j",
        kind="filtering",
        valid_time=entry.valid_time,
        times=[entry.valid_time],
        flavour=entry.flavour,
        revision=entry.revision,
        files=[describe_file(folder / SERIES_NAME, "verification")],
        members=2,
        spec=FilteringSpec(valid_time=entry.valid_time),
    )


def entry_at(hour, flavour="early", revision=1, name=None):
    name = name or f"an-{hour}-{flavour}-{revision}"
    return SeriesEntry(START + timedelta(hours=hour), flavour, revision, name)


def test_rows_come_back_as_they_were(layout):
    entry = entry_at(0)
    assert append_to_series(layout, publish(layout, entry))
    table = read_series(layout, find_series(layout))
    assert table.schema.equals(SERIES_SCHEMA)
    assert table.to_pylist() == [
        {
            "valid_time": START, "flavour": "early", "revision": 1, "analysis_id": "an-0-early-1",
            "network": r.network, "variable": r.variable, "layer": r.layer,
            "statistic": r.statistic, "value": r.value, "count": r.count,
        }
        for r in ROWS[:2]
    ]  # fmt: skip


def test_twice_is_once_and_leaves_nothing_behind(layout):
    manifest = publish(layout, entry_at(0))
    for _ in range(2):
        append_to_series(layout, manifest)
    assert len(find_series(layout)) == 1
    assert [p.name for p in layout.verification.rglob("*") if p.is_file()] == [entry_at(0).name]


def test_windows_over_a_change_of_month_and_flavours(layout):
    for hour in range(5):
        for flavour, revision in (("early", 1), ("final", 2)):
            append_to_series(layout, publish(layout, entry_at(hour, flavour, revision)))
    append_to_series(layout, publish(layout, entry_at(3, "", 1, "an-job")))
    assert sorted(p.name for p in layout.verification.iterdir()) == ["200310", "200311"]
    found = find_series(layout, START + timedelta(hours=1), START + timedelta(hours=3), ["final"])
    assert [e.analysis_id for e in found] == ["an-1-final-2", "an-2-final-2", "an-3-final-2"]
    assert [e.analysis_id for e in find_series(layout, flavours=[""])] == ["an-job"]
    everything = find_series(layout)
    assert len(everything) == 11
    assert [e.valid_time for e in everything] == sorted(e.valid_time for e in everything)


def test_of_reruns_the_newest_revision_counts(layout):
    entries = [entry_at(0, "final", revision) for revision in (2, 3, 10)] + [entry_at(0)]
    assert {e.revision for e in newest_revisions(entries)} == {1, 10}


def test_filters(layout):
    append_to_series(layout, publish(layout, entry_at(0)))
    entries = find_series(layout)
    table = read_series(layout, entries, SeriesFilter(statistics=["chi2"]))
    assert table["value"].to_pylist() == [1.5]
    assert len(read_series(layout, entries, SeriesFilter(networks=["temp"], layers=["all"]))) == 0
    assert len(read_series(layout, [], SeriesFilter())) == 0


@pytest.mark.parametrize("flavour", ["early", ""])
def test_names_are_read_back(flavour):
    entry = entry_at(7, flavour, 12, "an-20031101t050000123-5b0e77d1")
    assert SeriesEntry.parse(entry.name) == entry
    for wrong in ("x.parquet", f".{entry.name}.ab12", entry.name.replace("20031101", "20031301")):
        assert SeriesEntry.parse(wrong) is None


def test_a_damaged_file_is_named_and_a_missing_one_is_empty(layout):
    entry = entry_at(0)
    assert len(read_entry(layout, entry)) == 0
    entry.path(layout).parent.mkdir(parents=True)
    entry.path(layout).write_bytes(b"PAR1 no more")
    with pytest.raises(StorageError, match=entry.name):
        read_entry(layout, entry)


def test_a_forecast_has_nothing_to_add(layout):
    manifest = publish(layout, entry_at(0)).model_copy(update={"files": []})
    assert not append_to_series(layout, manifest)
    assert find_series(layout) == []


def test_a_missing_source_is_said(layout):
    manifest = publish(layout, entry_at(0))
    (layout.analysis(manifest.id) / SERIES_NAME).unlink()
    with pytest.raises(StorageError, match="verification series"):
        append_to_series(layout, manifest)
    assert find_series(layout) == []


def test_dictionaries_of_many_files_are_joined(layout):
    for hour, network in enumerate(["temp", "synop", "ship"]):
        rows = [StatisticRow(network, "all", "all", "used", hour, hour)]
        append_to_series(layout, publish(layout, entry_at(hour), rows))
    table = read_series(layout, find_series(layout))
    assert table["network"].to_pylist() == ["temp", "synop", "ship"]
    assert isinstance(table["network"].combine_chunks(), pa.DictionaryArray | pa.ChunkedArray)
