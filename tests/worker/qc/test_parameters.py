"""Parameters: defaults, merging, and faults that are named."""

import pytest

from model.domain.errors import ConfigurationError
from worker.observations.qc.base import QCContext, load_parameters
from worker.observations.qc.run import CHECKS


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


def test_context_defaults():
    assert QCContext().of("late") == {"enabled": True}
