"""Control limits on series whose jumps are known."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binom, norm

from model.domain.errors import ConfigurationError
from worker.contract.layout import Layout
from worker.results.verification.control import (
    ControlPolicy,
    ControlRule,
    check_limits,
    read_control_policy,
    robust_limits,
    trailing_series,
)
from worker.results.verification.series import (
    SERIES_SCHEMA,
    SeriesEntry,
    StatisticRow,
    read_series,
    series_table,
)

START = datetime(2003, 10, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def row(statistic, value, count=100, network="synop", variable="2m_temperature"):
    return StatisticRow(network, variable, "all", statistic, float(value), count)


class Series:
    """Cycles in memory, in the order of time."""

    def __init__(self, policy):
        self.policy, self.trailing, self.sizes = policy, SERIES_SCHEMA.empty_table(), []

    def step(self, number, rows):
        time = START + number * HOUR
        found = check_limits(rows, time, self.trailing, self.policy)
        latest = series_table(SeriesEntry(time, "early", 1, f"an-{number}"), rows)
        self.sizes.append(len(latest))
        whole = pa.concat_tables([self.trailing, latest]).unify_dictionaries().combine_chunks()
        self.trailing = whole.slice(len(whole) - sum(self.sizes[-self.policy.cycles :]))
        return found


def flagged(policy, values, statistic="chi2", **about):
    series = Series(policy)
    outcomes = [series.step(i, [row(statistic, v, **about)]) for i, v in enumerate(values)]
    return [i for i, found in enumerate(outcomes) if found.outside], outcomes


def policy(statistic="chi2", **changes):
    values = {"cycles": 60, "minimum": 24, "rules": [ControlRule(statistic=statistic)]}
    return ControlPolicy(**(values | changes))


def test_a_planted_jump_is_flagged_exactly_there():
    values = 1.0 + 0.05 * np.random.default_rng(1).standard_normal(100)
    values[[70, 71]] += [0.6, -0.6]
    found, outcomes = flagged(policy(), values)
    assert found == [70, 71]
    (line,) = outcomes[70].outside
    assert (line.statistic, line.network, line.cycles) == ("chi2", "synop", 60)
    assert line.value == values[70] > line.high > 1.0 > line.low
    # 5 sigma of 0.05 on both sides of 1, from 60 values.
    assert (line.high - line.low) / 2 == pytest.approx(0.25, rel=0.35)


def test_no_limits_before_there_are_enough_cycles():
    values = [1.0, 1.1] * 11 + [50.0, 1.0, 50.0]
    found, outcomes = flagged(policy(), values)
    assert [o.checked for o in outcomes] == [0] * 24 + [1]
    assert found == [24]


def test_white_noise_is_flagged_at_the_rate_of_the_limits():
    """400 independent series of 200 cycles each, and the next value of every one."""
    sigmas, cycles = 3.0, 200
    names = [f"v{i}" for i in range(400)]
    values = 10.0 + np.random.default_rng(5).standard_normal((cycles + 6, len(names)))

    def at(number):
        return [row("chi2", v, variable=n) for n, v in zip(names, values[number], strict=True)]

    tables = [
        series_table(SeriesEntry(START + i * HOUR, "early", 1, f"an-{i}"), at(i))
        for i in range(cycles)
    ]
    trailing = pa.concat_tables(tables).unify_dictionaries()
    wide = policy(cycles=cycles, minimum=100, sigmas=sigmas, least_sigma=0.0)
    later = [
        check_limits(at(i), START + i * HOUR, trailing, wide) for i in range(cycles, cycles + 6)
    ]
    checked, outside = sum(c.checked for c in later), sum(len(c.outside) for c in later)
    assert checked == 6 * len(names)
    # Limits from 200 values are themselves uncertain: the rate may be half as large again.
    rate = 2 * norm.sf(sigmas)
    assert (
        binom.ppf(0.0001, checked, rate / 1.5) <= outside <= binom.ppf(0.9999, checked, 1.5 * rate)
    )


def test_bad_cycles_in_the_past_do_not_widen_the_limits():
    clean = np.random.default_rng(2).normal(5, 1, 200)
    spoilt = clean.copy()
    spoilt[::10] = 1000.0
    low, high = robust_limits(clean, 3.0)
    assert (low, high) == pytest.approx((2.0, 8.0), abs=0.6)
    assert robust_limits(spoilt, 3.0) == pytest.approx((low, high), abs=0.8)


def test_steady_numbers_may_move_a_little():
    assert robust_limits(np.full(50, 200.0), 5.0, 0.03) == pytest.approx((170.0, 230.0))


@pytest.mark.parametrize(("side", "wanted"), [("high", [40]), ("low", [41]), ("both", [40, 41])])
def test_sides(side, wanted):
    values = 1.0 + 0.05 * np.random.default_rng(3).standard_normal(42)
    values[[40, 41]] = 2.0, 0.1
    assert flagged(policy(rules=[ControlRule(statistic="chi2", side=side)]), values)[0] == wanted


def test_means_of_few_values_are_left_alone():
    values = 1.0 + 0.05 * np.random.default_rng(3).standard_normal(42)
    values[40] = 9.0
    assert flagged(policy(), values, count=9)[0] == []


def limit_rows(found):
    return {r.statistic: (r.value, r.count) for r in found.rows if "_limit_" in r.statistic}


@pytest.mark.parametrize(
    ("side", "names"),
    [("both", ["low", "high"]), ("high", ["high"]), ("low", ["low"])],
)
def test_limits_are_rows_of_the_series_also_when_nothing_is_outside(side, names):
    """Of 1, 2, 3, 4, 100 the median is 3 and the median absolute deviation 1."""
    rules = [ControlRule(statistic="chi2", side=side)]
    wanted = policy(cycles=10, minimum=5, sigmas=2.0, rules=rules)
    _, outcomes = flagged(wanted, [1.0, 2.0, 3.0, 4.0, 100.0, 3.5])
    reach = 2 * 1.4826
    known = {"low": 3 - reach, "high": 3 + reach}
    found = limit_rows(outcomes[-1])
    assert list(found) == [f"chi2_limit_{name}" for name in names]
    for name in names:
        assert found[f"chi2_limit_{name}"] == (pytest.approx(known[name]), 5)
    assert limit_rows(outcomes[-2]) == {}  # four cycles are too few


def test_the_narrowest_limits_of_several_rules_count():
    rules = [
        ControlRule(statistic="chi2", sigmas=2.0, side="high"),
        ControlRule(statistic="chi2", sigmas=3.0),
    ]
    values = [1.0, 2.0, 3.0, 4.0, 100.0, 3.5]
    _, outcomes = flagged(policy(cycles=10, minimum=5, rules=rules), values)
    found = limit_rows(outcomes[-1])
    assert found["chi2_limit_high"][0] == pytest.approx(3 + 2 * 1.4826)
    assert found["chi2_limit_low"][0] == pytest.approx(3 - 3 * 1.4826)


def test_counts_are_compared_with_the_same_hour_and_a_lost_network_is_found():
    """Sondes at 0 and 12 UTC only, for ten days; at noon of the last one they do not come."""
    series = Series(ControlPolicy())
    rng = np.random.default_rng(4)
    outside = {}
    for number in range(24 * 10 + 13):
        rows = [row("used_new", 5000 + rng.normal(0, 50), 5000, "synop", "all")]
        if number % 12 == 0 and number != 24 * 10 + 12:
            rows.append(row("used_new", 600 + rng.normal(0, 8), 600, "temp", "all"))
        found = series.step(number, rows)
        if found.outside:
            outside[number] = [(o.network, o.value) for o in found.outside]
    assert outside == {24 * 10 + 12: [("temp", 0.0)]}


def test_trailing_cycles_are_those_before_of_the_same_flavour_in_their_newest_revision(tmp_path):
    layout = Layout(tmp_path)

    def put(hour, flavour, revision, value):
        entry = SeriesEntry(START + hour * HOUR, flavour, revision, f"an-{hour}-{revision}")
        entry.path(layout).parent.mkdir(parents=True, exist_ok=True)
        rows = [row("chi2", value), row("error", 1.0)]
        pq.write_table(series_table(entry, rows), entry.path(layout))

    for hour in range(12):
        put(hour, "early", 1, 100.0)
        put(hour, "final", 2, float(hour))
    put(6, "final", 3, 66.0)
    put(30, "final", 2, 30.0)
    found = trailing_series(layout, "final", START + 10 * HOUR, policy(cycles=8))
    assert found["value"].to_pylist() == [2.0, 3.0, 4.0, 5.0, 66.0, 7.0, 8.0, 9.0]
    assert set(found["statistic"].to_pylist()) == {"chi2"}
    assert len(read_series(layout, [])) == 0
    # Cycles a day apart are found, too.
    for day in range(2, 7):
        put(24 * day, "final", 2, float(24 * day))
    found = trailing_series(layout, "final", START + 168 * HOUR, policy(cycles=8))
    assert found["value"].to_pylist() == [10.0, 11.0, 30.0, 48.0, 72.0, 96.0, 120.0, 144.0]


def test_policy_file(tmp_path):
    path = tmp_path / "verification.yaml"
    assert read_control_policy(path) == ControlPolicy()
    path.write_text("sigmas: 4\nrules: [{statistic: chi2, networks: [all], side: high}]\n")
    found = read_control_policy(path)
    assert (found.sigmas, found.cycles, len(found.rules)) == (4.0, 360, 1)
    for text, said in (
        ("sigma: 4", "sigma"), ("rules: [{side: up}]", "rules.0"), ("[", "readable"), ("- 1", "file"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=said):
            read_control_policy(path)
