"""Biases of sensors: the filter in closed form, and a simulated world with sensors that are off."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from model.domain.errors import ConfigurationError
from tests.worker.qc.test_checks_after import feedback
from tests.worker.tables import make_table
from worker.observations.bias import BIAS_CHECK, BiasState, correct, update
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
    with pytest.raises(ConfigurationError, match="constant, log_pressure; got .'scan'."):
        learn(BiasState(), hour_of([250.0], 0, 250.0), 0, sensors=sensors)
    sensors = {"aircraft/temperature": {"by": "wing", "predictors": ["constant"]}}
    with pytest.raises(ConfigurationError, match="station, channel or network; got 'wing'"):
        learn(BiasState(), hour_of([250.0], 0, 250.0), 0, sensors=sensors)


def test_a_cycle_without_such_sensors_changes_only_the_time():
    state = learn(BiasState(), hour_of([250.0], 3, 250.0, network="temp"), 3)
    assert state == BiasState(until=START + timedelta(hours=3))
    assert BiasState.model_validate_json(state.model_dump_json()) == state
