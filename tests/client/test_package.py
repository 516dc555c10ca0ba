"""The client as a distribution of its own: a wheel that needs nothing of the service."""

import email
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CLIENT = Path(__file__).resolve().parents[2] / "client"
DEPENDENCIES = {"httpx", "httpx-sse", "pydantic"}


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_synchronous_client_is_up_to_date() -> None:
    run(sys.executable, CLIENT / "make_sync.py", "--check", cwd=CLIENT)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The client's wheel, built offline from a copy of its folder."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    source = shutil.copytree(CLIENT, folder / "client", ignore=ignore)
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", *options, source, cwd=folder)
    [path] = folder.glob("*.whl")
    return path


def test_contents_and_requirements(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [about] = [name for name in names if name.endswith(".dist-info/METADATA")]
        requires = email.message_from_bytes(archive.read(about)).get_all("Requires-Dist")
    own = {str(p.relative_to(CLIENT)) for p in (CLIENT / "appa_client").rglob("*.py")}
    modules = {name for name in names if ".dist-info/" not in name}
    assert modules == own | {"appa_client/py.typed"}
    plain = [Requirement(text) for text in requires if "extra ==" not in text]
    assert {r.name for r in plain} == DEPENDENCIES


def installed(names: set[str]) -> list[metadata.Distribution]:
    """The distributions named and all that they require."""
    todo, found = sorted(names), {}
    while todo:
        name = canonicalize_name(todo.pop())
        if name in found:
            continue
        found[name] = metadata.distribution(name)
        requirements = map(Requirement, found[name].requires or ())
        todo += [r.name for r in requirements if not r.marker or r.marker.evaluate({"extra": ""})]
    return list(found.values())


def test_the_wheel_works_with_its_requirements_alone(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    [packages] = (tmp_path / "venv").glob("lib/python*/site-packages")
    for distribution in installed(DEPENDENCIES):
        tops = {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
        for top in tops:
            (packages / top).symlink_to(distribution.locate_file(top))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    text = """
import importlib.util, appa_client
for other in ("worker", "service", "model", "redis", "pyarrow", "numpy", "xarray"):
    assert importlib.util.find_spec(other) is None, other
with appa_client.AppaClient("http://127.0.0.1:9", attempts=1) as client:
    assert not client.ready()
    try:
        client.job("job-1")
    except appa_client.UnavailableError as error:
        print(error.code)
"""
    python = tmp_path / "venv" / "bin" / "python"
    assert run(python, "-I", "-c", text, cwd=tmp_path) == "unreachable\n"
