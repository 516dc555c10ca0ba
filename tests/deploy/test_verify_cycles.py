"""The summary of a window of the series: weights, and a picture that can be read."""

import io
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from deploy.commands.verify import draw_series, summarise, summary_table
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


def test_picture(tmp_path):
    path = tmp_path / "series.png"
    draw_series(ROWS, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000
