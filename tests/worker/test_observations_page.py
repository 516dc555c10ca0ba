"""The page about observations says what the code does."""

import json
import re
from pathlib import Path

import pytest
import yaml

from model.domain.observations import OBSERVATION_SCHEMA, QC_FLAGS, REPORT_TYPES
from model.domain.variables import VARIABLES
from worker.observations.decoders.decode import decode_file
from worker.observations.errors import load_errors
from worker.observations.qc.base import load_parameters
from worker.observations.qc.run import CHECKS

PAGE = (Path(__file__).parents[2] / "docs/observations.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("language", "count"), [("csv", 9), ("json", 2)])
def test_examples_decode(tmp_path, language, count):
    (text,) = blocks(language)
    path = tmp_path / f"example.{'geojson' if language == 'json' else language}"
    path.write_text(json.dumps(json.loads(text)) if language == "json" else text)
    decoded = decode_file(path)
    assert decoded.report.rejected == {}
    assert len(decoded.table) == count


def test_yaml_examples_are_accepted():
    errors, checks = (yaml.safe_load(text) for text in blocks("yaml"))
    assert load_errors(errors).find("synop", "2m_temperature")[""].error == (1.2,)
    assert load_parameters(checks)["track"]["speed"]["ship"] == 25.0


def test_every_check_and_outcome_is_listed():
    for check in CHECKS:
        flag = QC_FLAGS[check.outcome]
        row = next(line for line in PAGE.splitlines() if f"| `{check.name}` |" in line)
        assert f"`{flag.name}` ({flag.number})" in row
        assert check.stage in row.split("|")[1]


def test_every_name_is_listed():
    own = {"observation_id", "batch_id", "received_time", "message_offset", "qc_flag"}
    for name in [*VARIABLES, *REPORT_TYPES, *(set(OBSERVATION_SCHEMA.names) - own)]:
        assert f"`{name}`" in PAGE, name
