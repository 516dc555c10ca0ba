"""An ascent that two windows share, out of a real store: used once, in its better form."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from model.domain.windows import WindowPlan
from tests.worker.tables import make_table
from worker.contract.kinds import ObservationSelection
from worker.contract.layout import Layout
from worker.observations.columns import float_column, not_rejected
from worker.observations.qc.base import QCContext
from worker.observations.qc.run import run_checks
from worker.observations.store.store import ObservationStore
from worker.pipeline.departures import to_feedback
from worker.pipeline.gather import gather_observations, gather_outside_window

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
ARRIVED = NOON + timedelta(minutes=80)
LEVELS = np.linspace(100_000.0, 20_000.0, 41)
ALL = ObservationSelection()


def ascent(batch, levels, *, seconds=0, launch=NOON, received=ARRIVED, station="10393"):
    """Temperatures of one ascent; each level `seconds` after the one before."""
    count = len(levels)
    start = np.datetime64(launch.replace(tzinfo=None), "ns")
    return make_table(
        count, batch_id=batch, received=received, report_type="temp",
        station_id=[station] * count, time=start + np.arange(count) * np.timedelta64(seconds, "s"),
        lat=52.2, lon=14.1, vertical_kind="pressure", vertical=levels, variable="temperature",
        obs_value=np.linspace(280.0, 220.0, count), profile_id=np.zeros(count),
    )  # fmt: skip


@pytest.fixture
def layout(tmp_path):
    """A sonde up from 11:50 to 13:10 as native BUFR, and as converted levels at noon; two others."""
    tables = [
        ascent("native", LEVELS, seconds=120, launch=NOON - timedelta(minutes=10)),
        ascent("tac", LEVELS[::2]),
        ascent("early", LEVELS, launch=NOON - timedelta(hours=6), station="10410"),
        ascent("elsewhere", LEVELS, launch=NOON + timedelta(hours=2), station="10410"),
    ]
    layout = Layout(tmp_path)
    store = ObservationStore(str(layout.observations))
    for table in tables:
        store.publish(table, table["batch_id"][0].as_py(), ARRIVED)
    return layout


def window(hour):
    return WindowPlan.filtering(NOON + timedelta(hours=hour), 1, written=1)


def used(layout, plan, selection=ALL, *, whole=True):
    """Batch and number of the rows in use, as a job would find them."""
    table = gather_observations(plan, selection, layout)
    outside = gather_outside_window(table, plan, selection, layout) if whole else None
    context = QCContext(
        cut_off=selection.cut_off, outside_window=to_feedback(outside) if whole else None
    )  # fmt: skip
    checked, _ = run_checks(to_feedback(table), "window", context)
    good = checked.filter(not_rejected(checked))
    numbers = float_column(good, "observation_id").astype(int).tolist()
    return set(zip(good["batch_id"].to_pylist(), numbers, strict=True))


def test_each_level_counts_in_one_window(layout):
    first, second = (used(layout, window(hour)) for hour in (0, 1))
    # Half an hour before the full hour belongs to it: 11:50 to 12:00, and 12:32 to 13:00.
    assert first == {("native", n) for n in range(6)}
    assert second == {("native", n) for n in range(21, 36)}
    # The window alone takes the converted levels, and the native ones above noon once more.
    assert used(layout, window(0), whole=False) == {("tac", n) for n in range(21)}


def test_what_arrives_after_the_cut_off_decides_nothing(layout):
    late = ascent("late", LEVELS, seconds=120, launch=NOON - timedelta(minutes=9), station="10500")
    converted = ascent("soon", LEVELS[:9], received=NOON + timedelta(minutes=5), station="10500")
    store = ObservationStore(str(layout.observations))
    for table, name in ((late, "late"), (converted, "soon")):
        store.publish(table, name, ARRIVED)
    early = ObservationSelection(cut_off=NOON + timedelta(minutes=20))
    assert used(layout, window(0), early) == {("soon", n) for n in range(9)}
    assert {name for name, _ in used(layout, window(0))} == {"native", "late"}


def test_only_the_rest_of_ascents_in_the_window_is_read(layout):
    table = gather_observations(window(0), ALL, layout)
    outside = gather_outside_window(table, window(0), ALL, layout)
    assert set(outside["batch_id"].to_pylist()) == {"native"}
    assert float_column(outside, "observation_id").tolist() == list(range(6, 41))
    again = gather_outside_window(table, window(0), ALL, layout, batches=["native", "tac"])
    assert again.to_pylist() == outside.to_pylist()
    for selection in (
        ObservationSelection(networks=["synop"]),
        ObservationSelection(batches=["tac"]),
    ):
        some = gather_observations(window(0), selection, layout)
        assert not len(gather_outside_window(some, window(0), selection, layout))
    off = {"ascents": {"enabled": False}}
    assert not len(gather_outside_window(table, window(0), ALL, layout, off))
