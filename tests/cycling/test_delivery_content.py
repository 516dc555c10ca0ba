"""The files of a plan decode to as many values as the audit counts, in the hour they belong to."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from planted import HOUR

from lab.rehearsal.content import Content, ReportSource
from lab.rehearsal.scenario import Scenario, delivery_plan
from model.domain.grids import bilinear, interpolate
from worker.observations.decoders.base import DecodeContext
from worker.observations.decoders.decode import decode_file

# 12 UTC, when sondes report, in the hour whose files come twice
DAY = replace(Scenario(), hours=8, copied_hour=6, silent_hour=None)
NOON = DAY.start + 6 * HOUR


@pytest.fixture(scope="module")
def files():
    plan = [d for d in delivery_plan(DAY) if d.hour == NOON]
    return plan, ReportSource(DAY).contents(plan)


@pytest.fixture(scope="module")
def odd_files():
    plan = [d for d in delivery_plan(DAY) if d.hour == NOON + HOUR]
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
        network = "satellite" if delivery.network == "radiances" else delivery.network
        assert set(table["report_type"].cast(pa.string()).to_pylist()) == {network}
        assert set(table["rejected_by"].to_pylist()) == {None}
        assert content.within(NOON - HOUR, NOON) == len(table)


def test_brightness_temperatures_of_the_dump_are_those_of_the_truth(files, tmp_path):
    """Errors of 0.3 K around the weights written here, on the truth's own levels."""
    plan, contents = files
    (delivery,) = [d for d in plan if d.network == "radiances" and d.part == 0]
    (tmp_path / "dump").write_bytes(contents[delivery.name].data)
    decoded = decode_file(tmp_path / "dump")
    assert decoded.report.notes["table_messages"] == 1
    frame = decoded.table.to_pandas()
    assert set(frame["platform"]) == {"amsu-a"} and set(frame["station_id"]) == {"sat003"}
    assert set(frame["vertical"]) == {4.0, 5.0, 6.0, 7.0, 8.0, 9.0}
    world = ReportSource(DAY).world
    levels = [c.level for c in world.channels if c.variable == "temperature"]
    column = [i for i, c in enumerate(world.channels) if c.variable == "temperature"]
    x = np.log(levels)
    weights = np.exp(-0.5 * ((x - np.log(700.0)) / 0.6) ** 2) * np.abs(np.gradient(x))
    states = np.stack([world.state(t).numpy()[column] for t in (NOON - HOUR, NOON)])
    mean = np.tensordot(weights / weights.sum(), states, (0, 1))
    own = frame[frame["vertical"] == 5.0]
    late = (own["time"] - (NOON - HOUR)).dt.total_seconds().to_numpy() / 3600.0
    where = bilinear(world.grid, own["lat"].to_numpy(), own["lon"].to_numpy())
    before, after = (interpolate(field, *where) for field in mean)
    error = own["obs_value"].to_numpy() - (1 - late) * before - late * after
    assert abs(error.mean()) < 5 * 0.3 / np.sqrt(len(error))
    assert error.std() == pytest.approx(0.3, rel=0.25)


def decoded_files(files, folder, network):
    """Return what is read from the files of a network, by part."""
    plan, contents = files
    found = {}
    for delivery in plan:
        if delivery.network == network and not delivery.copy_of:
            (folder / delivery.name).write_bytes(contents[delivery.name].data)
            arrived = DecodeContext(received_time=delivery.arrival)
            found[delivery.part] = decode_file(folder / delivery.name, context=arrived)
    return found


