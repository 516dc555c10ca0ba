"""The summary of a window of the series: weights, and a picture that can be read."""

import io
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from matplotlib.dates import date2num
from PIL import Image
from rich.console import Console

from appa_client import Analysis
from deploy.commands.verify import summarise, summary_table
from lab.skill.cycle_series import about_series, draw_series, series_figure
from worker.results.verification.series import SeriesRow

START = datetime(2003, 10, 1, tzinfo=UTC)


def row(hour, statistic, value, count=10, network="temp", variable="temperature"):
    return SeriesRow(
        valid_time=START + timedelta(hours=hour),
        flavour="final",
        revision=2,
        analysis_id=f"an-{hour}",
        network=network,
        variable=variable,
        layer="all",
        statistic=statistic,
        value=value,
        count=count,
    )


def whole(hour, statistic, value, count):
    return row(hour, statistic, value, count, "all", "all")


ROWS = [
    row(0, "rms_background", 1.0, 30),
    row(1, "rms_background", 3.0, 10),
    row(0, "bias_background", 0.5, 30),
    row(1, "bias_background", -0.5, 10),
    row(1, "withheld_rmse_analysis", 2.0, 4),
    whole(0, "chi2", 1.0, 300),
    whole(1, "chi2", 2.0, 100),
    whole(0, "outside_limits", 0, 5),
    whole(1, "outside_limits", 2, 5),
]


def test_means_over_cycles_are_those_of_all_values_together():
    found = summarise(ROWS)
    (line,) = found.lines
    assert (line.network, line.variable, line.cycles) == ("temp", "temperature", 2)
    assert line.values["rms_background"] == pytest.approx(((30 * 1 + 10 * 9) / 40) ** 0.5)
    assert line.values["bias_background"] == pytest.approx(0.25)
    assert (found.analyses, found.outside, found.chi2) == (2, 1, pytest.approx(1.25))
    assert (found.first, found.last) == (START, START + timedelta(hours=1))
    assert summarise([]) is None


def test_table_names_units_and_leaves_gaps_empty():
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(summary_table(summarise(ROWS)))
    text = console.export_text()
    assert "temperature (K)" in text and "chi-square 1.25" in text and "1 outside" in text
    assert "1.73" in text


def test_control_limits_are_no_statistics_of_their_own():
    limits = [row(0, "bias_background_limit_low", -9.0), row(0, "rms_analysis_limit_high", 9.0)]
    assert summarise([*ROWS, *limits]) == summarise(ROWS)
    assert summarise(limits) is None


def pixel(figure, axes, hour, value):
    """The colour of a place of the data, red, green and blue."""
    x = date2num(START + timedelta(hours=hour))
    column, height = axes.transData.transform((x, value))
    shown = np.asarray(figure.canvas.buffer_rgba())
    return shown[shown.shape[0] - 1 - round(height), round(column), :3].astype(int)


LIMITED = [
    *ROWS,
    *(whole(hour, "chi2", 1.0, 100) for hour in range(2, 7)),
    # Limits at 1 to 3 and 6 h; the errors at withheld stations have an upper one alone.
    *(whole(hour, "chi2_limit_low", 0.5, 30) for hour in (1, 2, 3, 6)),
    *(whole(hour, "chi2_limit_high", 1.0 + 0.25 * hour, 30) for hour in (1, 2, 3, 6)),
    *(row(hour, "withheld_rmse_analysis", 1.0) for hour in (2, 3)),
    *(row(hour, "withheld_rmse_analysis_limit_high", 2.5) for hour in (1, 2, 3)),
]


def test_limits_are_shaded_where_they_held():
    figure = series_figure(LIMITED, "title")
    figure.canvas.draw()
    chi2, _, temperature = figure.axes[:3]
    white = [255, 255, 255]
    # Between 2 and 3 h from 0.5 up to the line from 1.5 to 1.75.
    tint = pixel(figure, chi2, 2.5, 1.5)
    assert tint[2] > tint[0] > tint[1] and (tint < 250).all(), "not the violet of the line"
    for value in (0.55, 1.58):
        assert list(pixel(figure, chi2, 2.5, value)) == list(tint)
    for hour, value in ((2.5, 0.45), (2.5, 1.67), (4.5, 0.8), (0.5, 0.8)):
        assert list(pixel(figure, chi2, hour, value)) == white
    # An analysis alone with its limits has a narrow band; those that follow each other share one.
    assert list(pixel(figure, chi2, 6.0, 2.2)) == list(tint)
    assert list(pixel(figure, chi2, 5.5, 2.2)) == white
    # Where one side is watched the band goes to the edge.
    red = pixel(figure, temperature, 2.5, 0.1)
    assert red[0] > red[1] and list(pixel(figure, temperature, 2.5, 2.4)) == list(red)
    assert list(pixel(figure, temperature, 2.5, 2.6)) == white


def test_highest_limit_is_in_sight():
    rows = [
        *ROWS,
        row(1, "rms_background_limit_high", 30.0),
        row(0, "rms_background_limit_high", 30.0),
    ]
    assert series_figure(rows, "title").axes[2].get_ylim()[1] > 30.0


def test_title_tells_time_checkpoint_and_simulated():
    newest = Analysis.model_construct(flags=["simulated"], provenance={"checkpoint": "appa-t31"})
    assert about_series(ROWS, newest) == (
        "Verification: 2 final analyses\n2003-10-01 00 to 2003-10-01 01 UTC · appa-t31 · "
        "simulated atmosphere, not for real decisions"
    )
    assert about_series(ROWS[:1], None) == ("Verification: 1 final analysis\n2003-10-01 00 UTC")


def test_picture(tmp_path):
    path = tmp_path / "series.png"
    draw_series(ROWS, "what\nwhen", path)
    assert path.stat().st_size > 10_000
    with Image.open(path) as picture:
        assert (picture.format, picture.info["Title"]) == ("PNG", "what · when")
