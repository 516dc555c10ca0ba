"""Memory and work of guidance with the released configuration, from its own modules without data."""

import pytest

from benchmarks.released_cost import GIB, Released, hour_cost


@pytest.mark.parametrize(("precision", "most"), [("bfloat16", 1.0), ("float32", 2.0)])
def test_an_observed_hour(precision, most):
    cost = hour_cost(Released(precision), 0)
    # With layers linearised one by one these were 8.2 and 15.9 GiB.
    assert 0 < cost.kept < most * GIB
    # What stations, sondes, aircraft and a swath read takes two thirds of the work of whole states.
    assert cost.share < 0.7
