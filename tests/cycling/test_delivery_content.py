"""The files of a plan decode to as many values as the audit counts, in the hour they belong to."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from planted import HOUR

from lab.rehearsal.content import Content, ReportSource
from lab.rehearsal.scenario import Scenario, delivery_plan
from worker.observations.decoders.decode import decode_file

# 12 UTC, when sondes report, in the hour whose files come twice
DAY = replace(Scenario(), hours=8, copied_hour=6, silent_hour=None)
NOON = DAY.start + 6 * HOUR


@pytest.fixture(scope="module")
def files():
    plan = [d for d in delivery_plan(DAY) if d.hour == NOON]
    return plan, ReportSource(DAY).contents(plan)


def seconds(table: pa.Table) -> np.ndarray:
    return np.sort(table["time"].cast(pa.int64()).to_numpy() // 10**9)


def test_every_file_decodes_to_the_values_that_are_counted(files, tmp_path):
    plan, contents = files
    assert {d.network for d in plan} == set(DAY.parts)
    for delivery in plan:
        content = contents[delivery.name]
        path = tmp_path / delivery.name
        path.write_bytes(content.data)
        table = decode_file(path).table
        np.testing.assert_array_equal(seconds(table), np.sort(content.seconds), delivery.name)
        assert set(table["report_type"].cast(pa.string()).to_pylist()) == {delivery.network}
        assert content.within(NOON - HOUR, NOON) == len(table)


def test_copies_are_the_same_bytes_or_the_same_reports_in_others(files, tmp_path):
    plan, contents = files
    for copy in (d for d in plan if d.copy_of):
        data, original = contents[copy.name].data, contents[copy.copy_of].data
        assert (data == original) is copy.same_bytes
        rows = []
        for name, content in (("copy", data), ("original", original)):
            (tmp_path / name).write_bytes(content)
            rows.append(decode_file(tmp_path / name).table.select(["station_id", "obs_value"]))
        assert rows[0].to_pylist() == rows[1].to_pylist()


def test_parts_share_no_station_and_leave_none_out(files):
    plan, contents = files
    parts = [contents[d.name] for d in plan if d.network == "synop" and not d.copy_of]
    # 400 stations, four variables each
    assert sum(len(c.seconds) for c in parts) == 4 * DAY.network.stations


def test_values_at_the_start_of_an_interval_are_outside_it():
    content = Content(b"x", np.array([100, 200, 300]))
    at = [datetime.fromtimestamp(s, UTC) for s in (100, 200, 300)]
    assert content.within(at[0], at[1]) == 1
    assert content.within(at[0], at[2]) == 2
