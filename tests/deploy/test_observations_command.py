"""`appa observations`: a template goes in, comes out, is compacted."""

import json

import pytest
from typer.testing import CliRunner

from deploy.commands.observations import app

TIMES = ("2025-01-01T11:00", "2025-01-01T12:00")


def run(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


@pytest.fixture
def data(tmp_path):
    assert run("template", "csv", "--output", tmp_path / "t.csv").exit_code == 0
    found = run("ingest", tmp_path / "t.csv", "--data", tmp_path / "data", "--json")
    assert found.exit_code == 0, found.output
    (entry,) = json.loads(found.stdout)
    assert (entry["observations"], entry["used"]) == (10, 10)
    return tmp_path / "data"


def test_query_as_table_and_counts(data):
    lines = run("query", *TIMES, "--data", data, "--variable", "temperature").stdout.splitlines()
    assert len(lines) == 3 and lines[0].startswith('"observation_id"')
    counts = json.loads(run("query", *TIMES, "--data", data, "--json").stdout)
    assert counts["rows"] == 10 and counts["next_offset"] is None
    boxed = run("query", *TIMES, "--data", data, "--box", "13,52,14,53", "--json")
    assert json.loads(boxed.stdout)["rows"] == 4


def test_compact(data, tmp_path):
    for _ in range(2):
        assert run("ingest", tmp_path / "t.csv", "--data", data).exit_code == 0
    found = run(
        "compact", *TIMES, "--data", data, "--least-files", 2, "--grace-minutes", 0, "--json"
    )
    assert json.loads(found.stdout) == {
        "hours": 1, "files_before": 3, "files_removed": 3, "rows": 30,
    }  # fmt: skip


def test_bad_file_and_bad_options_are_told(data, tmp_path):
    bad = tmp_path / "x.csv"
    bad.write_text("a,b\n1,2\n")
    found = run("ingest", bad, "--data", data)
    assert found.exit_code == 1
    assert "at least" in found.output
    assert run("query", "yesterday", "today", "--data", data).exit_code == 2
    assert run("query", *TIMES, "--data", data, "--format", "xml").exit_code == 2
    assert run("query", *TIMES, "--data", data, "--variable", "wind").exit_code == 2
    assert run("template", "xml").exit_code == 2


def test_template_to_standard_output():
    assert run("template", "geojson", "--output", "-").stdout.startswith("{")
    assert run("template", "geojson", "--output", "-", "--json").exit_code == 2


def test_template_tells_programs_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = json.loads(run("template", "geojson", "--json").stdout)
    assert json.loads((tmp_path / answer["file"]).read_text())["type"] == "FeatureCollection"


def test_template_leaves_a_file_that_is_there(tmp_path):
    path = tmp_path / "observations.csv"
    path.write_text("mine")
    refused = run("template", "csv", "--output", path)
    assert refused.exit_code == 2 and "--force" in refused.output
    assert path.read_text() == "mine"
    assert run("template", "csv", "--output", path, "--force").exit_code == 0
    assert path.read_text().startswith("time,")
