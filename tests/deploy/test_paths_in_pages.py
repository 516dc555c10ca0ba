"""Every file, folder and test that a page names by its path is there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OF_THEN = ("CHANGELOG.md", "docs/decisions/*.md")
"""Pages that tell of what was there when they were written."""
PAGES = sorted(
    page
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
    if not any(page.match(pattern) for pattern in OF_THEN)
)
ROOMS = r"(?:model|worker|service|client|deploy|lab|tests|docs|benchmarks|\.ci|\.github)"
NAMED = re.compile(rf"`({ROOMS}/[\w./-]+)(?:::(\w+))?`")


@cache
def functions(path: Path) -> set[str]:
    tree = ast.walk(ast.parse(path.read_text()))
    return {n.name for n in tree if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}


def missing(text: str) -> list[str]:
    """Paths and tests that are named and are not there."""
    found = []
    for name, test in NAMED.findall(text):
        path = ROOT / name
        if not path.exists() or (test and test not in functions(path)):
            found.append(f"{name}::{test}" if test else name)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page):
    assert not missing(page.read_text())


def test_what_is_not_there_is_noticed():
    here = "tests/deploy/test_paths_in_pages.py"
    named = f"`{here}`, `{here}::missing`, `{here}::lost`, `worker/lost.py`, `service`"
    assert missing(named) == [f"{here}::lost", "worker/lost.py"]


def test_each_threat_names_where_it_is_met_and_what_shows_it():
    text = (ROOT / "docs" / "threat-model.md").read_text()
    table = text.partition("## Threats")[2].partition("## Not met")[0]
    rows = [line.split(" | ") for line in table.splitlines() if re.match(r"\| [STRIDE] \|", line)]
    assert {row[0].strip("| ") for row in rows} == set("STRIDE")
    for _, threat, met, shown in rows:
        assert re.search(r"`[\w./-]+`", met), threat
        assert "`tests/" in shown, threat
