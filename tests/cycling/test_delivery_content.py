"""The files of a plan decode to as many values as the audit counts, in the hour they belong to."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from planted import HOUR

from lab.rehearsal.content import DeliveryContent, indicator
from lab.rehearsal.scenario import Scenario, delivery_plan
from lab.rehearsal.source import ReportSource
from model.domain.grids import bilinear, interpolate
from model.domain.physics import dewpoint_from_specific_humidity
from worker.observations.decoders.base import DecodeContext
from worker.observations.decoders.decode import decode_file

# 12 UTC, when sondes report, in the hour whose files come twice
DAY = replace(Scenario(), hours=8, copied_hour=6, silent_hour=None)
NOON = DAY.start + 6 * HOUR


@pytest.fixture(scope="module")
def source():
    return ReportSource(DAY)


@pytest.fixture(scope="module")
def stations(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("stations") / "stations.csv"
    path.write_text(source.station_list())
    return path


@pytest.fixture(autouse=True)
def known_stations(stations, monkeypatch):
    monkeypatch.setenv("APPA_STATIONS", str(stations))


def read(path, delivery, content):
    """Return what is decoded of a file that has just arrived."""
    path.write_bytes(content.data)
    options = {"report_type": content.report_type} if content.report_type else {}
    context = DecodeContext(received_time=delivery.arrival, options=options)
    return decode_file(path, context=context)


@pytest.fixture(scope="module")
def files(source):
    plan = [d for d in delivery_plan(DAY) if d.hour == NOON]
    return plan, source.contents(plan)


@pytest.fixture(scope="module")
def odd_files(source):
    plan = [d for d in delivery_plan(DAY) if d.hour == NOON + HOUR]
    return plan, source.contents(plan)


def seconds(table: pa.Table) -> np.ndarray:
    return np.sort(table["time"].cast(pa.int64()).to_numpy() // 10**9)


def test_every_file_decodes_to_the_values_that_are_counted(files, tmp_path):
    plan, contents = files
    assert {d.network for d in plan} == set(DAY.parts)
    for delivery in plan:
        content = contents[delivery.name]
        table = read(tmp_path / delivery.name, delivery, content).table
        np.testing.assert_array_equal(seconds(table), np.sort(content.seconds), delivery.name)
        network = "satellite" if delivery.network == "radiances" else delivery.network
        assert set(table["report_type"].cast(pa.string()).to_pylist()) == {network}
        assert set(table["rejected_by"].to_pylist()) == {None}
        assert content.within(NOON - HOUR, NOON) == len(table)


def test_brightness_temperatures_of_the_dump_are_those_of_the_truth(files, source, tmp_path):
    """Errors of 0.3 K around the weights written here, on the truth's own levels."""
    plan, contents = files
    (delivery,) = [d for d in plan if d.network == "radiances" and d.part == 0]
    (tmp_path / "dump").write_bytes(contents[delivery.name].data)
    decoded = decode_file(tmp_path / "dump")
    assert decoded.report.notes["table_messages"] == 1
    frame = decoded.table.to_pandas()
    assert set(frame["platform"]) == {"amsu-a"} and set(frame["station_id"]) == {"sat003"}
    assert set(frame["vertical"]) == {4.0, 5.0, 6.0, 7.0, 8.0, 9.0}
    world = source.world
    levels = [c.level for c in world.channels if c.variable == "temperature"]
    column = [i for i, c in enumerate(world.channels) if c.variable == "temperature"]
    x = np.log(levels)
    weights = np.exp(-0.5 * ((x - np.log(650.0)) / 0.6) ** 2) * np.abs(np.gradient(x))
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
            content = contents[delivery.name]
            found[delivery.part] = read(folder / delivery.name, delivery, content)
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
    forms = {
        (network, part): decoded.report.format
        for network in ("satellite", "gridded", "pilot", "synop", "temp")
        for part, decoded in decoded_files(files, tmp_path, network).items()
    }
    assert forms == {
        ("satellite", 0): "parquet", ("satellite", 1): "ioda-netcdf", ("satellite", 2): "odb2",
        ("gridded", 0): "grib", ("pilot", 0): "text",
        ("synop", 0): "bufr", ("synop", 1): "bufr", ("synop", 2): "bufr", ("synop", 3): "text",
        ("temp", 0): "bufr", ("temp", 1): "bufr", ("temp", 2): "text",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("network", "part", "form", "step"),
    [("synop", 1, "crex", {"2m_temperature": 0.006, "mean_sea_level_pressure": 5.1}),
     ("ship", 0, "text", {"2m_temperature": 0.051, "mean_sea_level_pressure": 5.1})],
)  # fmt: skip
def test_characters_come_with_all_values(odd_files, source, tmp_path, network, part, form, step):
    plan, contents = odd_files
    decoded = decoded_files(odd_files, tmp_path, network)[part]
    assert decoded.report.format == form and not decoded.report.rejected
    (content,) = [contents[d.name] for d in plan if (d.network, d.part) == (network, part)]
    np.testing.assert_array_equal(seconds(decoded.table), np.sort(content.seconds))
    sent = {
        (r["station_id"], r["variable"]): r["obs_value"]
        for r in source.observed(NOON + HOUR).to_pylist()
        if r["report_type"] == network
        and (network == "ship" or int(r["station_id"][-4:]) % 4 == part)
    }
    assert len(sent) == len(decoded.table)
    for row in decoded.table.to_pylist():
        exact = sent.pop((row["station_id"], row["variable"]))
        # 5 degrees and 0.5 m/s of a wind of up to 30 m/s.
        assert row["obs_value"] == pytest.approx(exact, abs=step.get(row["variable"], 3.2))


