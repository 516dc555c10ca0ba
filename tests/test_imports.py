"""What the gateway may import of the workers and of the model: an allow-list."""

import json
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

ALLOWED = (
    "model.domain.",
    "worker.contract.",
    "worker.observations.columns",
    "worker.observations.decoders.options",
    "worker.observations.errors",
    "worker.observations.export",
    "worker.observations.formats",
    "worker.observations.lexicons",
    "worker.observations.stations",
    "worker.observations.store.commits",
    "worker.observations.store.files",
    "worker.observations.store.places",
    "worker.observations.store.query",
    "worker.observations.units",
    "worker.results.catalogue",
    "worker.results.entries",
    "worker.results.manifest",
    "worker.results.store",
    "worker.results.verification.series",
)
"""Modules, and packages with all that is in them (a final dot). Anything else is forbidden until it
is listed here; what is listed must not need torch, ecCodes or xarray to be imported."""

HEAVY = {"torch", "azula", "eccodes", "jax", "matplotlib"}
AT_START = HEAVY | {"xarray", "netCDF4", "pandas", "scipy", "joserfc"}
"""Not even loaded when the gateway starts; a data set that is asked for may load xarray and netCDF4,
rows of observations pandas, an issuer of tokens that is configured joserfc."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("service", "worker", "model", include_external_packages=True)


def reached(graph: grimp.ImportGraph) -> set[str]:
    """Modules of worker and model that the gateway imports, directly or by way of others."""
    found: set[str] = set()
    waiting = [m for m in graph.modules if m.split(".")[0] == "service"]
    while waiting:
        for module in graph.find_modules_directly_imported_by(waiting.pop()):
            if module not in found and module.split(".")[0] in ("worker", "model"):
                found.add(module)
                waiting.append(module)
    return found


def packages(graph: grimp.ImportGraph, modules: set[str]) -> set[str]:
    return {m for m in modules if graph.find_children(m)}


def allowed(module: str) -> bool:
    return any(module == name or (name[-1] == "." and module.startswith(name)) for name in ALLOWED)


def test_the_gateway_imports_only_what_is_allowed(graph) -> None:
    modules = reached(graph)
    forbidden = {m for m in modules - packages(graph, modules) if not allowed(m)}
    routes = {
        m: " <- ".join(reversed(graph.find_shortest_chain("service.app", m) or ("?", m)))
        for m in sorted(forbidden)
    }
    assert not forbidden, routes


def test_what_the_gateway_imports_is_light(graph) -> None:
    for module in sorted(reached(graph)):
        heavy = HEAVY & graph.find_modules_directly_imported_by(module)
        assert not heavy, (module, heavy)


def test_every_entry_of_the_list_is_used(graph) -> None:
    modules = reached(graph)
    unused = [n for n in ALLOWED if not any(m == n or m.startswith(n) for m in modules)]
    assert not unused


def test_what_a_gateway_loads_is_allowed_and_light() -> None:
    program = "import json, sys, service.app; print(json.dumps(list(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        cwd=REPOSITORY,
        timeout=120,
    )
    loaded = json.loads(ran.stdout)
    assert not [m for m in loaded if m.split(".")[0] in AT_START or m.startswith("celery.worker")]
    ours = [m for m in loaded if m.startswith(("worker.", "model."))]
    # Packages above an allowed module are loaded with it, and hold no code of their own.
    above = {".".join(n.split(".")[:i]) for n in ALLOWED for i in range(1, n.count(".") + 1)}
    assert [m for m in ours if not allowed(m) and m not in above] == []


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("worker.scheduler", {"torch", "pandas", "scipy"}),
        ("worker.tasks.ingest", {"torch"}),
        ("deploy.commands.policies", {"torch"}),
    ],
)
def test_a_part_starts_without_what_it_may_never_use(module: str, heavy: set[str]) -> None:
    """A scheduler that imported torch took 5 s of processor and 420 MB for nothing."""
    code = f"import json, sys, {module}; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(json.loads(done.stdout))
