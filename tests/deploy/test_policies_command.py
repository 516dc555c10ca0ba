"""`appa policies check`: faults of every policy file with their lines, as the workers would meet them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.commands.cycles import TEMPLATE
from deploy.commands.policies import policies_app
from model.domain.errors import AppaError
from worker.observations.errors import load_errors
from worker.observations.qc.base import load_parameters
from worker.results.retention.plan import read_policy as read_retention


def check(data: Path, status: int) -> dict[str, list[dict]]:
    """Faults by name of the file; absent files are left out."""
    done = CliRunner().invoke(policies_app, ["check", "--data", str(data), "--json"])
    assert done.exit_code == status, done.output
    document = json.loads(done.stdout)
    assert document["ok"] == (status == 0)
    return {Path(f["file"]).name: f["faults"] for f in document["files"] if f["present"]}


def text(data: Path) -> str:
    return CliRunner().invoke(policies_app, ["check", "--data", str(data)]).stdout


def test_without_files_the_defaults_are_in_force(tmp_path):
    assert check(tmp_path, 0) == {}
    assert text(tmp_path).count("absent") == 5


def test_what_the_documentation_shows_passes(tmp_path, monkeypatch):
    (tmp_path / "errors.yaml").write_text(
        "entries:\n  - {report_types: [synop], variable: 2m_temperature, error: 1.0}\n"
    )
    (tmp_path / "checks.yaml").write_text(
        "withholding: {share: 0.0}\n"
        "track: {speed: {ship: 25.0}}\n"
        "bias_correction: {sensors: {aircraft/temperature: null}}\n"
        "blocklist:\n"
        "  entries:\n"
        '    - {station: "0310*", variables: [2m_temperature], until: "2025-06-30", note: broken}\n'
        "    - {station: 10382, from: 2025-01-01}\n"
        "denial: {report_types: [aircraft]}\n"
    )
    (tmp_path / "retention.yaml").write_text("uploads: {days: 3}\n")
    (tmp_path / "cycles.yaml").write_text(TEMPLATE.read_text().format(start="2025-01-01T00:00:00Z"))
    stations = tmp_path / "stations.csv"
    stations.write_text("station_id,lat,lon,elevation\n03100,50.0,10.0,100\n")
    monkeypatch.setenv("APPA_STATIONS", str(stations))
    assert check(tmp_path, 0) == dict.fromkeys(
        ("errors.yaml", "checks.yaml", "retention.yaml", "cycles.yaml", "stations.csv"), []
    )


def test_every_fault_of_a_file_has_its_line_its_field_and_what_came(tmp_path):
    (tmp_path / "errors.yaml").write_text(
        "representativeness: {factor: 2.0}\n"
        "entries:\n"
        "  - {report_types: [synop], variable: 2m_temperature, error: 1.0}\n"
        "  - {report_types: [synop], variable: 2m_temperatur, error: 1.0}\n"
        "  - report_types: [synop]\n"
        "    variable: 2m_temperature\n"
        "    error: -1\n"
        "    sigma: 2\n"
    )
    faults = check(tmp_path, 1)["errors.yaml"]
    assert [(f["line"], f["field"]) for f in faults] == [
        (4, "entries.1.variable"),
        (7, "entries.2.error.0"),
        (8, "entries.2.sigma"),
    ]
    assert "2m_temperature" in faults[0]["message"] and faults[0]["got"] == "'2m_temperatur'"
    assert "greater than 0" in faults[1]["message"] and faults[1]["got"] == "-1"
    assert f"{tmp_path / 'errors.yaml'}:7: entries.2.error.0: " in text(tmp_path)


@pytest.mark.parametrize(
    ("content", "line", "field", "said"),
    [
        ("late: {enabled: true}\ntracks: {}\n", 2, "tracks", "Known: ascents"),
        ("track:\n  passes: 3\n  speeds: {}\n", 3, "track.speeds", "Known: enabled"),
        ("withholding:\n  share: 5 %\n", 2, "withholding.share", "a number"),
        ("thinning: {enabled: 0}\n", 1, "thinning.enabled", "true or false"),
        ("blocklist: {entries: {station: x}}\n", 1, "blocklist.entries", "a list"),
        ("blocklist:\n  entries:\n    - {station: 03100}\n", 1, "blocklist", "in quotes"),
        ('blocklist:\n  entries: [{station: "1", variable: x}]\n', 1, "blocklist", "variable"),
        (
            'blocklist:\n  entries: [{station: "1", report_types: [sinop]}]\n',
            1,
            "blocklist",
            "sinop",
        ),
        ('blocklist:\n  entries: [{station: "1", until: "June"}]\n', 1, "blocklist", "until"),
        ("denial: {}\nbounds: {limits: {temperature: {low: 1}}}\n", 2, "bounds", "high"),
        ("track: {speed: {ship: fast}}\n", 1, "track", "can work with"),
        ("late: [\n", 2, "", "YAML"),
        ("late: {enabled: 2025-13-01}\n", None, "", "month"),
        ("- late\n", None, "", "a mapping"),
    ],
)
def test_faults_of_checks(tmp_path, content, line, field, said):
    (tmp_path / "checks.yaml").write_text(content)
    [fault] = check(tmp_path, 1)["checks.yaml"]
    assert (fault["line"], fault["field"]) == (line, field)
    assert said in fault["message"]


def test_a_suite_on_trial_is_read_with_its_files(tmp_path):
    start = "start: 2025-01-01T00:00:00Z\nwithhold: 0.1\n"
    challenger = "challenger:\n  name: new\n  checks: new.yaml\n"
    (tmp_path / "cycles.yaml").write_text(start + challenger)
    [fault] = check(tmp_path, 1)["cycles.yaml"]
    assert (fault["line"], fault["field"]) == (3, "challenger")
    assert "new.yaml" in fault["message"]
    (tmp_path / "new.yaml").write_text("tracks: {}\n")
    [fault] = check(tmp_path, 1)["cycles.yaml"]
    assert "Unknown check 'tracks'" in fault["message"]
    (tmp_path / "new.yaml").write_text("track: {passes: 3}\n")
    assert check(tmp_path, 0) == {"cycles.yaml": []}


def test_workers_refuse_the_same_and_name_the_file(tmp_path):
    """There is no second opinion: what the command says is what the readers of the workers raise."""
    contents = {
        "errors.yaml": (
            "entries: [{report_types: [x], variable: temperature, error: 1}]",
            load_errors,
        ),
        "checks.yaml": ("track: {passes: many}", load_parameters),
        "retention.yaml": ("uploads: {days: many}", read_retention),
    }
    for name, (content, _) in contents.items():
        (tmp_path / name).write_text(content)
    found = check(tmp_path, 1)
    assert set(found) == set(contents)
    for name, (_, read) in contents.items():
        with pytest.raises(AppaError, match=name):
            read(tmp_path / name)


def test_a_folder_that_is_not_there_is_no_installation(tmp_path):
    done = CliRunner().invoke(policies_app, ["check", "--data", str(tmp_path / "lost")])
    assert done.exit_code == 2
