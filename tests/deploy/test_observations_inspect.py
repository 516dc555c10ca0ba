"""`appa observations inspect` on files of the user."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from deploy.commands.observations import app
from lab.encoders.message import MessageTemplate, build_message

runner = CliRunner()


@pytest.fixture
def folder(tmp_path):
    columns = {
        "#1#year": 2026, "#1#month": 3, "#1#day": 1, "#1#hour": 6, "#1#minute": 0,
        "#1#blockNumber": 10, "#1#stationNumber": 384, "#1#latitude": 50.0, "#1#longitude": 10.0,
        "#1#airTemperature": 280.0,
        "#1#horizontalVisibility": 9_000,
    }  # fmt: skip
    template = MessageTemplate((307_080,), 0, 2, {"": (0, 0)})
    good = build_message(template, columns, 1, np.datetime64("2026-03-01T06:00"))
    (tmp_path / "good.bufr").write_bytes(good + good)
    (tmp_path / "cut.bufr").write_bytes(good + good[:100])
    (tmp_path / "picture.bufr").write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path


def test_json_names_every_file_and_reason(folder):
    result = runner.invoke(app, ["inspect", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    by_name = {entry["file"].rsplit("/", 1)[1]: entry for entry in found["files"]}
    assert by_name["good.bufr"]["rows_by_variable"] == {"2m_temperature": 2}
    assert by_name["good.bufr"]["messages"] == by_name["good.bufr"]["decoded"] == 2
    assert by_name["cut.bufr"]["rejected"] == {"truncated": 1}
    assert by_name["picture.bufr"]["rejected"] == {"wrong_format": 1}
    assert by_name["good.bufr"]["not_used"] == {"020001 horizontalVisibility": 2}
    assert found["total"]["rows"] == 3
    assert set(found["reasons"]) == {"truncated", "wrong_format"}


def test_table_shows_counts_and_explains(folder):
    result = runner.invoke(app, ["inspect", str(folder), "--explain"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for word in ("good.bufr", "2m_temperature 2", "truncated 1", "total", "a PNG picture",
                 "good.bufr: elements not used: 020001 horizontalVisibility: 2"):  # fmt: skip
        assert word in result.output


def test_names_of_variables_are_whole_at_80_columns(folder):
    good = str(folder / "good.bufr")
    lines = runner.invoke(app, ["inspect", good], env={"COLUMNS": "80"}).output.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("2m_temperature 2" in line and "2 of 2" in line for line in lines)
    assert not any(line.strip().startswith("total") for line in lines)  # one file is its own total


def test_a_path_that_is_not_there():
    assert runner.invoke(app, ["inspect", "no/such/file"]).exit_code == 2
