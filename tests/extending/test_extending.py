"""`docs/extending.md` is what it says: its blocks are installed and followed through the service.

The blocks are written to a temporary folder together with the metadata that an installer would make
of their `pyproject.toml`, and `walk_installation.py` runs in a process that has the folder on its
path, as do the gateway and the decoders that it starts.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

from model.assimilation_settings import GUIDANCE
from model.domain.errors import UnknownName
from model.domain.observations import QC_FLAGS, REPORT_TYPES
from model.domain.registry import ExtensionError, Registry
from model.domain.variables import VARIABLES, Variable
from model.operators.observation_set import OPERATORS
from model.samplers.sampling import SAMPLERS
from worker.contract.kinds import KINDS, FilteringSpec, JobKind
from worker.observations.decoders.bufr.decode import BUFR_FAMILIES
from worker.observations.errors import EXTRA_ERRORS
from worker.observations.formats import FORMATS
from worker.observations.qc.base import EXTRA_CHECKS
from worker.results.outputs.formats import OUTPUTS

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "extending.md").read_text()
BLOCKS = dict(re.findall(r'^```\w+ title="(.+?)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))
REGISTRIES = (
    VARIABLES, REPORT_TYPES, QC_FLAGS, FORMATS, BUFR_FAMILIES, EXTRA_ERRORS, EXTRA_CHECKS, OPERATORS,
    KINDS, SAMPLERS, GUIDANCE, OUTPUTS,
)  # fmt: skip
STEPS = (
    "test_a_file_of_the_new_format_is_uploaded_decoded_and_checked",
    "test_rows_of_the_new_variable_and_network_are_found_again",
    "test_a_message_of_the_new_family_is_decoded",
    "test_the_operator_observes_the_new_variable",
    "test_a_job_of_the_new_kind_is_submitted_and_run",
    "test_the_new_output_is_in_the_result",
    "test_the_new_variable_is_in_the_feedback",
    "test_the_gateway_lists_the_result_under_its_kind",
    "test_the_catalogue_has_a_collection_of_the_new_kind",
    "test_the_documentation_of_the_api_knows_the_new_kind",
    "test_retention_keeps_the_new_kind_as_long_as_it_says",
    "test_the_sampler_is_of_second_order",
    "test_the_guidance_draws_the_state_to_the_observations",
    "test_the_model_takes_both_by_name",
)


def install(folder: Path, files: dict[str, str]) -> Path:
    """Write a distribution's modules, and its metadata from its `pyproject.toml`."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    project = tomllib.loads(files["pyproject.toml"])["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(head)
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def walked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The steps that were taken, each with what went wrong; empty where nothing did."""
    folder = install(tmp_path_factory.mktemp("installed"), BLOCKS)
    report = folder / "report.xml"
    path = os.pathsep.join([str(folder), str(REPOSITORY), str(REPOSITORY / "client")])
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o",
            "python_files=walk_*.py", f"--junitxml={report}", "tests/extending/walk_installation.py",
        ],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )  # fmt: skip
    assert report.exists(), done.stdout + done.stderr
    return {
        case.get("name", ""): "\n".join(part.text or part.get("message", "") for part in case)
        for case in ElementTree.parse(report).iter("testcase")
    }


@pytest.mark.parametrize("step", STEPS)
def test_walk(walked: dict[str, str], step: str) -> None:
    assert walked[step] == ""


def test_every_step_is_named_here(walked: dict[str, str]) -> None:
    assert set(walked) == set(STEPS)


def test_the_page_shows_a_part_of_every_open_registry() -> None:
    shown = set(tomllib.loads(BLOCKS["pyproject.toml"])["project"]["entry-points"])
    assert shown == {registry.group for registry in REGISTRIES}
    assert set(re.findall(r"`(appa\.[a-z_]+)`", PAGE)) == shown


def _project(**entries: str) -> str:
    lines = "\n".join(f'{name} = "{value}"' for name, value in entries.items())
    head = '[project]\nname = "appa-odd"\nversion = "2.0"\n'
    return f'{head}[project.entry-points."appa.odd"]\n{lines}\n'


def registry_with(tmp_path, monkeypatch, module: str, **entries: str) -> Registry[Variable]:
    """A registry of one variable, open to entry points of a module called `odd_parts`."""
    from model.domain import registry as module_of_registry

    module_of_registry._declared.cache_clear()
    monkeypatch.delitem(sys.modules, "odd_parts", raising=False)
    imports = "from model.domain.variables import VARIABLES, Variable\n"
    files = {"pyproject.toml": _project(**entries), "odd_parts.py": imports + module}
    monkeypatch.syspath_prepend(install(tmp_path, files))
    known = VARIABLES["temperature"]
    return Registry("variable", "appa.odd", Variable, ("short",), temperature=known)


ODD = 'def part(id, short): return Variable(id, short, "K", "x", "observed")\n'


def test_extensions_follow_the_built_in_parts_by_name(tmp_path, monkeypatch) -> None:
    module = ODD + 'b, a = part("b", "b"), part("a", "a")'
    registry = registry_with(tmp_path, monkeypatch, module, b="odd_parts:b", a="odd_parts:a")
    assert list(registry) == ["temperature", "a", "b"] and len(registry) == 3
    with pytest.raises(UnknownName, match="Known: a, b, temperature"):
        registry["c"]


@pytest.mark.parametrize(
    ("module", "entry", "reason"),
    [
        ("import no_such_module", {"a": "odd_parts:a"}, "ModuleNotFoundError: No module named"),
        ("", {"a": "odd_parts:a"}, "AttributeError"),
        ("a = 3", {"a": "odd_parts:a"}, "expected a Variable; got int"),
        (ODD + 'a = part("b", "b")', {"a": "odd_parts:a"}, "the part calls itself 'b'"),
        ("a = VARIABLES['temperature']", {"temperature": "odd_parts:a"}, "is taken"),
        (ODD + 'a = part("a", "t")', {"a": "odd_parts:a"}, "'temperature' has the same short, t"),
    ],
)
def test_an_extension_that_cannot_be_used_is_named(
    tmp_path, monkeypatch, module: str, entry: dict[str, str], reason: str
) -> None:
    registry = registry_with(tmp_path, monkeypatch, module, **entry)
    for _ in range(2):  # an error does not turn into a missing part
        with pytest.raises(ExtensionError, match=re.escape(reason)) as caught:
            len(registry)
    assert "of appa-odd 2.0 in the entry points 'appa.odd'" in caught.value.message
    assert caught.value.code == "configuration_error"
    assert caught.value.context["distribution"] == "appa-odd"


def test_a_job_kind_must_fit_its_specification() -> None:
    words = {"noun": "x", "plural": "xs", "description": "", "summary": "", "example": {}}
    with pytest.raises(ExtensionError.__mro__[1], match="a field 'kind' with the default 'other'"):
        JobKind(name="other", spec=FilteringSpec, tag="ot", **words)
    with pytest.raises(ExtensionError.__mro__[1], match="got 'ql'"):
        JobKind(name="filtering", spec=FilteringSpec, tag="ql", **words)
