"""What comes twice counts once: corrections, aliases, ascents in two forms, one barometer."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from tests.worker.qc.clean import join
from tests.worker.tables import RECEIVED, make_table
from worker.observations.columns import time_column
from worker.observations.qc.base import QCContext, load_parameters
from worker.observations.qc.run import run_checks
from worker.observations.stations import canonical_station, identifiers, station_codes
from worker.pipeline.departures import to_feedback

EARLY = datetime(2024, 1, 1, 12, 5, tzinfo=UTC)
REPORT = {"2m_temperature": 282.0, "surface_pressure": 101000.0}
NOON = np.datetime64("2024-01-01T12:00", "ns")
MINUTE = np.timedelta64(1, "m")


def report(values=REPORT, *, station="10383", **columns):
    return make_table(
        len(values),
        **{
            "station_id": [station] * len(values),
            "variable": list(values),
            "obs_value": np.array(list(values.values())),
            "lat": 50.0,
            "lon": 10.0,
            **columns,
        },
    )


def outcomes(*tables, stage="window", outside_window=None, already_assimilated=None, **parameters):
    context = QCContext(
        parameters=load_parameters(parameters or None),
        outside_window=outside_window,
        already_assimilated=already_assimilated,
    )
    table = pa.concat_tables(tables).unify_dictionaries()
    return run_checks(table, stage, context)[0]["rejected_by"].to_pylist()


@pytest.mark.parametrize("arrivals", [(EARLY, RECEIVED), (RECEIVED, EARLY)])
def test_a_correction_replaces_what_it_no_longer_says(arrivals):
    first = report(received=arrivals[0], batch_id="b1")
    corrected = report(
        {"surface_pressure": 100900.0}, received=arrivals[1], batch_id="b2", update_sequence=1
    )
    assert outcomes(first, corrected) == ["duplicate", "duplicate", None]
    assert outcomes(corrected, first) == [None, "duplicate", "duplicate"]


def test_the_later_of_two_corrections_wins_though_it_came_first():
    versions = [
        report({"2m_temperature": t}, batch_id=f"b{n}", update_sequence=n, received=when)
        for n, t, when in ((2, 275.0, EARLY), (1, 290.0, RECEIVED), (0, 282.0, RECEIVED))
    ]
    assert outcomes(*versions) == [None, "duplicate", "duplicate"]


def test_a_correction_is_of_one_station_time_and_network():
    corrected = report({"surface_pressure": 100900.0}, update_sequence=1)
    others = [
        report(station="10384", lat=51.0),
        report(time=NOON - 60 * MINUTE),
        report({"total_column_water_vapour": 12.0}, report_type="gnss"),
    ]
    assert set(outcomes(corrected, *others)) == {None}


def test_a_late_correction_replaces_nothing():
    first = report(received=EARLY)
    corrected = report({"surface_pressure": 100900.0}, update_sequence=1, batch_id="b2")
    table = join(first, corrected)
    checked, _ = run_checks(
        table, "window", QCContext(cut_off=datetime(2024, 1, 1, 12, 10, tzinfo=UTC))
    )
    assert checked["rejected_by"].to_pylist() == [None, None, "late"]


def test_an_empty_value_of_a_correction_withdraws():
    corrected = report({"2m_temperature": np.nan}, update_sequence=1)
    assert outcomes(report(), corrected, stage="pre") == ["duplicate", "duplicate", "missing"]


def test_a_corrected_call_sign_under_its_wigos_identifier():
    ship = {"report_type": "ship", "lat": 40.0}
    first = report({"mean_sea_level_pressure": 101000.0}, station="DBLK", **ship)
    corrected = report(
        {"mean_sea_level_pressure": 100800.0}, station="0-20003-0-DBLK", update_sequence=1, **ship
    )
    assert outcomes(first, corrected) == ["duplicate", None]


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("0-20000-0-10382", "10382"),
        ("0-20000-0-06260", "06260"),
        ("0-20001-0-10393", "10393"),
        ("0-20002-0-62170", "62170"),
        ("6400787", "64787"),  # ECMWF, "WMO platform identifiers": a unique platform
        ("0-20002-0-6400787", "64787"),
        ("6412345", "6412345"),  # has no form of five digits
        ("0-20000-0-6260", "06260"),
        ("0-20003-0-DBLK", "DBLK"),
        ("10382", "10382"),
        ("0-20000-1-10382", "0-20000-1-10382"),  # issue number 1: another station of that number
        ("0-276-0-10382", "0-276-0-10382"),  # Germany's own numbering
        ("0-20008-0-HPB", "0-20008-0-HPB"),
    ],
)
def test_canonical_identifiers(name, canonical):
    assert canonical_station(name) == canonical
    assert identifiers(name)[0] == canonical and name in identifiers(name)


def test_a_buoy_in_an_old_code_and_in_bufr_is_one():
    pressure = {"mean_sea_level_pressure": 101000.0}
    tac = report(pressure, station="64787", report_type="buoy", batch_id="b1", received=EARLY)
    bufr = report(pressure, station="6400787", report_type="buoy", batch_id="b2")
    assert outcomes(tac, bufr) == [None, "duplicate"]
    assert outcomes(tac, blocklist={"entries": [{"station": "6400787"}]}) == ["blocklist"]


def test_a_countrys_identifier_is_linked_by_the_number_beside_it():
    national = report(station="0-756-0-PAY", station_alias=["06610"] * 2)
    alone = report(station="0-756-0-PAY", time=NOON - 60 * MINUTE)
    table = pa.concat_tables([national, report(station="06610"), alone]).unify_dictionaries()
    codes, names = station_codes(table)
    assert names == ["06610"] and set(codes) == {0}
    assert outcomes(national, report(station="06610")) == [None, None, "duplicate", "duplicate"]
    feedback = to_feedback(table)
    assert set(feedback["canonical_station"].to_pylist()) == {"06610"}
    assert set(feedback["station_id"].to_pylist()) == {"0-756-0-PAY", "06610"}


def test_a_number_beside_several_identifiers_links_none():
    stations = [
        report(station=f"0-404-0-{n}", station_alias=["63999"] * 2, lat=float(n)) for n in range(3)
    ]
    assert set(outcomes(*stations)) == {None}


def test_withholding_and_blocklist_know_the_station_by_any_identifier():
    both = join(report(), report(station="0-20000-0-10383", time=NOON - 60 * MINUTE))
    for name in ("10383", "0-20000-0-10383"):
        named = {"withholding": {"share": 0.0, "stations": [name]}, "barometer": {"enabled": False}}
        assert set(outcomes(both, stage="select", **named)) == {"withheld"}
        assert set(outcomes(both, blocklist={"entries": [{"station": name}]})) == {"blocklist"}
    share = {"withholding": {"share": 0.5}, "barometer": {"enabled": False}}
    for number in range(10, 40):
        pair = join(report(station=f"103{number}"), report(station=f"0-20000-0-103{number}"))
        assert len(set(outcomes(pair, stage="select", **share))) == 1


def test_a_ship_that_jumps_under_two_identifiers():
    fixes = {"report_type": "ship", "station_id": ["DBLK", "0-20003-0-DBLK", "DBLK"]}
    times = NOON - np.array([120, 60, 0]) * MINUTE
    table = make_table(3, time=times, lat=50.0, lon=np.array([0.0, 60.0, 0.1]), **fixes)
    assert outcomes(table) == [None, "track", None]


def test_one_call_sign_at_two_places_in_a_minute():
    for seconds in (0, 40):
        times = NOON - np.array([60 * 60, 0, seconds]) * np.timedelta64(1, "s")
        table = make_table(
            3, report_type="ship", station_id=["DBLK"] * 3, time=times,
            lat=50.0, lon=np.array([0.0, 0.1, 60.0]),
        )  # fmt: skip
        assert outcomes(table) == [None, "track", "track"]


def test_one_wrong_fix_among_many_of_an_aircraft_goes_alone():
    times = NOON - np.arange(10) * np.timedelta64(5, "s")
    lon = 10.0 - np.arange(10) * 0.015
    lon[4] = -10.0
    table = make_table(
        10, report_type="aircraft", station_id=["EU1234"] * 10, time=times, lat=50.0, lon=lon,
        vertical_kind="pressure", vertical=np.full(10, 25000.0), variable="temperature",
        obs_value=np.full(10, 220.0),
    )  # fmt: skip
    assert [n for n, name in enumerate(outcomes(table)) if name] == [4]


def ascent(levels, *, launch=NOON, drift=True, station="10393", **columns):
    """Temperatures of one ascent; with drift each level has its own time, 10 s after the one before."""
    count = len(levels)
    times = launch + np.arange(count) * np.timedelta64(10 if drift else 0, "s")
    return make_table(
        count,
        **{
            "report_type": "temp", "station_id": [station] * count, "time": times,
            "lat": 52.2, "lon": 14.1 + (np.arange(count) * 0.001 if drift else 0.0),
            "vertical_kind": "pressure", "vertical": np.asarray(levels, float),
            "variable": "temperature", "obs_value": np.linspace(280.0, 220.0, count),
            "profile_id": np.zeros(count), **columns,
        },
    )  # fmt: skip


DENSE = np.linspace(100000.0, 20000.0, 41)
STANDARD = np.array([100000.0, 92500, 85000, 70000, 50000, 40000, 30000, 25000, 20000])


@pytest.mark.parametrize("arrivals", [(EARLY, RECEIVED), (RECEIVED, EARLY)])
@pytest.mark.parametrize("minutes", [0, 45, 60])
def test_one_ascent_as_sent_and_as_converted(arrivals, minutes):
    native = ascent(DENSE, launch=NOON - minutes * MINUTE, received=arrivals[0])
    converted = ascent(STANDARD, drift=False, batch_id="tac", received=arrivals[1])
    assert outcomes(native, converted) == [None] * 41 + ["duplicate"] * 9
    assert outcomes(converted, native) == ["duplicate"] * 9 + [None] * 41


def windows_of(*tables):
    """The rows up to noon, and those after it: an ascent that ends an hour later is in both."""
    table = pa.concat_tables(tables).unify_dictionaries()
    early = time_column(table) <= NOON.astype(np.int64)
    return table.filter(pa.array(early)), table.filter(pa.array(~early))


def test_an_ascent_over_the_edge_of_a_window_is_used_once_in_its_better_form():
    native = ascent(DENSE, launch=NOON - 2 * MINUTE, batch_id="native")
    converted = ascent(STANDARD, drift=False, batch_id="tac")
    first, second = windows_of(native, converted)
    assert len(second) == 28
    alone = outcomes(first)
    assert alone == [None] * 13 + ["duplicate"] * 9 or alone == ["duplicate"] * 13 + [None] * 9
    assert outcomes(first, outside_window=second) == [None] * 13 + ["duplicate"] * 9
    assert outcomes(second, outside_window=first) == [None] * 28


def test_a_form_cut_by_a_window_does_not_lose_to_the_one_that_lies_in_it():
    native = ascent(DENSE, launch=NOON - 1 * MINUTE, batch_id="native")
    converted = ascent(DENSE[::2], drift=False, batch_id="tac")
    first, second = windows_of(native, converted)
    assert outcomes(first) == ["duplicate"] * 7 + [None] * 21  # both would count above the edge
    assert outcomes(first, outside_window=second) == [None] * 7 + ["duplicate"] * 21
    assert outcomes(second, outside_window=first) == [None] * 34


def test_what_is_beside_a_window_gets_no_outcome_and_other_ascents_stay():
    other = ascent(DENSE, launch=NOON + 180 * MINUTE, batch_id="later")
    assert outcomes(ascent(DENSE), outside_window=other) == [None] * 41


def test_a_corrected_ascent_over_the_edge_replaces_what_it_withdraws():
    original = ascent(DENSE, launch=NOON - 2 * MINUTE, batch_id="b1")
    corrected = ascent(DENSE[:10], launch=NOON - 2 * MINUTE, batch_id="b2", update_sequence=1)
    first, second = windows_of(original, corrected)
    assert set(outcomes(second)) == {None}
    assert set(outcomes(second, outside_window=first)) == {"duplicate"}


@pytest.mark.parametrize("network", ["temp", "pilot"])
def test_a_form_that_the_continued_analysis_has_seen_is_not_counted_again(network):
    wind = {"variable": "u_component_of_wind"}
    known = ascent(STANDARD, drift=False, batch_id="tac", report_type=network, **wind)
    better = ascent(DENSE, launch=NOON - 45 * MINUTE, batch_id="native", **wind)
    seen = np.repeat([True, False], [9, 41])
    assert outcomes(known, better) == ["duplicate"] * 9 + [None] * 41
    assert outcomes(known, better, already_assimilated=seen) == [None] * 9 + ["duplicate"] * 41


def test_main_and_off_time_hour_of_one_ascent():
    off, main = (
        ascent(STANDARD[:n], drift=False, batch_id=f"b{n}", launch=NOON - m * MINUTE)
        for n, m in ((8, 60), (9, 0))
    )
    assert outcomes(off, main) == ["duplicate"] * 8 + [None] * 9


def test_a_broken_native_form_does_not_replace_a_whole_ascent():
    native = ascent(DENSE[:3], launch=NOON - 45 * MINUTE)
    whole = ascent(STANDARD, drift=False, batch_id="tac")
    assert outcomes(native, whole) == ["duplicate"] * 3 + [None] * 9


def test_two_ascents_of_a_station_and_of_two_stations_stay():
    tables = [
        ascent(DENSE),
        ascent(DENSE, launch=NOON - 180 * MINUTE, batch_id="b2"),
        ascent(STANDARD, drift=False, station="10410", batch_id="b3"),
    ]
    assert set(outcomes(*tables)) == {None}


def test_parts_of_one_form_complete_each_other():
    lower = ascent(STANDARD[:5], drift=False, batch_id="a")
    upper = ascent(STANDARD[5:], drift=False, batch_id="c")
    repeated = ascent(STANDARD[:5], drift=False, batch_id="d")
    assert outcomes(lower, upper, repeated) == [None] * 9 + ["duplicate"] * 5


def test_a_corrected_part_replaces_that_part_alone():
    surface, significant = STANDARD[:1], np.array([97000.0, 81000, 64000, 33000])
    part_a = ascent(STANDARD, drift=False, batch_id="a")
    part_b = ascent(np.append(surface, significant), drift=False, batch_id="b")
    corrected = ascent(significant[:3], drift=False, batch_id="c", update_sequence=1)
    names = outcomes(part_a, part_b, corrected)
    assert names == [None] * 9 + ["duplicate"] * 5 + [None] * 3


def test_a_corrected_ascent_replaces_the_levels_it_withdraws():
    corrected = ascent(DENSE[:30], batch_id="b2", update_sequence=1)
    assert outcomes(ascent(DENSE), corrected) == ["duplicate"] * 41 + [None] * 30


PRESSURES = {"surface_pressure": 98700.0, "mean_sea_level_pressure": 101300.0}


def test_station_pressure_and_the_one_derived_from_it_are_one_measurement():
    free = {"withholding": {"share": 0.0}}
    table = report(PRESSURES, elevation=220.0)
    assert outcomes(table, stage="select", **free) == [None, "duplicate"]
    unplaced = report(PRESSURES, elevation=None)
    assert outcomes(unplaced, stage="select", **free) == ["duplicate", None]
    refused = report(PRESSURES, elevation=220.0, rejected_by=["difference", None])
    assert outcomes(refused, stage="select", **free) == ["difference", None]


HUMIDITIES = {"2m_dewpoint_temperature": 278.0, "2m_relative_humidity": 0.7}


def test_dewpoint_and_relative_humidity_of_a_report_are_one_measurement():
    free = {"withholding": {"share": 0.0}}
    assert outcomes(report(HUMIDITIES), stage="select", **free) == [None, "duplicate"]
    refused = report(HUMIDITIES, rejected_by=["bounds", None])
    assert outcomes(refused, stage="select", **free) == ["bounds", None]
    apart = report(HUMIDITIES, time=np.array([NOON, NOON + 60 * MINUTE]))
    assert outcomes(apart, stage="select", **free) == [None, None]
