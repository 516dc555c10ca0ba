"""Figures of the client: the values drawn are those of the NetCDF file."""

import asyncio
import copy
import pickle
from datetime import timedelta

import numpy as np
import published
import pytest
import xarray as xr
from gateway_process import GatewayProcess
from matplotlib.figure import Figure

from appa_client import AppaClient, AsyncAppaClient, InvalidRequestError
from appa_client.records import Analysis

LATER = published.NOON + timedelta(days=310)


@pytest.fixture(scope="module")
def files(gateway: GatewayProcess, tmp_path_factory) -> dict[str, xr.Dataset]:
    wanted = {
        "pl-an": published.Wanted(valid=LATER, flags=["simulated"], checkpoint="appa-test"),
        "pl-fc": published.Wanted(valid=LATER, kind="forecast"),
    }
    return published.publish_all(gateway.layout, tmp_path_factory.mktemp("plots"), wanted)


def test_an_analysis_draws_its_fields(gateway: GatewayProcess, files) -> None:
    with AppaClient(gateway.url) as client:
        analysis = client.analysis("pl-an")
        figure = analysis.plot("t", level=500)
    assert isinstance(figure, Figure)
    [image] = figure.axes[0].images
    held = files["pl-an"]["t_mean"].sel(air_pressure=50_000.0)[0]
    west = np.roll(held.values, published.GRID.nlon // 2, axis=1)  # the picture begins at 180 W
    np.testing.assert_allclose(image.get_array(), west - 273.15, atol=1e-3)
    left, right, bottom, top = image.get_extent()
    assert (left, right, bottom, top) == pytest.approx((-187.5, 172.5, -90.0, 90.0), abs=7.6)
    assert "500 hPa, mean" in figure.axes[0].get_title()
    assert "simulated" in figure.axes[0].get_title() and "appa-test" in figure.axes[0].get_title()
    assert len(figure.axes[0].lines) > 20  # coastlines
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_members_spread_and_axes_of_the_caller(gateway: GatewayProcess, files) -> None:
    figure = Figure()
    ax = figure.add_subplot()
    with AppaClient(gateway.url) as client:
        [analysis] = [a for a in client.analyses(kind="forecast", limit=500) if a.id == "pl-fc"]
        time = analysis.times[1]
        assert analysis.plot("msl", time=time, statistic="member:2", ax=ax) is figure
    held = files["pl-fc"]["msl"].isel(time=1).sel(realization=2)
    west = np.roll(held.values, published.GRID.nlon // 2, axis=1)
    np.testing.assert_allclose(ax.images[0].get_array(), west / 100.0, rtol=1e-6)


def test_a_polar_picture_has_its_coasts_where_the_values_are(
    gateway: GatewayProcess, files
) -> None:
    async def draw() -> Figure:
        async with AsyncAppaClient(gateway.url) as client:
            return await (await client.analysis("pl-an")).plot("t2m", view="north", width=64)

    ax = asyncio.run(draw()).axes[0]
    assert ax.images[0].get_array().shape == (64, 64)
    # On the plane a place lies 2 R tan(colatitude / 2) from the pole; 0 degrees points down.
    x, y = ax.lines[0].get_data()
    colatitude = 2 * np.rad2deg(np.arctan(np.hypot(x, y) / (2 * 6_371_229.0)))
    assert (colatitude <= 90.0 + 1e-9).all()
    longitude = np.rad2deg(np.arctan2(x, -np.asarray(y)))
    with AppaClient(gateway.url) as client:
        coasts = client._get("/v1/fields/coastlines")
    known = np.array([place for line in coasts for place in line])
    off = np.hypot(known[:, 0] - longitude[0], known[:, 1] - (90.0 - colatitude[0])).min()
    assert off < 1e-6


def test_copies_are_equal_and_draw_no_more(gateway: GatewayProcess, files) -> None:
    with AppaClient(gateway.url) as client:
        first, second = client.analysis("pl-an"), client.analysis("pl-an")
    assert first == second
    for copied in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert copied == first
        with pytest.raises(InvalidRequestError, match="client.plot"):
            copied.plot("t2m")
    made = Analysis.model_validate(first.model_dump())
    assert "_owner" not in made.model_dump_json()
    with AppaClient(gateway.url) as client, pytest.raises(InvalidRequestError, match="500"):
        client.plot("pl-an", "t", level=123)