def test_every_family_of_files_is_among_those_of_a_day(files, tmp_path):
    sounders = decoded_files(files, tmp_path, "radiances")
    read = {
        part: (set(d.table["platform"].to_pylist()), set(d.table["vertical"].to_pylist()))
        for part, d in sounders.items()
    }
    assert read == {
        0: ({"amsu-a"}, {4.0, 5.0, 6.0, 7.0, 8.0, 9.0}),
        1: ({"amsu-a"}, {4.0, 5.0, 6.0, 7.0, 8.0, 9.0}),
        2: ({"atms"}, {5.0, 6.0, 7.0, 8.0, 9.0, 10.0}),
        3: ({"mhs"}, {3.0, 4.0, 5.0}),
    }
    prepared = decoded_files(files, tmp_path, "temp")[1]
    assert prepared.report.notes["table_messages"] == 1
    assert set(prepared.table["platform"].to_pylist()) == {"prepbufr-120", "prepbufr-220"}
    for network, part in (("aircraft", 1), ("scatterometer", 0)):
        assert decoded_files(files, tmp_path, network)[part].report.format == "archive"
    for network in ("buoy", "drifter", "amv"):
        assert len(decoded_files(files, tmp_path, network)[0].table) > 0


@pytest.mark.parametrize(
    ("network", "part", "form", "step"),
    [("synop", 1, "crex", {"2m_temperature": 0.006, "mean_sea_level_pressure": 5.1}),
     ("ship", 0, "text", {"2m_temperature": 0.051, "mean_sea_level_pressure": 5.1})],
)  # fmt: skip
def test_characters_come_with_all_values(odd_files, tmp_path, network, part, form, step):
    plan, contents = odd_files
    decoded = decoded_files(odd_files, tmp_path, network)[part]
    assert decoded.report.format == form and not decoded.report.rejected
    (content,) = [contents[d.name] for d in plan if (d.network, d.part) == (network, part)]
    np.testing.assert_array_equal(seconds(decoded.table), np.sort(content.seconds))
    sent = {
        (r["station_id"], r["variable"]): r["obs_value"]
        for r in ReportSource(DAY).observed(NOON + HOUR).to_pylist()
        if r["report_type"] == network
        and (network == "ship" or int(r["station_id"][-4:]) % 3 == part)
    }
    assert len(sent) == len(decoded.table)
    for row in decoded.table.to_pylist():
        exact = sent.pop((row["station_id"], row["variable"]))
        # 5 degrees and 0.5 m/s of a wind of up to 30 m/s.
        assert row["obs_value"] == pytest.approx(exact, abs=step.get(row["variable"], 3.2))


def test_prepared_sondes_come_with_their_values(files, tmp_path):
    """To half a unit of the last digit: 0.1 K, 1 mg/kg, 0.1 m/s."""
    decoded = decoded_files(files, tmp_path, "temp")[1].table
    names = ("station_id", "variable", "vertical")
    read = {tuple(r[n] for n in names): r["obs_value"] for r in decoded.to_pylist()}
    table = ReportSource(DAY).observed(NOON)
    sent = [r for r in table.to_pylist() if r["report_type"] == "temp"]
    sent = [r for r in sent if int(r["station_id"][-4:]) % 2 == 1]
    assert len(sent) == len(read) > 500
    tolerance = {"temperature": 0.051, "specific_humidity": 0.51e-6}
    for row in sent:
        found = read[tuple(row[n] for n in names)]
        assert found == pytest.approx(row["obs_value"], abs=tolerance.get(row["variable"], 0.051))


def test_land_stations_of_the_dump_come_with_all_their_values(files, tmp_path):
    plan, contents = files
    (delivery,) = [d for d in plan if d.network == "synop" and d.part == 2]
    (tmp_path / "dump").write_bytes(contents[delivery.name].data)
    decoded = decode_file(tmp_path / "dump")
    assert decoded.report.notes["table_messages"] == 1
    table = ReportSource(DAY).observed(NOON)
    sent = {
        (r["station_id"], r["variable"]): r["obs_value"]
        for r in table.to_pylist()
        if r["report_type"] == "synop" and int(r["station_id"][-4:]) % 3 == 2
    }
    tolerance = {"2m_temperature": 0.006, "mean_sea_level_pressure": 5.1}
    for row in decoded.table.to_pylist():
        exact = sent.pop((row["station_id"], row["variable"]))
        assert row["obs_value"] == pytest.approx(exact, abs=tolerance.get(row["variable"], 0.4))
    assert not sent


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
