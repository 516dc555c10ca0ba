"""Two suites at the same withheld values: paired squares, and intervals against closed forms."""

import numpy as np
import pytest
from scipy import stats
from scipy.signal import lfilter

from tests.worker.verification.feedback_of import make_feedback
from tests.worker.verification.test_verified_job import (  # noqa: F401
    NOON,
    layout,
    models,
    run,
)
from worker.contract.kinds import FilteringSpec
from worker.contract.suites import CHALLENGES, PairedSquares
from worker.results.verification.comparison import pair_squares
from worker.results.verification.paired import (
    differences,
    group_of,
    lag_one_correlation,
    mean_interval,
    pairs_in,
)

END = np.datetime64("2024-01-01T12", "ns")


def feedback(departures, *, errors=1.0, hours=0, outcomes="withheld", ids=None, **columns):
    count = len(departures)
    return make_feedback(
        count,
        outcomes,
        {"analysis_departure": np.array(departures, dtype=np.float32)},
        observation_id=np.arange(count) if ids is None else np.array(ids),
        obs_error=np.broadcast_to(np.float32(errors), count).copy(),
        time=np.full(count, END) - np.asarray(hours) * np.timedelta64(1, "h"),
        **columns,
    )


def pairs(champion: float, challenger: float, count: int = 4, **about) -> PairedSquares:
    about = {"network": "synop", "variable": "2m_temperature", **about}
    return PairedSquares(count=count, champion=champion, challenger=challenger, **about)


def test_squares_are_paired_in_units_of_the_champions_errors():
    columns = {"variable": ["2m_temperature"] * 2 + ["mean_sea_level_pressure"]}
    champion = feedback([1.0, -3.0, 100.0], errors=[2.0, 2.0, 50.0], **columns)
    challenger = feedback([2.0, 1.0, 25.0], errors=[9.0, 9.0, 9.0], **columns)
    assert pair_squares(champion, challenger, NOON, 1) == [
        pairs(0.25 + 2.25, 1.0 + 0.25, 2),
        pairs(4.0, 0.25, 1, variable="mean_sea_level_pressure"),
    ]


def test_only_values_since_the_cycle_before_that_neither_has_used_count():
    outcomes = ["withheld", None, "withheld", "withheld"]
    champion = feedback([1.0, 9.0, 9.0, 9.0], hours=[0, 0, 1, 0], outcomes=outcomes)
    others = ["withheld", "withheld", "withheld", "background_check"]
    challenger = feedback([3.0, 1.0, 1.0, 1.0], hours=[0, 0, 1, 0], outcomes=others)
    assert pair_squares(champion, challenger, NOON, 1) == [pairs(1.0, 9.0, 1)]
    assert pair_squares(champion, challenger, NOON, 2) == [pairs(82.0, 10.0, 2)]
    assert pair_squares(champion, feedback([1.0], ids=[99]), NOON, 1) == []


def test_without_correlation_the_interval_is_that_of_the_paired_t_test():
    generator = np.random.default_rng(1)
    champion = generator.gamma(4.0, size=30)
    # Neighbours on either side of the mean: nothing to allow for.
    change = np.abs(generator.normal(0.3, 0.1, 30)) * np.tile([1.0, -0.6], 15)
    assert lag_one_correlation(change) == 0.0
    cycles = [[pairs(4 * a, 4 * (a + d))] for a, d in zip(champion, change, strict=True)]
    whole = differences(cycles)[0]
    expected = stats.ttest_rel(champion + change, champion).confidence_interval(0.95)
    scale = 100.0 / champion.mean()
    assert whole.percent == pytest.approx(scale * change.mean())
    assert (whole.low, whole.high) == pytest.approx((scale * expected.low, scale * expected.high))
    assert (whole.cycles, whole.values, whole.correlation) == (30, 120, 0.0)


