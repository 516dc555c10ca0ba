"""Members of the circulation model take increments; needs jcm (the ``training`` extra)."""

from datetime import UTC, datetime
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from model.domain.grids import Grid
from model.domain.variables import channels

pytestmark = [
    pytest.mark.skipif(find_spec("jcm") is None, reason="could not import 'jcm'"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

CHANNELS = channels((50, 100, 200, 300, 500, 700, 850, 925))
TEMPERATURE, HUMIDITY = slice(16, 24), slice(24, 32)
SPEED = 3.0


@pytest.fixture(scope="module")
def ensemble():
    """Two members, a day after rest."""
    from lab.osse.oracle import NatureEnsemble
    from lab.training.nature_run import NatureModel

    nature = NatureModel(datetime(2003, 3, 1, tzinfo=UTC))
    states = [nature.day(nature.initial(seed))[0] for seed in (1, 2)]
    return NatureEnsemble(nature, CHANNELS, states)


def smooth_increments():
    """Solid-body rotation, a temperature wave, and pressure: fields that the spectral core holds."""
    grid = Grid("t31", "gaussian", 48, 96)
    lat, lon = (np.deg2rad(np.asarray(a)) for a in (grid.latitude, grid.longitude))
    lat, lon = np.meshgrid(lat, lon, indexing="ij")
    found = torch.zeros(2, 33, *grid.shape)
    found[:, :8] = torch.from_numpy(SPEED * np.cos(lat))
    found[:, TEMPERATURE] = torch.from_numpy(np.cos(lat) * np.sin(lon))
    found[:, HUMIDITY] = torch.from_numpy(1e-4 * np.cos(lat) * np.cos(lon))
    found[1, 32] = 0.001
    return found


def test_increments_arrive_where_they_were_asked_for(ensemble):
    import jax

    before, analysed = ensemble.advance()
    increments = smooth_increments()
    seen = ensemble.add(increments)
    now = torch.from_numpy(np.array(jax.vmap(ensemble._grid)(ensemble.members), dtype=np.float32))
    change = now - analysed
    for rows, size in ((slice(0, 16), SPEED), (TEMPERATURE, 1.0), (HUMIDITY, 1e-4)):
        assert (change - increments)[:, rows].abs().max() < 2e-3 * size
    assert (change - increments)[:, 32].abs().max() < 1e-5
    # Winds at 500 hPa lie between model levels that all gained the same rotation; in the second
    # member these levels moved with the pressure.
    row = next(i for i, c in enumerate(CHANNELS) if c.name == "u_component_of_wind_500hPa")
    moved = (seen - before)[0, row]
    torch.testing.assert_close(moved, increments[0, 0], atol=0.05, rtol=0)


def test_no_increments_change_nothing(ensemble):
    before, analysed = ensemble.advance()
    seen = ensemble.add(torch.zeros_like(analysed))
    for row, channel in enumerate(CHANNELS):
        a, b = before[:, row], seen[:, row]
        off = (a - b)[torch.isfinite(a)].abs().max()
        assert off <= 2e-2 * a[torch.isfinite(a)].abs().max(), channel.name
