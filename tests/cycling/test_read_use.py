"""What the audit reads from a feedback file, on files written by hand."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lab.rehearsal.day import phase_seconds
from lab.rehearsal.evidence import BatchUse, read_use
from model.domain.observations import QC_FLAGS, empty_table
from tests.worker.tables import make_table
from worker.observations.columns import reject
from worker.pipeline.departures import to_feedback


def rejected(table: pa.Table, **rows: list[int]) -> pa.Table:
    for name, places in rows.items():
        table = reject(table, np.isin(np.arange(len(table)), places), QC_FLAGS[name])
    return table


def written(tmp_path, *tables: pa.Table, name: str = "feedback.parquet"):
    path = tmp_path / name
    pq.write_table(to_feedback(pa.concat_tables(tables).unify_dictionaries()), path)
    return path


def test_rows_are_counted_by_upload_and_outcome(tmp_path):
    first = rejected(
        make_table(10, batch_id="a"), bounds=[0], late=[1, 2], thinned=[3], withheld=[4]
    )
    second = rejected(make_table(4, batch_id="b"), duplicate=[0, 1, 2, 3])
    merged = make_table(1, batch_id="superobservations", station_id=["superob-2"])
    batches, used, repeated, _ = read_use(written(tmp_path, first, second, merged))
    # thinned and withheld rows had entered, spoilt and late ones had not
    assert batches == {"a": BatchUse(10, 2, 7, 5, 0), "b": BatchUse(4, 0, 0, 0, 4)}
    assert used == 6  # five and the merged one
    assert repeated == 0


def test_values_without_an_error_that_came_too_late_did_not_enter(tmp_path):
    received = np.array(["2024-01-01T12:54", "2024-01-01T12:56"] * 3, "datetime64[ns]")
    table = rejected(
        make_table(6, batch_id="a", received_time=received), passive=[0, 1, 2, 3], bounds=[4]
    )
    path, cut_off = written(tmp_path, table), datetime(2024, 1, 1, 12, 55, tzinfo=UTC)
    (use,) = read_use(path, cut_off)[0].values()
    # two passive ones in time, and the last row, which its own check would have called late
    assert (use.late, use.entered, use.used) == (2, 3, 1)
    assert read_use(path)[0]["a"].entered == 5
    assert read_use(path)[3] != read_use(path, cut_off)[3]


def test_values_that_are_used_twice_are_seen_whatever_their_upload(tmp_path):
    tables = make_table(5, batch_id="a"), make_table(5, batch_id="b", variable="surface_pressure")
    assert read_use(written(tmp_path, *tables))[2] == 0
    tables = make_table(5, batch_id="a"), make_table(5, batch_id="b")
    assert read_use(written(tmp_path, *tables))[2] == 5


def test_the_digest_knows_values_not_names_or_order_of_uploads(tmp_path):
    one, two = make_table(5, batch_id="a"), make_table(4, batch_id="b", variable="surface_pressure")
    renamed = make_table(5, batch_id="x"), make_table(4, batch_id="y", variable="surface_pressure")
    other = make_table(5, batch_id="a", obs_value=np.full(5, 286.0))
    digests = [
        read_use(written(tmp_path, *tables, name=f"{i}.parquet"))[3]
        for i, tables in enumerate(
            [(one, two), tuple(reversed(renamed)), (other, two), (rejected(one, late=[0]), two)]
        )
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_an_analysis_without_observations(tmp_path):
    batches, used, repeated, digest = read_use(written(tmp_path, empty_table()))
    assert (batches, used, repeated) == ({}, 0, 0)
    assert len(digest) == 64


def test_phases_are_those_of_the_last_attempt():
    def event(ms, kind, **data):
        return f"{ms}-0", kind, data

    events = [
        event(1000, "state", state="queued"),
        event(1500, "state", state="running"),
        event(1600, "progress", phase="gathering"),
        event(9000, "state", state="queued"),
        event(10_000, "state", state="running"),
        event(10_100, "progress", phase="gathering"),
        event(10_300, "progress", phase="sampling"),
        event(10_900, "progress", phase="sampling"),
        event(15_300, "progress", phase="writing"),
        event(16_000, "state", state="succeeded"),
    ]
    assert phase_seconds(events) == {"gathering": 0.2, "sampling": 5.0, "writing": 0.7}
