"""The profile of a place in a real browser: its curves and barbs against the file and textbook physics."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import numpy as np
import published
import pytest
import xarray as xr
from browser import needs_browser, open_window
from gateway_process import GatewayProcess
from playwright.sync_api import Page

from model.domain.physics import saturation_vapour_pressure, vapour_pressure

pytestmark = needs_browser
VALID = published.NOON + timedelta(days=100)
TIME = f"{VALID:%Y-%m-%dT%H:%M:%S}Z"
LON, LAT = 45.0, -30.0
PLAIN = published.product


def airy(kind, valid, seed):
    """Members of an atmosphere that could be: warm and moist below, a jet above."""
    made = PLAIN(kind, valid, seed)
    states, steps = made.states.copy(), np.arange(3.0)[:, None, None, None]
    kinds = {
        ("temperature", 500): 258 + steps, ("temperature", 850): 285 + 2 * steps,
        ("specific_humidity", 500): 8e-4 * (1 + steps), ("specific_humidity", 850): 6e-3 + 1e-3 * steps,
        ("u_component_of_wind", 500): 30 + steps, ("u_component_of_wind", 850): 5 + steps,
        ("v_component_of_wind", 500): -20 - steps, ("v_component_of_wind", 850): 5 - steps,
    }  # fmt: skip
    for c, channel in enumerate(made.channels):
        if (channel.variable, channel.level) in kinds:
            states[:, :, c] = kinds[channel.variable, channel.level]
    return replace(made, states=states)


@pytest.fixture(scope="module")
def dataset(gateway: GatewayProcess, tmp_path_factory) -> xr.Dataset:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "product", airy)
        wanted = {"air-an": published.Wanted(valid=VALID)}
        folder = tmp_path_factory.mktemp("air")
        return published.publish_all(gateway.layout, folder, wanted)["air-an"]


@pytest.fixture(scope="module")
def page(gateway: GatewayProcess, dataset) -> Iterator[Page]:
    link = f"#result=air-an&time={TIME}&field=t2m&point={LON},{LAT}"
    with open_window(f"{gateway.url}/web/map.html{link}") as page:
        page.wait_for_selector("#point polyline.temperature", state="attached")
        yield page


def column(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """By member and level, from the top down."""
    return dataset[name].isel(time=0).sel(longitude=LON, latitude=LAT, method="nearest")


def drawn(page: Page, name: str) -> list[float]:
    text = page.locator(f"#point polyline.{name}").get_attribute("data-values")
    return [float(part) for part in text.split()]


def test_temperature_is_the_mean_of_the_members(page, dataset) -> None:
    wanted = column(dataset, "t").mean("realization").values
    assert drawn(page, "temperature") == pytest.approx(list(wanted), abs=2e-3)


def test_dewpoint_is_where_the_vapour_is_saturated(page, dataset) -> None:
    """Of each member: the temperature at which the model's own saturation has its vapour pressure."""
    humidity = column(dataset, "q")
    tries = np.arange(200.0, 310.0, 0.005)
    saturated = saturation_vapour_pressure(tries)
    pressures = humidity["air_pressure"].values
    for level, shown in enumerate(drawn(page, "dewpoint")):
        vapour = vapour_pressure(humidity.values[:, level], pressures[level])
        expected = np.interp(vapour, saturated, tries).mean()
        assert shown == pytest.approx(expected, abs=0.01)


def test_each_member_has_its_curves(page, dataset) -> None:
    curves = page.locator("#point svg").last.locator("g polyline")
    fill = page.locator("#point svg").last.locator("g polyline.dry, g polyline.moist").count()
    lines = page.locator("#point svg").last.locator("g polyline.grid, g polyline.freezing").count()
    barbs = page.locator("#point svg").last.locator("g.wind polyline").count()
    assert curves.count() - fill - lines - barbs == 2 * 3 + 2


def test_barbs_have_the_wind_of_the_mean_and_come_from_where_it_does(page, dataset) -> None:
    u, v = (column(dataset, name).mean("realization") for name in ("u", "v"))
    for level in (500, 850):
        east, north = (float(x.sel(air_pressure=100.0 * level)) for x in (u, v))
        mark = page.locator(f"#point g.wind[data-level='{level}']")
        assert float(mark.get_attribute("data-knots")) == pytest.approx(
            np.hypot(east, north) / 0.514444, abs=0.02
        )
        # Along x before it is turned; clockwise, with y downward.
        turn = np.deg2rad(float(mark.get_attribute("transform").split("rotate(")[1].rstrip(")")))
        shaft = np.array([np.cos(turn), -np.sin(turn)])
        assert shaft @ np.array([east, north]) / np.hypot(east, north) == pytest.approx(
            -1, abs=1e-3
        )


def test_isotherms_lean_at_45_degrees(page, dataset) -> None:
    points = page.locator("#point polyline.freezing").get_attribute("points").split()
    (x0, y0), (x1, y1) = ([float(part) for part in point.split(",")] for point in points)
    assert x1 - x0 == pytest.approx(y0 - y1, abs=0.2)


def test_moist_adiabats_keep_equivalent_potential_temperature(page, dataset) -> None:
    """By Bolton (1980), Monthly Weather Review 108, equation 43, whose error is 0.02 K."""

    def theta_e(t: float, p: float) -> float:
        e = 6.112 * np.exp(17.67 * (t - 273.15) / (t - 29.65))
        r = 622.0 * e / (p - e)
        theta = t * (1000 / p) ** (0.2854 * (1 - 0.28e-3 * r))
        return theta * np.exp((3.376 / t - 0.00254) * r * (1 + 0.81e-3 * r))

    for start in (273.15, 283.15, 293.15, 303.15):
        for p in (850.0, 700.0, 500.0, 300.0):
            script = "async ([t, p]) => (await import('./profile.js')).moistAdiabat(t, p)"
            found = page.evaluate(script, [start, 100 * p])
            assert theta_e(found, p) == pytest.approx(theta_e(start, 1000.0), rel=6e-3), (start, p)
