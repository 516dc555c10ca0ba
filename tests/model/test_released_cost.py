"""Memory and work that guidance takes with the released configuration, from its own modules without data."""

import pytest

from benchmarks.released_cost import GIB, Released, hour_cost, kept_per_state


@pytest.mark.parametrize(("precision", "most"), [("bfloat16", 1.0), ("float32", 2.0)])
def test_bytes_kept_of_an_observed_hour(precision, most):
    # With layers linearised one by one these were 8.2 and 15.9 GiB.
    assert 0 < kept_per_state(Released(precision)) < most * GIB


def test_work_and_bytes_of_decoding_what_an_hour_observes():
    cost = hour_cost(Released("bfloat16"), 6)
    # Whole: 3.1 TFLOP for the value and for each product, half as much again where it is
    # computed anew. With two iterations and a recycled solution there are six products.
    evaluation = cost.value.operations + 3 * (cost.vjp.operations + cost.jvp.operations)
    assert 0.5 < cost.share < 0.78
    assert evaluation < 17e12
    assert 0 < cost.kept < 1.25 * GIB
