"""Plans as passes, spelled out."""

from datetime import UTC, datetime

import pytest

from model.domain.windows import WindowPlan
from model.passes import Pass, plan_passes
from model.trajectory import Blankets

NOON = datetime(2021, 3, 4, 12, tzinfo=UTC)


def test_a_filtering_window_is_extended_into_the_past() -> None:
    assert plan_passes(WindowPlan.filtering(NOON, 5), 8, 4) == (Pass(-3, Blankets(1, 8, 4)),)
    assert plan_passes(WindowPlan.filtering(NOON, 13), 8, 4) == (Pass(-3, Blankets(3, 8, 4)),)
    assert plan_passes(WindowPlan.filtering(NOON, 12), 8, 4) == (Pass(0, Blankets(2, 8, 4)),)


def test_a_forecast_is_extended_into_the_future() -> None:
    plan = WindowPlan.forecast(NOON, past=3, lead_hours=2)
    assert plan_passes(plan, 8, 4) == (Pass(0, Blankets(1, 8, 4)),)


def test_an_autoregressive_forecast_slides() -> None:
    plan = WindowPlan.forecast(NOON, past=3, lead_hours=9, new_states_per_pass=4)
    one = Blankets(1, 8, 4)
    assert plan_passes(plan, 8, 4) == (Pass(0, one), Pass(3, one, 7), Pass(7, one, 11))


@pytest.mark.parametrize("new", [1, 3, 8, 11])
@pytest.mark.parametrize("past", [1, 4, 9])
def test_every_state_is_generated_once_with_something_known_before(new, past) -> None:
    plan = WindowPlan.forecast(NOON, past=past, lead_hours=17, new_states_per_pass=new)
    known = past
    for part in plan_passes(plan, 8, 3):
        first, stop = part.inside(plan.length)
        target = min(known + new, plan.length)
        assert first < known < target <= stop
        assert part.known == (0 if known == past else known)
        known = target
    assert known == plan.length
