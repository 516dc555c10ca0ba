"""`make` as it runs in a fresh clone, with programs that stand for Python and pip."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.warm_start import REPOSITORY

STAND_IN = """#!/bin/sh
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/appa" ;;
  *"pip install"*) echo PIP ;;
  demo*) echo DEMO ;;
esac
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_says_once_that_it_installs(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    venv = tmp_path / "venv"
    command = ["make", "-C", str(REPOSITORY), "demo", f"PYTHON={python}", f"VENV={venv}"]

    def lines() -> list[str]:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.splitlines()

    first = lines()
    (told,) = [n for n, line in enumerate(first) if line.startswith(f"installing into {venv}: ")]
    assert "GB" in first[told]
    assert told < first.index("PIP") < first.index("DEMO")
    again = lines()
    assert "DEMO" in again
    assert not [line for line in again if "installing" in line or line == "PIP"]
