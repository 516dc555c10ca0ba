"""Times of jobs and cycles: a date, a clock, and a year that the stores can count."""

from datetime import UTC, date, datetime

import pytest
from pydantic import TypeAdapter, ValidationError

from model.domain.errors import InvalidInput
from worker.contract.cycles import parse_cycle_key
from worker.contract.kinds import (
    FilteringSpec,
    ForecastSpec,
    FullHour,
    ObservationSelection,
    ReanalysisSpec,
    UtcTime,
)

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize("kind", [UtcTime, FullHour])
@pytest.mark.parametrize(
    "time",
    ["2025", "2025-01", "2025-01-01", "20250101", 2025, 1735732800, 1735732800.0, "1735732800",
     "12:00", date(2025, 1, 1), True, None, ""],
)  # fmt: skip
def test_a_time_without_a_clock_is_none(kind, time):
    with pytest.raises(ValidationError, match="date and a clock"):
        TypeAdapter(kind).validate_python(time)


@pytest.mark.parametrize("kind", [UtcTime, FullHour])
@pytest.mark.parametrize(
    "time",
    ["2025-01-01T12:00:00Z", "2025-01-01T12:00", "2025-01-01 12:00:00+00:00",
     "2025-01-01t14:00:00+02:00", NOON, NOON.replace(tzinfo=None)],
)  # fmt: skip
def test_times_with_a_clock_are_taken(kind, time):
    assert TypeAdapter(kind).validate_python(time) == NOON


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "1699-12-31T23:00:00Z",
                                  "2201-01-01T00:00:00Z", "9999-12-31T23:00:00Z",
                                  "0001-01-01T00:00:00+14:00", "9999-12-31T23:00:00-12:00"])  # fmt: skip
def test_years_that_no_store_can_count_are_refused(time):
    for make in (
        lambda: FilteringSpec(valid_time=time),
        lambda: ForecastSpec(valid_time=time, lead_hours=24),
        lambda: ReanalysisSpec(start=time, end=time),
        lambda: ObservationSelection(cut_off=time),
    ):
        with pytest.raises(ValidationError, match="year from 1700 to 2200"):
            make()


@pytest.mark.parametrize("time", ["1700-01-01T00:00:00Z", "2200-12-31T23:00:00Z"])
def test_the_first_and_the_last_year_leave_room_for_any_window(time):
    FilteringSpec(valid_time=time, window_hours=240).plan(6)
    ForecastSpec(valid_time=time, lead_hours=360).plan(6)


def test_a_reanalysis_is_a_year_at_most():
    year = ReanalysisSpec(start="2024-01-01T00:00:00Z", end="2024-12-31T23:00:00Z")
    assert year.plan(6).length == 8784
    for end in ("2025-01-01T00:00:00Z", "2199-01-01T00:00:00Z"):
        with pytest.raises(ValidationError, match="at most 8784 hours"):
            ReanalysisSpec(start="2024-01-01T00:00:00Z", end=end)


@pytest.mark.parametrize("key", ["00010101T00Z_early", "99991231T23Z_final", "20251301T00Z_final"])
def test_keys_of_cycles_are_of_these_years(key):
    with pytest.raises(InvalidInput, match="1700 to 2200"):
        parse_cycle_key(key)
