"""What `/metrics` says about the cycles: how old the newest analyses are, and what is open."""

from service.metrics import GatewayMetrics
from worker.jobs import clock
from worker.jobs.cycle import CycleState, Flavour
from worker.jobs.cycle_store import CycleStore


def set_cycle_metrics(metrics: GatewayMetrics, cycles: CycleStore) -> None:
    """Sets the gauges of the cycles from the store; nothing is set where nothing is cycled."""
    metrics.cycle_age.clear()
    metrics.cycle_freshness.clear()
    for state in CycleState:
        metrics.cycles.labels(state.value).set(cycles.count(state))
    now = clock.now()
    for flavour in Flavour:
        page = cycles.select(state=CycleState.PUBLISHED, flavour=flavour, limit=1)
        for newest in page.items:
            age = (now - newest.valid_time).total_seconds()
            metrics.cycle_age.labels(flavour.value).set(age)
            if newest.freshness_seconds is not None:
                metrics.cycle_freshness.labels(flavour.value).set(newest.freshness_seconds)
