"""Tables and goals of starts whose figures are made up."""

from datetime import UTC, datetime

import numpy as np
import pytest

from lab.osse.scores import AutoencoderSkill, Method, SpectralDeviation, StartSkill
from lab.osse.skill import SkillSettings
from lab.osse.skill_report import judge
from lab.osse.summary import (
    SEASONS,
    channel_groups,
    channel_means,
    forecast_rows,
    group_rows,
    method_rows,
    overall,
    season,
)
from model.diagnostics.ensembles import rank_shape
from model.domain.variables import LEVELS_T31, channels

CHANNELS = channels(LEVELS_T31)
GROUPS = channel_groups(CHANNELS)


def start(month, changes=None, seconds=50.0, ratio=1.0):
    """Constant errors by method; `changes` maps (method, channel name) to another."""
    levels = {
        Method.FILTERING: 0.2,
        Method.REANALYSIS: 0.18,
        Method.WINDOWED: 0.3,
        Method.OPTIMAL_INTERPOLATION: 0.4,
        Method.FORECAST: 0.3,
        Method.PERSISTENCE: 0.4,
        Method.CLIMATOLOGY_AHEAD: 0.5,
    }
    errors = {m: np.full(len(CHANNELS), e) for m, e in levels.items()}
    names = [c.name for c in CHANNELS]
    for (method, name), value in (changes or {}).items():
        errors[method][names.index(name)] = value
    return StartSkill(
        end=datetime(2003, month, 10, 6, tzinfo=UTC),
        observations=1000,
        withheld=10,
        errors={m: tuple(e.tolist()) for m, e in errors.items()},
        spread_ratio=(ratio,) * len(CHANNELS),
        seconds={Method.FILTERING: seconds, Method.WARM: 20.0},
        processor={Method.FILTERING: 1.5 * seconds, Method.WARM: 30.0},
        memory={"cycle": 3.0, "end": 5.0},
        chi=((0.1, 1.0),),
        ranks={},
    )


def test_every_month_has_its_season():
    found = [season(datetime(2003, m, 1, tzinfo=UTC)) for m in range(1, 13)]
    expected = ["DJF"] * 2 + ["MAM"] * 3 + ["JJA"] * 3 + ["SON"] * 3 + ["DJF"]
    assert found == expected


def test_groups_hold_every_channel_once():
    positions = sorted(i for chosen in GROUPS.values() for i in chosen)
    assert positions == list(range(46))
    assert [len(GROUPS[n]) for n in ("temperature", "wind", "humidity")] == [9, 18, 8]
    assert len(GROUPS["geopotential, pressure"]) == 9


def test_means_worst_starts_and_seconds():
    starts = [start(1), start(4, {(Method.FILTERING, "2m_temperature"): 0.66}, seconds=70.0)]
    rows = {r.method: r for r in method_rows(starts)}
    assert rows[Method.FILTERING].mean == pytest.approx(0.2 + 0.46 / 46 / 2)
    assert rows[Method.FILTERING].worst == pytest.approx(0.21)
    assert rows[Method.FILTERING].worst_start == starts[1].end
    assert rows[Method.FILTERING].seconds == 60.0
    assert rows[Method.FILTERING].processor == 90.0
    assert rows[Method.WINDOWED].seconds is None
    assert Method.PERSISTENCE_6 not in rows
    assert channel_means(starts)[Method.FILTERING][0] == pytest.approx(0.43)
    groups = {r.group: r for r in group_rows(starts, CHANNELS)}
    assert groups["temperature"].errors[Method.FILTERING] == pytest.approx(0.2 + 0.23 / 9)
    assert groups["wind"].errors[Method.FILTERING] == pytest.approx(0.2)
    assert np.isnan(overall(starts, Method.WARM))


def test_forecasts_are_grouped_by_season_and_group():
    worse = {(Method.FORECAST, "temperature_500hPa"): 0.45}
    starts = [start(1), start(2, worse), start(7)]
    rows = {(r.season, r.group): r for r in forecast_rows(starts, CHANNELS)}
    assert {s for s, _ in rows} == {"DJF", "JJA", "all"}
    winter = rows["DJF", "temperature"]
    assert (winter.starts, winter.channels) == (2, 9)
    assert winter.forecast == pytest.approx(0.3 + 0.075 / 9)
    assert winter.above_persistence == 9
    assert rows["all", "temperature"].above_persistence == 9
    one = {(r.season, r.group): r for r in forecast_rows(starts[1:2], CHANNELS)}
    assert one["DJF", "temperature"].above_persistence == 8
    assert one["DJF", "temperature"].above_climatology == 9
    assert one["DJF", "all"].channels == 46


def goals(starts, members=8, deviation=0.05, counts=(1.0,) * 9):
    skill = AutoencoderSkill(
        times=(starts[0].end,),
        errors=(0.09,) * 46,
        spectra=(
            SpectralDeviation(
                variable="temperature", deviation=deviation, level=500, wavenumber=20, within=0.9
            ),
        ),
        largest_wavenumber=20,
    )
    ranks = [rank_shape("surface", np.array([counts, counts]))]
    settings = SkillSettings(members=members)
    found = judge(starts, skill, forecast_rows(starts, CHANNELS), ranks, settings)
    return {g.what: g for g in found}


def test_a_run_that_reaches_everything_meets_every_goal():
    found = goals([start(m) for m in (1, 4, 7, 10)])
    assert {g.what for g in found.values() if g.met is not True} == set()
    assert len(SEASONS) == 4
    assert found["forecast"].found.startswith("DJF 0.300 / 0.400, MAM")


def test_what_is_missed_is_said_and_what_cannot_be_told_is_not_judged():
    worse = {(Method.FORECAST, f"{v}_500hPa"): 20.0 for v in ("temperature", "u_component_of_wind")}
    starts = [start(1, worse, seconds=61.0, ratio=1.3), start(4, seconds=61.0, ratio=1.3)]
    found = goals(starts, deviation=-0.2, counts=(3.0, 1, 1, 1, 1, 1, 1, 1, 3.0))
    for what in (
        "spectra of reconstructed states",
        "forecast",
        "forecast, wind",
        "forecast, temperature",
        "spread over error",
        "ranks of withheld surface",
        "cold cycle",
    ):
        assert found[what].met is False, what
    assert found["warm-started cycle"].met is True
    few = goals([start(1)], members=4)
    assert few["forecast"].met is None
    assert few["cold cycle"].met is None