def sent_by(source, hour, network, part=0, parts=1):
    """Return what was simulated for one file, by station, variable and level."""
    rows = source.observed(hour).to_pylist()
    return {
        (r["station_id"], r["variable"], r["vertical"]): r
        for r in rows
        if r["report_type"] == network and int(r["station_id"][-4:]) % parts == part
    }


@pytest.mark.parametrize("hour", [NOON, NOON + HOUR])
def test_aerodromes_come_with_their_values_and_places(source, tmp_path, hour):
    """Tenths of a degree and of a hPa in the remarks; 10 degrees and whole knots."""
    plan = [d for d in delivery_plan(DAY) if (d.hour, d.network, d.part) == (hour, "synop", 3)]
    content = source.contents(plan)[plan[0].name]
    decoded = read(tmp_path / "metar", plan[0], content)
    assert not decoded.report.rejected and set(decoded.table["platform"].to_pylist()) == {"metar"}
    sent = sent_by(source, hour, "synop", 3, 4)
    exact = {(indicator(key[0]), *key[1:]): row for key, row in sent.items()}
    assert len(exact) == len(decoded.table) > 300
    for row in decoded.table.to_pylist():
        key = row["station_id"], row["variable"], row["vertical"]
        true = exact[key]
        tolerance = {"2m_temperature": 0.051, "mean_sea_level_pressure": 5.1}.get(row["variable"])
        if tolerance is None:
            wind = [exact[key[0], f"10m_{c}_component_of_wind", None]["obs_value"] for c in "uv"]
            tolerance = np.hypot(*wind) * np.sin(np.deg2rad(5.01)) + 0.26
        assert row["obs_value"] == pytest.approx(true["obs_value"], abs=tolerance), row
        for name in ("lat", "lon", "elevation", "time"):
            assert row[name] == true[name]


@pytest.mark.parametrize(("network", "part", "parts"), [("temp", 2, 3), ("pilot", 0, 1)])
def test_ascents_in_characters_come_with_their_values(
    files, source, tmp_path, network, part, parts
):
    """0.1 K where tenths are even above zero and odd below, 5 degrees, whole knots, 0.5 K of dewpoint."""
    decoded = decoded_files(files, tmp_path, network)[part]
    assert not decoded.report.rejected
    sent = sent_by(source, NOON, network, part, parts)
    for row in decoded.table.to_pylist():
        key = row["station_id"], row["variable"], row["vertical"]
        true = sent.pop(key)["obs_value"]
        sent[key] = {"obs_value": true, "found": True}
        if row["variable"] == "temperature":
            assert row["obs_value"] == pytest.approx(true, abs=0.151)
        elif row["variable"] == "specific_humidity":
            level = np.array(row["vertical"])
            dewpoints = dewpoint_from_specific_humidity(np.array([true, row["obs_value"]]), level)
            assert abs(np.diff(dewpoints)) < 0.151 + 0.51
        else:
            wind = [sent[key[0], f"{c}_component_of_wind", key[2]]["obs_value"] for c in "uv"]
            limit = np.hypot(*wind) * np.sin(np.deg2rad(2.51)) + 0.26
            assert row["obs_value"] == pytest.approx(true, abs=limit)
    left = {key: row["obs_value"] for key, row in sent.items() if "found" not in row}
    assert len(sent) > 200 and {variable for _, variable, _ in left} <= {"specific_humidity"}
    for (station, _, level), humidity in left.items():  # has no depression that TEMP can tell
        dewpoint = dewpoint_from_specific_humidity(np.array(humidity), np.array(level))
        depression = sent[station, "temperature", level]["obs_value"] - dewpoint
        assert depression < 0.0 or depression > 49.0


