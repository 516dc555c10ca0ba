"""The picture: coasts where they are on Earth, colours where the field has them, any product drawn."""

import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.path import Path as Outline

from tests.worker.outputs.feedback_tables import make_feedback
from tests.worker.outputs.products import TINY, make_product
from worker.results.outputs.maps import coastlines, land_polygons
from worker.results.outputs.quicklook import draw, write_product


def _is_land(lon: float, lat: float) -> bool:
    shifts = (-360.0, 0.0, 360.0)
    return any(
        Outline(land).contains_point((lon + s, lat)) for land in land_polygons() for s in shifts
    )


@pytest.mark.parametrize(
    ("lon", "lat", "land"),
    [
        (2.3, 48.9, True),  # Paris
        (-99.1, 19.4, True),  # Mexico City
        (133.9, -23.7, True),  # Alice Springs
        (-172.0, 66.5, True),  # Chukotka, beyond the date line
        (90.0, -80.0, True),  # Antarctica
        (-30.0, 0.0, False),
        (160.0, 30.0, False),
        (80.0, -30.0, False),
    ],
)
def test_land_is_land(lon, lat, land):
    assert _is_land(lon, lat) is land


def test_coastlines_do_not_run_along_the_cut_of_antarctica():
    for line in coastlines():
        assert not (line[:, 1] <= -89.99).any()


@pytest.mark.parametrize("kind", ["filtering", "forecast"])
def test_a_picture_is_written(tmp_path, kind):
    product = make_product(kind=kind, times=2, feedback=make_feedback())
    [(path, role)] = write_product(product, tmp_path)
    assert (path.name, role) == ("appa_ql_20250320T12Z_v1.png", "quicklook")
    image = imread(path)
    assert image.shape[0] > 500 and image.shape[1] > 1000
    assert image[..., :3].std() > 0.1
    assert list(tmp_path.iterdir()) == [path]


def _texts(figure) -> str:
    found = [figure.get_suptitle(), figure.get_supxlabel()]
    for axes in figure.axes:
        found += [axes.get_title(loc="left"), *(t.get_text() for t in axes.texts)]
        legend = axes.get_legend()
        found += [t.get_text() for t in legend.get_texts()] if legend else []
    return "\n".join(found)


def test_outcomes_are_counted_in_the_legend():
    text = _texts(draw(make_product(TINY, members=2, feedback=make_feedback())))
    assert "used 97" in text and "rejected 3" in text and "withheld 1" in text
    assert "Simulated ensemble analysis of 2025-03-20 12 UTC" in text
    assert "checkpoint t31 abababab" in text


def test_one_member_no_observations_and_missing_levels_are_drawn():
    text = _texts(draw(make_product(TINY, members=1, levels=(300, 850))))
    assert "one member: no spread" in text
    assert "no observations in the window" in text
    assert "300 hPa height and wind" in text


def test_temperature_at_greenwich_is_drawn_in_the_middle():
    product = make_product(TINY, members=1)
    states = np.array(product.states)
    states[:, :, 0] = 223.15
    states[:, :, 0, :, 0] = 318.15  # hot at Greenwich alone
    figure = draw(make_product(TINY, members=1, states=states))
    figure.canvas.draw()
    image = np.asarray(figure.canvas.buffer_rgba())
    box = figure.axes[0].get_window_extent()
    row = image.shape[0] - round(box.y0 + 0.25 * box.height)
    middle, side = (image[row, round(box.x0 + x * box.width)].astype(int) for x in (0.503, 0.28))
    assert middle[0] > middle[2] + 60
    assert side[2] > side[0] + 60
