"""Parameters: defaults, merging, and faults that are named."""

import pytest

from model.domain.errors import ConfigurationError
from worker.observations.qc.base import QCContext, load_parameters
from worker.observations.qc.run import CHECKS, try_parameters


def test_every_check_has_parameters_and_a_switch():
    parameters = load_parameters()
    assert all("enabled" in parameters[check.name] for check in CHECKS)
    assert {check.name for check in CHECKS} == set(parameters)


def test_overrides_merge_maps_and_replace_values(tmp_path):
    file = tmp_path / "site.yaml"
    file.write_text("track: {speed: {ship: 5.0}}\n")
    p = load_parameters(file, {"withholding": {"share": 0.5}})
    assert p["track"]["speed"] == {"ship": 5.0, "drifter": 5.0, "aircraft": 420.0, "buoy": 3.0}
    assert p["withholding"]["share"] == 0.5
    assert load_parameters()["withholding"]["share"] == 0.05


@pytest.mark.parametrize(
    ("override", "named"),
    [({"tracks": {}}, "tracks"), ({"track": {"speeds": {}}}, "speeds"), ({"track": 3}, "track")],
)
def test_unknown_names_are_faults(override, named):
    with pytest.raises(ConfigurationError, match=named):
        load_parameters(override)


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ({"withholding": {"share": "5 %"}}, "a number"),
        ({"withholding": {"share": True}}, "a number"),
        ({"withholding": {"share": 5}}, "a share from 0 to 1"),  # meant as per cent
        ({"thinning": {"per_station": 1}}, "true or false"),
        ({"thinning": {"report_types": "temp"}}, "a list"),
        ({"track": {"speed": [5.0]}}, "a mapping"),
    ],
)
def test_values_of_another_sort_are_faults(override, wanted):
    with pytest.raises(ConfigurationError, match=f"Expected {wanted}"):
        load_parameters(override)


def test_whole_numbers_and_what_had_no_value_are_taken():
    box = [-10.0, 35.0, 30.0, 70.0]
    p = load_parameters({"withholding": {"share": 0}, "domain": {"box": box}})
    assert (p["withholding"]["share"], p["domain"]["box"]) == (0, box)


def test_the_effective_parameters_of_an_analysis_are_taken_again():
    parameters = load_parameters()
    assert load_parameters(parameters) == parameters


def test_the_defaults_pass_their_trial_and_wrong_limits_do_not():
    assert try_parameters(load_parameters()) == {}
    limits = {"background_check": {"limits": {"temperature": {"sigmas": 3.0}}}}
    assert list(try_parameters(load_parameters(limits))) == ["background_check"]
    off = {"background_check": {"enabled": False, **limits["background_check"]}}
    assert try_parameters(load_parameters(off)) == {}


def test_context_defaults():
    assert QCContext().of("late") == {"enabled": True}
