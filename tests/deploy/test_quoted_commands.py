"""Every `appa …` command that documentation, help and errors quote can be typed as it stands."""

import ast
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from deploy.cli import app

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(r"(?<!\bof )(?<!\bby )`(?:docker compose run \w+ )?appa( [^`]+)`")
LINE = re.compile(r"^[$# ]*(?:docker compose run \w+ )?appa ([a-z].*)")


def quoted_in_pages() -> Iterator[tuple[str, str]]:
    """Commands of code blocks and of sentences."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        place, text = str(path.relative_to(ROOT)), path.read_text()
        for block in re.findall(r"^```.*?\n(.*?)^```", text, re.S | re.M):
            yield from ((place, found) for found in command_lines(block))
        yield from ((place, found) for found in COMMAND.findall(text))
    compose = ROOT / "docker-compose.yml"
    yield from ((compose.name, found) for found in command_lines(compose.read_text()))


def command_lines(block: str) -> Iterator[str]:
    """Commands of a block, without what explains them: each with the lines it goes on in."""
    lines = iter(re.sub(r"\s*\\\n\s*", " ", block).splitlines())
    for line in lines:
        if found := LINE.match(line):
            command = re.sub(r"(\s{2,}| #| [&>|] ).*", "", found[1])
            while command.count("'") % 2:
                command += " " + next(lines)
            yield command.removesuffix(" &")


def quoted_in_messages() -> Iterator[tuple[str, str]]:
    """Commands of strings that a program prints: no docstrings, no "the option of `appa up`"."""
    for package in ("service", "worker", "model", "deploy", "client"):
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text()
            if "appa " not in text:  # to parse all modules takes seconds
                continue
            nodes = list(ast.walk(ast.parse(text)))
            statements = {id(n.value) for n in nodes if isinstance(n, ast.Expr)}
            for node in nodes:
                if isinstance(node, ast.Constant) and id(node) not in statements:
                    for found in COMMAND.findall(str(node.value)):
                        yield str(path.relative_to(ROOT)), found


def problem(command: str, *, mention: bool) -> str | None:
    """What is wrong with a command line after `appa`; None if it could be typed.

    Arguments:
        command: The line; capitals stand for values.
        mention: Whether the bare name of a command is enough.
    """
    if "{" in command and "'{" not in command:
        return None  # made at run time
    words = shlex.split(command.replace("…", ""))
    found, context = typer.main.get_command(app), click.Context(click.Command("appa"))
    while words and hasattr(found, "get_command") and not words[0].startswith("-"):
        name = words.pop(0)
        found = found.get_command(context, name)
        if found is None:
            return f"no command {name}"
    if mention and not words:
        return None
    try:
        given, rest, _ = found.make_parser(found.context_class(found)).parse_args(words)
    except Exception as error:
        return str(error)
    if rest and not found.context_settings.get("allow_extra_args"):
        return f"unexpected {rest}"
    for parameter in found.params:
        if parameter.required and given.get(parameter.name) in (None, ()):
            return f"lacks {parameter.name}"
    return None


@pytest.mark.parametrize(("place", "command"), sorted(set(quoted_in_messages())))
def test_commands_in_messages_are_whole(place, command):
    assert problem(command, mention=False) is None


@pytest.mark.parametrize(("place", "command"), sorted(set(quoted_in_pages())))
def test_commands_in_pages_are_commands(place, command):
    assert problem(command, mention=True) is None


def test_what_is_missing_or_unknown_is_noticed():
    wrong = ["keys create", "keys create me --scoop admin", "keyring", "watch one two"]
    assert all(problem(each, mention=False) for each in wrong)
    assert len(list(itertools.chain(quoted_in_pages(), quoted_in_messages()))) > 100
