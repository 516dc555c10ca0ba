"""The classes of docs/downstream.md: called as earth2studio and anemoi-inference call them."""

import asyncio
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import published
import pytest
from gateway_process import GatewayProcess

DOCS = Path(__file__).resolve().parents[3] / "docs" / "downstream.md"
TIMES = [published.NOON + timedelta(days=300, hours=h) for h in (0, 1)]


def block(title: str) -> dict:
    """What a program of the page defines."""
    [code] = re.findall(rf'```python title="{title}"\n(.*?)```', DOCS.read_text(), re.DOTALL)
    defined: dict = {"__name__": title}
    exec(compile(code, title, "exec"), defined)
    return defined


@pytest.fixture(scope="module")
def files(gateway: GatewayProcess, tmp_path_factory):
    wanted = {f"ds-{i}": published.Wanted(valid=t, seed=i) for i, t in enumerate(TIMES)}
    return published.publish_all(gateway.layout, tmp_path_factory.mktemp("ds"), wanted)


def test_a_data_source_of_earth2studio(gateway: GatewayProcess, files, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # its cache
    source = block("appa_source.py")["AppaSource"](gateway.url)
    times = [t.replace(tzinfo=None) for t in TIMES]
    found = source(times, ["t2m", "z500", "u850"])
    assert found.dims == ("time", "variable", "lat", "lon")
    assert found["time"].values.tolist() == np.array(times, "datetime64[ns]").tolist()
    for i in range(2):
        held = files[f"ds-{i}"]
        wanted = held["z_mean"].sel(air_pressure=50_000.0)[0]
        np.testing.assert_array_equal(found.sel(variable="z500")[i], wanted)
        np.testing.assert_array_equal(found.sel(variable="t2m")[i], held["t2m_mean"][0])
    one = asyncio.run(source.fetch(times[1], "u850"))
    source.appa.close()
    assert one.shape == (1, 1, *published.GRID.shape)
    np.testing.assert_array_equal(one[0, 0], found.sel(variable="u850")[1])


@pytest.fixture
def anemoi(monkeypatch):
    """The parts of anemoi-inference 0.13 that an input is built on, where it is not installed."""

    class Input:
        def __init__(self, context, metadata, *, variables=None, pre_processors=None, purpose=None):
            self.context, self.metadata, self.variables = context, metadata, variables

        def create_input_state(self, *, dates, **kwargs):
            raise NotImplementedError

        def load_forcings_state(self, *, dates, current_state):
            raise NotImplementedError

    registry = SimpleNamespace(register=lambda name: lambda cls: cls)
    for name in ("anemoi", "anemoi.inference"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, held in (("input", {"Input": Input}), ("inputs", {"input_registry": registry})):
        module = ModuleType(f"anemoi.inference.{name}")
        vars(module).update(held)
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_an_input_of_anemoi_inference(anemoi, tmp_path: Path):
    rng = np.random.default_rng(0)
    held = {name: rng.normal(size=(2, 7)).astype(np.float32) for name in ("2t", "z_500", "lsm")}
    points = {"latitudes": np.linspace(90, -90, 7), "longitudes": np.zeros(7)}
    np.savez(tmp_path / "input.npz", date=np.datetime64("2025-01-01"), **points, **held)
    made = block("appa_input.py")["AppaInput"]
    dates = [datetime(2024, 12, 31, 18, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC)]
    first = made(None, None, path=str(tmp_path / "input.npz"), variables=["2t", "z_500"])
    state = first.create_input_state(dates=dates)
    assert state["date"] == dates[-1]
    assert set(state["fields"]) == {"2t", "z_500"}
    np.testing.assert_array_equal(state["fields"]["z_500"], held["z_500"])
    np.testing.assert_array_equal(state["latitudes"], points["latitudes"])
    constants = made(None, None, path=str(tmp_path / "input.npz"), variables=["lsm"])
    forced = constants.load_forcings_state(dates=dates[-1:], current_state=state)
    np.testing.assert_array_equal(forced["fields"]["lsm"], held["lsm"][:1])
    assert forced["latitudes"] is state["latitudes"]
