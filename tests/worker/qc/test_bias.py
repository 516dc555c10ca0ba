"""Biases of sensors: the filter in closed form, and a simulated world with sensors that are off."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from model.domain.errors import ConfigurationError
from tests.worker.qc.test_checks_after import feedback
from tests.worker.tables import make_table
from worker.observations.bias import (
    BIAS_CHECK,
    LAYERS,
    BiasState,
    correct,
    rows_with_layers,
    update,
)
from worker.observations.columns import float_column, set_column
from worker.observations.qc.base import QCContext, load_parameters
from worker.observations.qc.run import run_checks

START = datetime(2024, 1, 1, tzinfo=UTC)
PARAMETERS = load_parameters()[BIAS_CHECK]


def hour_of(values, hour, background, *, network="aircraft", stations=None, error=1.0):
    """Feedback of temperatures at one hour, with a background of its own values."""
    n = len(values)
    table = make_table(
        n,
        report_type=[network] * n,
        station_id=stations or ["A"] * n,
        variable=["temperature"] * n,
        vertical_kind=["pressure"] * n,
        vertical=[50_000.0] * n,
        time=[START + timedelta(hours=hour)] * n,
        obs_value=list(values),
        obs_error=[error] * n,
    )
    return departures(feedback(table, background))


def departures(table):
    """The table with O-B of its present values."""
    departure = float_column(table, "obs_value") - float_column(table, "hofx_background")
    i = table.schema.get_field_index("background_departure")
    return table.set_column(i, table.schema.field(i), pa.array(departure))


def learn(state, table, hour, **changes):
    return update(state, table, {**PARAMETERS, **changes}, START + timedelta(hours=hour))


def test_one_cycle_in_closed_form():
    # Prior variance 1, 4 values of variance 1 with mean departure 2, shared variance 0.25.
    found = learn(BiasState(), hour_of([251.0, 252.0, 252.0, 253.0], 0, 250.0), 0)
    sensor = found.sensors["aircraft/temperature/A"]
    variance = 1 / 4 + 0.25
    assert sensor.mean == pytest.approx([2.0 / (1 + variance)])
    assert sensor.covariance[0] == pytest.approx([variance / (1 + variance)])
    assert sensor.count == 4
    assert found.until == START


def test_a_correction_is_taken_off_and_named():
    state = learn(BiasState(), hour_of([252.0] * 50, 0, 250.0), 0)
    bias = state.sensors["aircraft/temperature/A"].mean[0]
    before = hour_of([252.0, 252.0], 1, 250.0, stations=["A", "B"])
    context = QCContext(biases=state)
    after, _ = run_checks(before, "window", context)
    assert after["obs_bias"].to_pylist() == [pytest.approx(bias), None]
    assert after["obs_value"].to_pylist() == [pytest.approx(252.0 - bias), 252.0]


def test_what_is_learned_is_the_whole_bias_not_what_is_left():
    """Departures of corrected values are completed by what was taken off."""
    state = learn(BiasState(), hour_of([252.0] * 50, 0, 250.0), 0)
    corrected = departures(correct(hour_of([252.0] * 50, 1, 250.0), state, PARAMETERS))
    once_more = learn(state, corrected, 1)
    before, after = (s.sensors["aircraft/temperature/A"].mean[0] for s in (state, once_more))
    assert before < after < 2.0


def test_values_are_learned_from_once():
    table = hour_of([252.0] * 5, 0, 250.0)
    state = learn(BiasState(), table, 0)
    assert learn(state, table, 0) == state
    later = learn(state, table, 1)  # the same rows in the window of the next hour
    assert later.sensors == state.sensors


TRUE = {"A": 1.2, "B": 0.8, "C": 1.0, "D": -0.6, "E": 0.0}


def three_days(seed):
    """A scalar world: the background follows whatever it is given, and sondes anchor it.

    Returns the biases at the end and the mean error of the background on the last day and a half.
    """
    rng = np.random.default_rng(seed)
    state, background, errors = BiasState(), 0.0, []
    for hour in range(72):
        stations = [name for name in TRUE for _ in range(6)]
        air = 250.0 + np.array([TRUE[s] for s in stations]) + rng.normal(0, 1, len(stations))
        sondes = 250.0 + rng.normal(0, 1, 12)
        table = hour_of(air, hour, 250.0 + background, stations=stations)
        table = departures(correct(table, state, PARAMETERS))
        anchors = hour_of(sondes, hour, 250.0 + background, network="temp", stations=["S"] * 12)
        state = learn(state, pa.concat_tables([table, anchors]).unify_dictionaries(), hour)
        innovations = [float_column(t, "background_departure") for t in (table, anchors)]
        background = 0.9 * (background + 0.3 * np.concatenate(innovations).mean())
        background += rng.normal(0, 0.1)
        errors.append(background)
    return state, float(np.mean(errors[36:]))


def test_a_biased_fleet_is_corrected_in_three_days_and_its_anchors_do_not_drift():
    worlds = [three_days(seed) for seed in range(4)]
    left = [
        [
            state.sensors[f"aircraft/temperature/{name}"].mean[0] - bias
            for name, bias in TRUE.items()
        ]
        for state, _ in worlds
    ]
    assert np.sqrt(np.mean(np.square(left))) < 0.1
    assert abs(np.mean([drift for _, drift in worlds])) < 0.1
    state = worlds[0][0]
    assert set(state.sensors) == {f"aircraft/temperature/{name}" for name in TRUE}  # no sonde
    assert state.summary()["aircraft/temperature"]["sensors"] == 5


def test_rejected_values_teach_nothing_and_withheld_ones_do():
    table = hour_of([252.0, 290.0, 252.0], 0, 250.0, stations=["A", "B", "C"])
    outcomes = pa.array([None, "background_check", "withheld"])
    state = learn(BiasState(), set_column(table, "rejected_by", outcomes), 0)
    assert set(state.sensors) == {"aircraft/temperature/A", "aircraft/temperature/C"}


def test_an_unseen_sensor_is_doubted_again_and_forgotten():
    state = learn(BiasState(), hour_of([252.0] * 50, 0, 250.0), 0)
    known = state.sensors["aircraft/temperature/A"]
    other = hour_of([250.0], 24 * 40, 250.0, stations=["B"])
    assert learn(state, other, 24 * 40).sensors["aircraft/temperature/A"] == known
    assert set(learn(state, hour_of([250.0], 24 * 61, 250.0, stations=["B"]), 24 * 61).sensors) == {
        "aircraft/temperature/B"
    }
    again = learn(state, hour_of([250.0], 24 * 40, 250.0), 24 * 40).sensors
    soon = learn(state, hour_of([250.0], 1, 250.0), 1).sensors
    assert again["aircraft/temperature/A"].mean < soon["aircraft/temperature/A"].mean < known.mean


def test_two_predictors_separate_levels():
    rng = np.random.default_rng(1)
    sensors = {
        "aircraft/temperature": {"by": "network", "predictors": ["constant", "log_pressure"]}
    }
    state = BiasState()
    for hour in range(60):
        table = hour_of(np.zeros(40), hour, 250.0)
        pressure = rng.uniform(20_000, 90_000, 40)
        value = 250.0 + 0.5 + 0.8 * np.log(pressure / 50_000) + rng.normal(0, 0.5, 40)
        table = set_column(set_column(table, "vertical", pressure), "obs_value", value)
        state = learn(state, departures(table), hour, sensors=sensors)
    assert state.sensors["aircraft/temperature/*"].mean == pytest.approx([0.5, 0.8], abs=0.1)


@pytest.mark.parametrize(
    "chosen", [["constant", "log_pressure"], ["log_pressure"], ["log_pressure", "constant"]]
)
def test_coefficients_of_former_predictors_are_not_those_of_others(chosen):
    """As a constant of 2 K they would be 2 K for each unit of log p as well."""
    state = learn(BiasState(), hour_of([252.0] * 50, 0, 250.0), 0)
    sensors = {"aircraft/temperature": {"by": "station", "predictors": chosen}}
    table = hour_of([252.0] * 50, 1, 250.0)
    found = correct(table, state, {**PARAMETERS, "sensors": sensors})
    assert found["obs_value"].to_pylist() == [252.0] * 50
    anew = learn(state, departures(found), 1, sensors=sensors).sensors["aircraft/temperature/A"]
    assert (anew.count, anew.predictors) == (50, chosen)
    known = state.sensors["aircraft/temperature/A"]
    earlier = known.model_copy(update={"predictors": []})  # as states were written before
    assert earlier.is_of(["constant"]) and not earlier.is_of(["constant", "log_pressure"])


def test_a_wrong_predictor_is_named():
    sensors = {"aircraft/temperature": {"by": "station", "predictors": ["scan"]}}
    with pytest.raises(ConfigurationError, match="constant, log_pressure, .*; got .'scan'."):
        learn(BiasState(), hour_of([250.0], 0, 250.0), 0, sensors=sensors)
    sensors = {"aircraft/temperature": {"by": "wing", "predictors": ["constant"]}}
    with pytest.raises(ConfigurationError, match="station, channel or network; got 'wing'"):
        learn(BiasState(), hour_of([250.0], 0, 250.0), 0, sensors=sensors)


def test_a_cycle_without_such_sensors_changes_only_the_time():
    state = learn(BiasState(), hour_of([250.0], 3, 250.0, network="temp"), 3)
    assert state == BiasState(until=START + timedelta(hours=3))
    assert BiasState.model_validate_json(state.model_dump_json()) == state


SOUNDER = ["constant", "scan_angle", "scan_angle_squared", "thickness_1000_300", "thickness_200_50"]


def radiances(angles, background, noise, bias=0.0, *, hour=0, satellite="sat004", error=1.0):
    """Feedback of one channel at scan angles, with O-B of noise and bias."""
    n = len(angles)
    table = make_table(
        n,
        report_type=["satellite"] * n,
        station_id=[satellite] * n,
        platform="amsu-a",
        variable=["brightness_temperature"] * n,
        vertical_kind=["channel"] * n,
        vertical=[6.0] * n,
        scan_angle=np.asarray(angles),
        time=[START + timedelta(hours=hour)] * n,
        obs_value=background + noise + bias,
        obs_error=[error] * n,
    )
    return departures(feedback(table, background))


def test_predictors_of_a_sounder_in_closed_form():
    """The posterior mean in the space of observations: P Z' (Z (P + C) Z' + R)^-1 d."""
    rng = np.random.default_rng(3)
    angles = np.array([-48.0, -20.0, 0.0, 15.0, 50.0, 33.0, 5.0])
    layers = {name: rng.normal(0, 1, 7) for name in LAYERS}
    departure = rng.normal(0.5, 1, 7)
    table = radiances(angles, np.full(7, 240.0), departure)
    found = update(BiasState(), table, PARAMETERS, START, layers)
    sensor = found.sensors["satellite/brightness_temperature/sat004 amsu-a#6"]
    u = angles / 50.0
    z = np.stack([np.ones(7), u, u**2, *layers.values()], axis=1)
    gain = z.T @ np.linalg.inv(1.25 * z @ z.T + np.eye(7))
    assert sensor.mean == pytest.approx(gain @ departure, abs=1e-5)
    assert np.array(sensor.covariance) == pytest.approx(np.eye(5) - gain @ z, abs=1e-5)
    assert found.coefficients() == {
        "satellite/brightness_temperature/sat004 amsu-a#6": dict(
            zip(SOUNDER, sensor.mean, strict=True)
        )
    }


def test_thickness_is_scaled_by_the_standard_atmosphere():
    for layer in LAYERS.values():
        # Hypsometric equation: g dz = R T ln(p1 / p2), in a layer 7 K warmer than the standard one.
        standard = layer.predictor(np.zeros(1)) * -10.0
        thickness = 287.0597 * (standard + 7.0) * np.log(layer.bottom / layer.top)
        assert layer.predictor(thickness) == pytest.approx([0.7])
    warm, cold = (LAYERS[name].predictor(np.zeros(1)) * -10.0 for name in LAYERS)
    # ICAO: 111 m to 9164 m, and 11784 m to 20576 m.
    assert warm[0] == pytest.approx(9.80665 * (9164 - 111) / (287.0597 * np.log(10 / 3)), abs=0.1)
    assert cold[0] == pytest.approx(9.80665 * (20576 - 11784) / (287.0597 * np.log(4)), abs=0.1)


def test_sounders_wait_for_the_background_and_others_do_not():
    sounder = radiances([0.0, 40.0], np.full(2, 240.0), np.full(2, 2.0))
    aircraft = hour_of([252.0, 252.0], 0, 250.0)
    both = pa.concat_tables([sounder, aircraft]).unify_dictionaries()
    assert rows_with_layers(both, PARAMETERS).tolist() == [0, 1]
    assert rows_with_layers(both, {**PARAMETERS, "enabled": False}).tolist() == []
    layers = {name: np.array([1.0, 2.0, np.nan, np.nan]) for name in LAYERS}
    state = update(BiasState(), both, PARAMETERS, START, layers)
    first = correct(both, state, PARAMETERS)
    assert first["obs_bias"].is_valid().to_pylist() == [False, False, True, True]
    then = correct(first, state, PARAMETERS, layers)
    assert then["obs_bias"].is_valid().to_pylist() == [True] * 4
    assert then["obs_bias"].to_pylist()[2:] == first["obs_bias"].to_pylist()[2:]
    taken = float_column(both, "obs_value") - float_column(then, "obs_value")
    assert taken == pytest.approx(float_column(then, "obs_bias"))
    mean = state.sensors["satellite/brightness_temperature/sat004 amsu-a#6"].mean
    assert taken[1] == pytest.approx(np.dot([1.0, 0.8, 0.64, 2.0, 2.0], mean))


def test_satellites_with_the_same_instrument_have_biases_of_their_own():
    tables = [
        radiances(np.zeros(20), np.full(20, 240.0), np.full(20, bias), satellite=name)
        for name, bias in (("sat003", 2.0), ("sat004", -2.0))
    ]
    state = learn(BiasState(), pa.concat_tables(tables).unify_dictionaries(), 0)
    kind = "satellite/brightness_temperature"
    means = [state.sensors[f"{kind}/{name} amsu-a#6"].mean[0] for name in ("sat003", "sat004")]
    assert means[0] > 0.5 and means[1] < -0.5
    assert state.summary()[kind]["sensors"] == 2


def test_means_of_others_teach_nothing():
    table = hour_of([252.0] * 4, 0, 250.0)
    batch = pa.array(["superobservations"] * 4)
    assert learn(BiasState(), set_column(table, "batch_id", batch), 0).sensors == {}


_COEFFICIENTS = np.array([0.6, 0.4, -0.7, 0.3, -0.2])
"""K for each predictor of the simulated sounder."""
_ERROR = 0.5


def sounder_days(seed):
    """A scalar world: the background follows what it is given, sondes anchor it, a sounder is off.

    Returns the error of the bias (rms over scans and layers), and that of the background on average.
    """
    rng = np.random.default_rng(seed)
    state, background, drift = BiasState(), 0.0, []
    for hour in range(72):
        angles = np.linspace(-48.3, 48.3, 30)
        layers = {name: rng.normal(0.3, 1.0, len(angles)) for name in LAYERS}
        u = angles / 50.0
        z = np.stack([np.ones(len(u)), u, u**2, *layers.values()], axis=1)
        noise = rng.normal(0, _ERROR, len(angles)) - background
        guess = np.full(len(angles), 240.0 + background)
        table = radiances(angles, guess, noise, z @ _COEFFICIENTS, hour=hour, error=_ERROR)
        table = departures(correct(table, state, PARAMETERS, layers))
        anchors = 240.0 + rng.normal(0, 1, 40)
        sondes = hour_of(anchors, hour, 240.0 + background, network="temp", stations=["S"] * 40)
        state = update(state, table, PARAMETERS, START + timedelta(hours=hour), layers)
        # The analysis believes the sounder more than the sondes: uncorrected it would follow it.
        innovation = [float_column(t, "background_departure").mean() for t in (table, sondes)]
        background = 0.9 * (background + 0.4 * innovation[0] + 0.2 * innovation[1])
        background += rng.normal(0, 0.05)
        drift.append(background)
    sensor = state.sensors["satellite/brightness_temperature/sat004 amsu-a#6"]
    wrong = z @ (np.array(sensor.mean) - _COEFFICIENTS)
    return np.sqrt(np.mean(wrong**2)), np.mean(drift[36:])


def test_a_sounder_biased_by_scan_and_thickness_is_corrected_in_three_days_without_drift():
    worlds = np.array([sounder_days(seed) for seed in range(3)])
    assert worlds[:, 0].max() < 0.1
    assert abs(worlds[:, 1].mean()) < 0.05
