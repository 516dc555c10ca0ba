"""The units for systemd: it finds no fault, they are held back, and run what one machine runs."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.local import PROCESSES

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
ANALYSE = shutil.which("systemd-analyze")
EXPOSURE = 20
"""Tenths, of 100 for a unit that may do anything."""


class Unit(dict):
    """Sections of a unit file; a name may be given several times."""

    def __init__(self, path: Path) -> None:
        section: dict[str, list[str]] = {}
        for line in path.read_text().splitlines():
            if found := re.fullmatch(r"\[(\w+)\]", line):
                section = self.setdefault(found[1], {})
            elif line and not line.startswith("#"):
                name, _, value = line.partition("=")
                section.setdefault(name, []).append(value)


def test_every_process_of_one_machine_has_a_unit():
    commands = {}
    for path in UNITS:
        (command,) = Unit(path)["Service"]["ExecStart"]
        program, *words = command.split()
        assert program == "/opt/appa/bin/appa"
        commands[path.stem.removeprefix("appa-").removesuffix("@")] = ("appa", *words)
    assert commands == PROCESSES


def test_the_target_starts_all_but_the_feeds_which_are_enabled_on_one_machine():
    wanted = " ".join(Unit(FOLDER / "appa.target")["Unit"]["Wants"]).split()
    assert {w for w in wanted if w.startswith("appa-")} == {
        path.name.replace("@", "@auto") for path in UNITS if path.stem != "appa-sources"
    }
    for path in UNITS:
        unit = Unit(path)
        assert unit["Unit"]["PartOf"] == ["appa.target"]
        assert unit["Install"]["WantedBy"] == ["appa.target"]


def test_only_what_decodes_may_make_namespaces():
    """`worker.confinement` takes decoding processes away from the network."""
    may = {p.stem: Unit(p)["Service"]["RestrictNamespaces"] for p in UNITS}
    assert {name for name, value in may.items() if value == ["user net"]} == {
        "appa-ingest", "appa-ingest-large",
    }  # fmt: skip
    assert {tuple(value) for value in may.values()} == {("user net",), ("yes",)}


@pytest.fixture
def installed(tmp_path) -> Path:
    """The units as on a machine where the program lies elsewhere, and the settings are there."""
    for path in [*UNITS, FOLDER / "appa.target"]:
        text = path.read_text().replace("/opt/appa/bin/appa", "/bin/true")
        (tmp_path / path.name).write_text(text)
    return tmp_path


@pytest.mark.skipif(ANALYSE is None, reason="systemd is not installed")
def test_systemd_finds_no_fault_and_little_to_attack(installed):
    for path in [*UNITS, FOLDER / "appa.target"]:
        command = [ANALYSE, "verify", "--man=no", str(installed / path.name)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stdout + done.stderr) == (0, ""), path.name
    for path in UNITS:
        command = [ANALYSE, "security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager"]
        unit = str(installed / path.name)
        done = subprocess.run([*command, unit], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-200:]
