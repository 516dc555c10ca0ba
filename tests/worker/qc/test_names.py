"""Names that many platforms share are no track and no place; one faulty platform still is."""

import numpy as np
import pytest

from tests.worker.tables import make_table
from worker.observations.qc.base import QCContext
from worker.observations.qc.names import nameless
from worker.observations.qc.run import run_checks

NOON = np.datetime64("2024-01-01T12:00", "ns")
SECOND = np.timedelta64(1, "s")


def fleet(name, seconds, lat, lon, network="aircraft", **columns):
    """One temperature of an aircraft, or of a ship, for each time and place."""
    aloft = {
        "vertical_kind": "pressure", "vertical": np.full(len(seconds), 25_000.0),
        "variable": "temperature", "obs_value": 220.0 + 0.1 * np.arange(len(seconds)),
    }  # fmt: skip
    return make_table(
        len(seconds), report_type=network, station_id=[name] * len(seconds),
        time=NOON - np.asarray(seconds) * SECOND, lat=np.asarray(lat, float),
        lon=np.asarray(lon, float), **(aloft if network == "aircraft" else {}) | columns,
    )  # fmt: skip


def rejected(table, stage="window"):
    names = run_checks(table, stage)[0]["rejected_by"].to_pylist()
    return {row: name for row, name in enumerate(names) if name}


def scattered(number, seed=0):
    """Places all over the world, in half an hour before noon."""
    rng = np.random.default_rng(seed)
    return (
        rng.uniform(0, 1800, number),
        rng.uniform(-60, 60, number),
        rng.uniform(-180, 180, number),
    )


@pytest.mark.parametrize("stage", ["pre", "window"])
@pytest.mark.parametrize(
    "name",
    [
        "AFZA99",
        "MASKSTID",
        "masked",
        "Aircraft",
        "////////",
        "XXXXXXX",
        "XX",
        "-9999",
        "999",
        "ship ",
    ],
)
def test_a_fleet_under_one_name_is_no_track(name, stage):
    assert rejected(fleet(name, *scattered(200)), stage) == {}


def test_two_of_a_fleet_at_one_time_and_level_are_not_the_same_report():
    seconds = np.repeat([0, 120, 240], 4)
    lat, lon = np.tile([10.0, 20, 30, 40], 3), np.tile([0.0, 30, 60, 90], 3)
    for network in ("aircraft", "ship", "drifter"):
        assert rejected(fleet("A1B2C3", seconds, lat, lon, network)) == {}
    # The same report a second time still is.
    again = fleet("A1B2C3", *(np.append(x, x[0]) for x in (seconds, lat, lon)))
    assert rejected(again) == {12: "duplicate"}


def flight(number=20, step=60.0):
    """A flight along 50 N at 250 m/s, newest first."""
    seconds = step * np.arange(number)
    metres_a_degree = 111_195.0 * np.cos(np.deg2rad(50.0))
    return seconds, np.full(number, 50.0), 10.0 - 250.0 * seconds / metres_a_degree


@pytest.mark.parametrize("wild", [[7], [0], [19], [5, 12], [4, 5, 6]])
def test_wild_positions_of_one_aircraft_are_still_caught(wild):
    seconds, lat, lon = flight()
    lon[wild] += 60.0 + 20.0 * np.arange(len(wild))
    assert rejected(fleet("EU1234", seconds, lat, lon)) == dict.fromkeys(wild, "track")


def test_two_ships_under_one_call_sign_are_still_not_trusted():
    seconds = np.repeat(3600.0 * np.arange(6), 2)
    table = fleet("DBLK", seconds, np.tile([50.0, 20.0], 6), np.tile([0.0, 60.0], 6), "ship")
    assert rejected(table) == dict.fromkeys(range(12), "track")


def test_satellites_have_no_track():
    for network in ("amv", "satellite", "scatterometer"):
        assert rejected(fleet("sat270", *scattered(200), network)) == {}


@pytest.mark.parametrize(
    "name", ["EU0042", "DBLK", "10382", "62001", "N900AA", "BA0099", "0-20000-0-10382"]
)
def test_names_of_someone(name):
    table = fleet(name, [0.0], [50.0], [0.0])
    assert not nameless(table, QCContext()).any()


def test_a_profile_flown_under_a_shared_name_is_shared_too():
    fixes = fleet("AFZA99", *scattered(200))
    assert nameless(fixes, QCContext()).all()
    assert not nameless(fleet("AFZA99", *flight()), QCContext()).any()