@pytest.mark.parametrize(("part", "step"), [(1, 2.0**-15), (2, 0.0)])
def test_retrievals_of_archives_come_with_their_values(files, source, tmp_path, part, step):
    """IODA-style NetCDF has 32 bits, 24 of them for the digits; ODB-2 has 64."""
    decoded = decoded_files(files, tmp_path, "satellite")[part]
    assert not decoded.report.rejected
    start = (NOON - HOUR).timestamp()
    thirds = [start + 3_600.0 * n / 3 for n in (part, part + 1)]
    sent = [
        r
        for r in source.observed(NOON).to_pylist()
        if r["report_type"] == "satellite" and r["variable"] != "brightness_temperature"
        and (thirds[0] <= r["time"].timestamp() < thirds[1] or (part == 2 and r["time"] == NOON))
    ]  # fmt: skip
    found = decoded.table.to_pylist()
    assert len(sent) == len(found) > 500

    def order(row):
        return row["variable"], row["vertical"], row["time"].replace(microsecond=0), row["lat"]

    for one, other in zip(sorted(sent, key=order), sorted(found, key=order), strict=True):
        assert one["variable"] == other["variable"] and one["station_id"] == other["station_id"]
        assert int(one["time"].timestamp()) == other["time"].timestamp()
        scale = {"temperature": 273.0, "specific_humidity": 0.02}[one["variable"]]
        assert other["obs_value"] == pytest.approx(one["obs_value"], abs=step * scale / 256 + 1e-12)
        for name in ("lat", "lon", "vertical"):
            assert other[name] == pytest.approx(one[name], rel=step / 256 + 1e-12, abs=1e-12)
        assert other["obs_error"] == (None if part == 1 else pytest.approx(one["obs_error"]))


@pytest.mark.parametrize(("hour", "edition"), [(NOON, 2), (NOON + HOUR, 1)])
def test_fields_of_another_centre_come_with_their_values(source, tmp_path, hour, edition):
    """24 bits between the least and the greatest value of a field."""
    plan = [d for d in delivery_plan(DAY) if (d.hour, d.network) == (hour, "gridded")]
    content = source.contents(plan)[plan[0].name]
    assert content.data[7] == edition
    decoded = read(tmp_path / "field", plan[0], content)
    assert decoded.report.decoded == 3 and not decoded.report.rejected
    fields = {}
    for row in source.observed(hour).to_pylist():
        if row["report_type"] == "gridded":
            place = row["lat"], row["lon"]
            fields.setdefault((row["variable"], row["vertical"]), {})[place] = row["obs_value"]
    assert {key: len(points) for key, points in fields.items()} == dict.fromkeys(
        [("2m_temperature", None), ("temperature", 50_000.0), ("temperature", 85_000.0)], 17 * 36
    )
    assert len(decoded.table) == 3 * 17 * 36
    for row in decoded.table.to_pylist():
        field = fields[row["variable"], row["vertical"]]
        place = round(row["lat"], 9), round(row["lon"], 9)
        step = np.ptp(list(field.values())) / 2**23
        assert row["obs_value"] == pytest.approx(field[place], abs=step)
        assert row["time"] == hour and row["obs_error"] is None


def test_prepared_sondes_come_with_their_values(files, source, tmp_path):
    """To half a unit of the last digit: 0.1 K, 1 mg/kg, 0.1 m/s."""
    decoded = decoded_files(files, tmp_path, "temp")[1].table
    names = ("station_id", "variable", "vertical")
    read = {tuple(r[n] for n in names): r["obs_value"] for r in decoded.to_pylist()}
    table = source.observed(NOON)
    sent = [r for r in table.to_pylist() if r["report_type"] == "temp"]
    sent = [r for r in sent if int(r["station_id"][-4:]) % 3 == 1]
    assert len(sent) == len(read) > 400
    tolerance = {"temperature": 0.051, "specific_humidity": 0.51e-6}
    for row in sent:
        found = read[tuple(row[n] for n in names)]
        assert found == pytest.approx(row["obs_value"], abs=tolerance.get(row["variable"], 0.051))


def test_land_stations_of_the_dump_come_with_all_their_values(files, source, tmp_path):
    plan, contents = files
    (delivery,) = [d for d in plan if d.network == "synop" and d.part == 2]
    (tmp_path / "dump").write_bytes(contents[delivery.name].data)
    decoded = decode_file(tmp_path / "dump")
    assert decoded.report.notes["table_messages"] == 1
    table = source.observed(NOON)
    sent = {
        (r["station_id"], r["variable"]): r["obs_value"]
        for r in table.to_pylist()
        if r["report_type"] == "synop" and int(r["station_id"][-4:]) % 4 == 2
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
    content = DeliveryContent(b"x", np.array([100, 200, 300]))
    at = [datetime.fromtimestamp(s, UTC) for s in (100, 200, 300)]
    assert content.within(at[0], at[1]) == 1
    assert content.within(at[0], at[2]) == 2
