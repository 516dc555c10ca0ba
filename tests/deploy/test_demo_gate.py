"""When the demo counts as failed."""

from datetime import UTC, datetime, timedelta

import pytest

from lab.demo.run import DemoResult
from lab.demo.world import StateErrors

START = datetime(2024, 10, 1, 23, tzinfo=UTC)
HOUR = timedelta(hours=1)


def made(
    analysis: float = 0.18, background: float = 0.18, forecast: float = 0.22, climate: float = 0.54
) -> DemoResult:
    """A run whose errors are those given; persistence has 0.4."""
    first = {"climatology": StateErrors(climate, {}), "analysis": StateErrors(analysis, {})}
    later = {**first, "background": StateErrors(background, {})}
    lead = {"climatology": climate, "persistence": 0.4, "forecast": forecast}
    return DemoResult(
        analyses=[(START, first), (START + HOUR, later), (START + 2 * HOUR, later)],
        forecasts=[(24, {name: StateErrors(error, {}) for name, error in lead.items()})],
    )


def test_nothing_is_held_against_a_good_run() -> None:
    assert made().shortcomings == []
    # As good as a forecast of the hour before that has seen nearly the same observations.
    assert made(analysis=0.185, background=0.18).shortcomings == []


@pytest.mark.parametrize(
    ("run", "said"),
    [
        # Observations that reach nothing leave the analysis at climatology.
        (made(analysis=0.54, background=0.54), "100% of the error of climatology"),
        (made(analysis=0.28), "52% of the error of climatology"),
        (made(analysis=float("nan")), "nan% of the error"),
        (made(analysis=0.18, background=0.16), "fall behind a forecast"),
        (made(forecast=0.41), "not better than persistence"),
        (made(forecast=0.2, climate=0.19), "not better than climatology"),
        (made(forecast=float("nan")), "not better than persistence"),
        (DemoResult(), "no forecast"),
        (DemoResult(), "fall behind a forecast"),
    ],
)
def test_what_is_not_good_enough_is_said(run: DemoResult, said: str) -> None:
    assert any(said in line for line in run.shortcomings), run.shortcomings


def test_one_bad_analysis_among_good_ones_is_enough() -> None:
    run = made()
    run.analyses[1][1]["analysis"] = StateErrors(0.3, {})
    assert any("02 Oct 00 UTC" in line for line in run.shortcomings)
