"""The `appa` command: every name leads somewhere, help is cheap, errors are sentences."""

import subprocess
import sys

import pytest

from deploy.cli import GROUPS


def appa(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_help_lists_every_command_without_importing_them():
    code = (
        "import sys; from deploy.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not any(m == 'torch' or m.startswith('deploy.commands.') for m in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name, (_, text) in GROUPS.items():
        assert name in done.stdout
        assert text.split()[0] in done.stdout


@pytest.mark.parametrize("name", GROUPS)
def test_every_command_has_help(name):
    done = appa(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_an_unknown_checkpoint_is_a_sentence_and_no_traceback():
    done = appa("checkpoint", "show", "no-such-model")
    assert done.returncode != 0
    assert "no-such-model" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