@pytest.mark.parametrize("correlation", [0.3, 0.7])
def test_the_variance_of_a_mean_is_that_of_a_first_order_process(correlation):
    """Its closed form: the mean of all n^2 covariances r^|i-j|; n' is exact but for terms of 1/n."""
    count = 4000
    lags = np.arange(1, count)
    exact = (count + 2 * ((count - lags) * correlation**lags).sum()) / count**2
    values = np.tile([1.0, -1.0], count // 2)  # of mean 0 and variance 1
    low, high = mean_interval(values, correlation)
    independent = count * (1 - correlation) / (1 + correlation)
    reach = stats.t.ppf(0.975, independent - 1)
    assert (high / reach) ** 2 == pytest.approx(exact, rel=3e-3)
    assert low == -high


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8])
def test_the_interval_holds_the_mean_as_often_as_it_says(correlation):
    """A paired t test that knows of no correlation: 95, 74 and 48 % of these series."""
    generator = np.random.default_rng(2)
    held = naive = 0
    for _ in range(600):
        noise = generator.normal(size=300)
        series = lfilter([1.0], [1.0, -correlation], noise)[-120:]
        low, high = mean_interval(series, lag_one_correlation(series))
        held += low <= 0.0 <= high
        plain = stats.ttest_1samp(series, 0.0).confidence_interval(0.95)
        naive += plain.low <= 0.0 <= plain.high
    assert 0.92 <= held / 600 <= 0.98
    if correlation:
        assert naive / 600 < 0.85


def test_few_cycles_have_no_interval():
    assert mean_interval([1.0, 2.0], 0.0) is None
    assert mean_interval([1.0, 2.0, 3.0, 4.0], 0.9) is None
    whole = differences([[pairs(4.0, 2.0)], [pairs(4.0, 3.0)]])[0]
    assert (whole.percent, whole.low, whole.high) == (-37.5, None, None)


def test_differences_are_of_all_values_and_by_network_and_variables():
    sonde = {"network": "temp", "variable": "temperature"}
    wind = {"network": "temp", "variable": "u_component_of_wind"}
    cycles = [
        [pairs(8.0, 4.0, 4), pairs(2.0, 2.0, 2, **sonde), pairs(2.0, 6.0, 2, **wind)],
        [pairs(8.0, 8.0, 4)],
    ]
    found = {(d.network, d.variables): d for d in differences(cycles)}
    # The first cycle: 12 of 12 both; the second 8 of 8: no change.
    assert found["all", "all"].percent == 0.0
    assert found["synop", "all"].percent == pytest.approx(-25.0)  # of means 2 and 2, -1 and 0
    assert found["temp", "wind"].percent == pytest.approx(200.0)
    assert found["temp", "all"].percent == pytest.approx(100.0)
    assert found["all", "temperature"].values == 10
    assert found["temp", "all"].cycles == 1
    assert next(iter(found)) == ("all", "all")


@pytest.mark.parametrize(
    ("variable", "group"),
    [
        ("2m_temperature", "temperature"),
        ("2m_dewpoint_temperature", "humidity"),
        ("10m_wind_speed", "wind"),
        ("geopotential_thickness", "mass"),
        ("brightness_temperature", "temperature"),
        ("something_else", "something_else"),
    ],
)
def test_variables_are_grouped(variable, group):
    assert group_of(variable) == group


def spec():
    return FilteringSpec(
        valid_time=NOON, members=2, steps=2, outputs=["feedback"], background="climatology",
        observations={"withhold": 0.3},
    )  # fmt: skip


def about(name: str) -> dict:
    return {CHALLENGES: {"analysis_id": name, "hours": 1, "branched": NOON.isoformat()}}


def test_a_challengers_manifest_has_its_paired_errors(layout, models):  # noqa: F811
    """The same job twice: the same squares, those of its own departures."""
    champion = run(layout, models, "an-champion", spec(), flavour="final")
    cycle = about("an-champion")
    made = run(layout, models, "an-other", spec(), flavour="challenger", cycle=cycle)
    [found] = pairs_in(made.scores)
    assert found.champion == found.challenger > 0.0
    assert found.count == champion.observations["withheld"]


def test_an_analysis_is_not_lost_because_the_champions_is_gone(layout, models):  # noqa: F811
    made = run(layout, models, "an-other", spec(), flavour="challenger", cycle=about("an-gone"))
    assert pairs_in(made.scores) == []
    assert made.scores["withheld"]
