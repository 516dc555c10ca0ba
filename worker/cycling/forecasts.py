"""Forecasts from the final analyses of the hours that the policy names."""

from worker.cycling.submit import cycle_facts, cycle_seed, queue_job
from worker.jobs.cycle import CycleRecord, Flavour
from worker.jobs.cycle_policy import CyclePolicy
from worker.jobs.job import JobRecord
from worker.jobs.kinds import ForecastSpec
from worker.jobs.queues import TaskSender
from worker.jobs.store import Stores

__all__ = ["forecast_spec", "start_forecast", "wants_forecast"]


def wants_forecast(policy: CyclePolicy, record: CycleRecord) -> bool:
    """Whether the analysis of this cycle starts a forecast; reruns do, too."""
    wanted = policy.forecast
    final = record.flavour is Flavour.FINAL
    return wanted is not None and final and record.valid_time.hour in wanted.hours


def forecast_spec(policy: CyclePolicy, record: CycleRecord, analysis_id: str) -> ForecastSpec:
    """The forecast from this very analysis."""
    wanted = policy.forecast
    assert wanted is not None  # noqa: S101  # asked for by wants_forecast
    return ForecastSpec(
        valid_time=record.valid_time,
        lead_hours=wanted.lead_hours,
        analysis_id=analysis_id,
        members=wanted.members or policy.members,
        model=policy.model,
        steps=policy.steps,
        seed=cycle_seed(policy, record.valid_time),
        outputs=[name for name in policy.outputs if name != "feedback"] or policy.outputs,
    )


def start_forecast(
    stores: Stores, sender: TaskSender, policy: CyclePolicy, record: CycleRecord, analysis_id: str
) -> JobRecord:
    """Queues the forecast; asked again, finds the same one."""
    spec = forecast_spec(policy, record, analysis_id)
    key = f"cycle:{record.key}:{record.rerun}:forecast"
    facts = cycle_facts(policy, record) | {"attempt": record.attempts}
    return queue_job(stores, sender, spec, key, record, facts)
