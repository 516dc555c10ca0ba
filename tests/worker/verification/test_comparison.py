"""Cycles against cold windows: paired errors at withheld values, tested over several comparisons."""

from datetime import timedelta
from math import log

import numpy as np
import pytest

from tests.worker.verification.feedback_of import make_feedback
from tests.worker.verification.test_verified_job import (  # noqa: F401
    NOON,
    layout,
    models,
    run,
)
from worker.contract.jobs import COMPARED_WITH
from worker.contract.kinds import FilteringSpec
from worker.results.verification.comparison import RATIO, compare, is_worse
from worker.results.verification.series import (
    WORSE_FLAG,
    SeriesFilter,
    append_to_series,
    read_entry,
)
from worker.results.verification.series import find_series as entries_of

END = np.datetime64("2024-01-01T12", "ns")


def feedback(departures, *, variables, outcomes="withheld", hours=1, ids=None):
    count = len(departures)
    return make_feedback(
        count,
        outcomes,
        {"analysis_departure": np.array(departures, dtype=np.float32)},
        observation_id=np.arange(count) if ids is None else np.array(ids),
        variable=variables,
        time=np.full(count, END) - np.asarray(hours) * np.timedelta64(1, "h"),
    )


def test_errors_are_paired_value_by_value_and_averaged_as_ratios():
    variables = ["2m_temperature"] * 3 + ["mean_sea_level_pressure"]
    cycle = feedback([1.0, -1.0, 1.0, 100.0], variables=variables)
    cold = feedback([2.0, -2.0, 2.0, 50.0], variables=variables)
    found = compare("an-cycle", cycle, cold, NOON)
    # Three values at half the error, one at twice: (3 log(1/2) + log 2) / 4.
    assert found.ratio == pytest.approx(-0.5 * log(2))
    assert [(e.variable, e.count, e.cycle, e.cold) for e in found.errors] == [
        ("2m_temperature", 3, 1.0, 2.0),
        ("mean_sea_level_pressure", 1, 100.0, 50.0),
    ]


def test_only_what_both_have_withheld_of_the_newest_hours_counts():
    variables = ["2m_temperature"] * 4
    cycle = feedback([1.0, 9.0, 9.0, 9.0], variables=variables, hours=[0, 0, 7, 1],
                     outcomes=["withheld", None, "withheld", "withheld"])  # fmt: skip
    cold = feedback([3.0, 1.0, 1.0, 1.0], variables=variables, hours=[0, 0, 7, 1],
                    outcomes=["withheld", "withheld", "withheld", None])  # fmt: skip
    found = compare("an-cycle", cycle, cold, NOON)
    assert (found.count, found.ratio) == (1, pytest.approx(-log(3)))
    other = feedback([1.0], variables=["2m_temperature"], ids=[99])
    assert compare("an-cycle", other, cold, NOON) is None


@pytest.mark.parametrize(
    ("ratios", "worse"),
    [
        ([0.1, 0.2, 0.3], True),  # t = 3.46, beyond 2.92, the 95 % quantile with 2 degrees
        ([0.0, 0.2, 0.4], False),  # t = 1.73
        ([0.1, 0.2], False),  # too few
        ([-0.1, -0.2, -0.3], False),
        ([-9.0, 0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.2], True),  # the oldest is forgotten
    ],
)
def test_several_comparisons_are_tested_together(ratios, worse):
    assert is_worse(ratios) is worse


def cold_spec():
    chosen = {"withhold": 0.3}
    return FilteringSpec(
        valid_time=NOON, members=2, steps=2, outputs=["feedback"], observations=chosen,
        background="climatology", warm_start=False,
    )  # fmt: skip


def compared_row(layout):  # noqa: F811
    [entry] = entries_of(layout, flavours=[""])
    return read_entry(layout, entry, SeriesFilter(statistics=[RATIO])).to_pylist()


def test_a_cold_window_is_compared_with_the_analysis_it_names(layout, models):  # noqa: F811
    """The same job twice: equal errors, whose ratio is one."""
    run(layout, models, "an-cycle", cold_spec(), flavour="final")
    manifest = run(layout, models, "an-cold", cold_spec(), cycle={COMPARED_WITH: "an-cycle"})
    found = manifest.scores["comparison"]
    assert found["analysis_id"] == "an-cycle"
    assert found["ratio"] == 0.0
    assert found["count"] == manifest.observations["withheld"] > 0
    assert WORSE_FLAG not in manifest.flags
    append_to_series(layout, manifest)
    [row] = compared_row(layout)
    assert (row["value"], row["count"]) == (0.0, found["count"])


def test_an_analysis_is_not_lost_because_it_cannot_be_compared(layout, models):  # noqa: F811
    manifest = run(layout, models, "an-cold", cold_spec(), cycle={COMPARED_WITH: "an-gone"})
    assert "comparison" not in manifest.scores
    assert manifest.scores["withheld"]


def test_the_cold_window_of_another_hour_is_not_taken_for_it(layout, models):  # noqa: F811
    run(layout, models, "an-cycle", cold_spec(), flavour="final")
    later = cold_spec().model_copy(update={"valid_time": NOON + timedelta(hours=12)})
    manifest = run(layout, models, "an-cold", later, cycle={COMPARED_WITH: "an-cycle"})
    assert "comparison" not in manifest.scores
