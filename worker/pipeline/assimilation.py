"""Run one job, from its observations to a finished folder.

Filtering, forecast and reanalysis take the same steps and differ only in the plan. A replay differs
from a first run only in its inputs.

The card of the checkpoint states the age in hours of the analysis that a cycle continues, because
background errors depend on it. With six, hourly cycles form six parallel chains. Each chain of analyses
sees every row once. An analysis has seen the rows of the uploads in its manifest that lie in its window
and had arrived by its cut-off, whether it used or rejected them. All other rows in the window are new:
those of the last hour, and late ones.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog
from numpy.typing import NDArray

from model.background import continued_ages
from model.domain.errors import ResourceExhausted
from model.domain.windows import WindowPlan
from model.latent_model import LatentModel
from worker.backgrounds.load import (
    EarlierStates,
    FirstGuess,
    continued_background,
    load_background,
    read_first_guess,
)
from worker.backgrounds.restarts import PublishedStates, RestartRanking, find_restart
from worker.contract import clock, traces
from worker.contract.jobs import JobRecord, Phase
from worker.contract.kinds import SpecBase
from worker.contract.layout import Layout
from worker.contract.measures import JobMeter
from worker.contract.suites import CHALLENGER, CHALLENGES, suite_of
from worker.lease import ProgressReporter
from worker.loaded_models import LoadedModel, LoadedModels
from worker.observations.columns import category_codes
from worker.observations.errors import exchange_errors, load_errors
from worker.observations.qc.base import Checks
from worker.pipeline.departures import check_window, outcomes_by_network
from worker.pipeline.gather import gather_observations, gather_outside_window
from worker.pipeline.parts import Consecutive, PartInputs, Splitter
from worker.pipeline.results import (
    decode_analysis,
    describe_result,
    make_product,
    weigh_innovations,
    write_outputs,
)
from worker.results.manifest import AnalysisManifest
from worker.results.publication import write_manifest
from worker.solver import Background, MemberSplit, Solver

__all__ = [
    "JobInputs",
    "already_seen",
    "assimilate_window",
    "continued",
    "first_guess_of",
    "present_inputs",
]


@dataclass(frozen=True)
class JobInputs:
    """Inputs of a job besides its specification and its model.

    Attributes:
        earlier: The states it continues; None for a cold start.
        batches: Uploads whose rows it may use; None for all in the store.
        checks: Parameters of quality control: those of the installation (YAML files and mappings, in
            order), or the effective ones of an earlier run, which include the job's own changes.
        minimal_batches: Whether the solver uses the smallest sub-batches.
        parts: Member numbers of each part drawn together; empty if all were drawn at once.
    """

    earlier: EarlierStates | None = None
    batches: tuple[str, ...] | None = None
    checks: Checks = ()
    minimal_batches: bool = False
    parts: tuple[range, ...] = ()


def present_inputs(job: JobRecord, layout: Layout, loaded: LoadedModel) -> JobInputs:
    """Return the inputs of a job from the present state of the data folder.

    Arguments:
        job: The job; after an attempt that ran out of memory the sub-batches are minimal.
        layout: The data folder.
        loaded: The model of the job.

    Raises:
        InvalidInput: If the job names an upload as its first guess that is gone or lacks states.
        DecodeError: If that upload cannot be read within the limits.
    """
    suite = suite_of(job.cycle)
    exhausted = job.error is not None and job.error.code == ResourceExhausted.code
    return JobInputs(
        earlier=first_guess_of(job.spec, layout, loaded) or _continued(job, layout, loaded),
        checks=(layout.checks_file, suite.checks if suite else None),
        minimal_batches=exhausted,
    )


def first_guess_of(spec: SpecBase, layout: Layout, loaded: LoadedModel) -> FirstGuess | None:
    """Return the uploaded first guess that a job names; None if it names none."""
    if spec.background_batch is None:
        return None
    return read_first_guess(layout, spec.background_batch, loaded, spec)


def _continued(job: JobRecord, layout: Layout, loaded: LoadedModel) -> PublishedStates | None:
    """Return the published result that the job continues, else the newest one it can start from."""
    spec, known, own = job.spec, loaded.model.card.background, _ranking(job)
    if known is not None and spec.starts_warm:
        plan = spec.plan(loaded.model.blanket_size)
        for least, greatest in continued_ages(known.hours):
            until = spec.reference_time - least
            before = find_restart(layout, loaded.sha256, until, greatest - least, ranking=own)
            if continued(plan, spec, before, loaded.model) is not None:
                return before
    return find_restart(
        layout,
        loaded.sha256,
        spec.first_guess_until,
        spec.first_guess_age,
        analysis_id=spec.continues,
        ranking=own,
    )


def _ranking(job: JobRecord) -> RestartRanking | None:
    """Return which results a job of the cycles may continue, in order; None for other jobs."""
    if not job.flavour:
        return None
    suite = suite_of(job.cycle)
    branched = job.cycle.get(CHALLENGES, {}).get("branched")
    first = datetime.fromisoformat(branched) if branched else None
    return RestartRanking(suite.id if suite else "", job.flavour == CHALLENGER, first)


log = structlog.get_logger()


def assimilate_window(
    job: JobRecord,
    layout: Layout,
    models: LoadedModels,
    progress: ProgressReporter,
    folder: Path,
    inputs: JobInputs | None = None,
    meter: JobMeter | None = None,
    splitter: Splitter | None = None,
) -> AnalysisManifest:
    """Run the job and leave all files and the manifest in `folder`, ready to be published.

    Arguments:
        job: The job.
        layout: Observation store, earlier results, place for files.
        models: The loaded models.
        progress: Called at every phase and step; raises when the job must stop.
        folder: An empty folder that readers do not see.
        inputs: Inputs of an earlier run, to repeat it; `present_inputs` by default.
        meter: Counts outcomes of checks and evaluations that ran out of memory.
        splitter: Decides whether the members are drawn by several workers; never by default.

    Raises:
        AppaError: With its code kept in the job.
    """
    spec = job.spec
    loaded = models.get(spec.model).at(spec.precision)
    model = loaded.model

    progress.phase(Phase.GATHERING)
    with traces.step("read earlier states"):
        inputs = inputs or present_inputs(job, layout, loaded)
    past = inputs.earlier.hours_to(spec.reference_time) if inputs.earlier else 0
    plan = spec.plan(model.blanket_size, past)
    gathered = clock.now()
    with traces.step("read observations"):
        table = gather_observations(plan, spec.observations, layout, inputs.batches)
        table = _with_errors_of_suite(table, job, layout)

    progress.phase(Phase.BACKGROUND)
    solver = Solver(model, spec, progress, minimal_batches=inputs.minimal_batches)
    background, seen = _background_of(plan, spec, inputs, solver, table)
    biases = inputs.earlier.restart.biases if inputs.earlier else None
    outside = gather_outside_window(
        table, plan, spec.observations, layout, inputs.checks, inputs.batches
    )
    checked = check_window(
        table,
        plan,
        spec.observations,
        model,
        background,
        inputs.checks,
        biases,
        already_assimilated=seen,
        outside_window=outside,
        scratch=folder,
    )
    log.info("observations", id=job.id, stored=len(table), used=len(checked.observations))

    progress.phase(Phase.SAMPLING)
    split: MemberSplit | None = Consecutive(inputs.parts) if inputs.parts else None
    if splitter is not None and not inputs.parts:
        given = PartInputs(plan, checked.observations, background, checked.feedback, past)
        split = splitter(loaded, given, minimal_batches=inputs.minimal_batches)
    analysis = solver.analysis(plan, checked.observations, background, split)
    if meter is not None:
        meter.assimilated(outcomes_by_network(checked.feedback), solver.memory_retries)
    decoded = decode_analysis(plan, model, checked.monitored, analysis, folder)
    decoded = weigh_innovations(decoded, checked, background, analysis, solver)

    progress.phase(Phase.WRITING)
    product = make_product(
        job, plan, loaded, checked, background, analysis, decoded, layout, gathered, folder
    )
    if meter is not None:
        meter.compared(product.scores.get("comparison"))
    files = write_outputs(product, analysis, plan, loaded, folder, checked.biases)
    manifest = describe_result(product, files)
    with traces.step("write manifest"):
        write_manifest(folder, manifest)
    return manifest


def _background_of(
    plan: WindowPlan, spec: SpecBase, inputs: JobInputs, solver: Solver, table: pa.Table
) -> tuple[Background, NDArray[np.bool_] | None]:
    """Return the background of a window, and which rows (N,) the continued analysis has seen.

    The second is None if no analysis is continued: then every row is new.
    """
    before = continued(plan, spec, inputs.earlier, solver.model)
    if before is None:
        observed = table.num_rows > 0
        return load_background(plan, spec, inputs.earlier, solver, observed=observed), None
    return continued_background(plan, before, solver), already_seen(table, before.manifest)


def _with_errors_of_suite(table: pa.Table, job: JobRecord, layout: Layout) -> pa.Table:
    """Return the observations with the errors of the job's suite, if it has any of its own."""
    suite = suite_of(job.cycle)
    if suite is None or not suite.errors:
        return table
    installed = load_errors(layout.errors_file)
    return exchange_errors(table, installed, load_errors(layout.errors_file, suite.errors))


def continued(
    plan: WindowPlan, spec: SpecBase, earlier: EarlierStates | None, model: LatentModel
) -> PublishedStates | None:
    """Return the analysis that a job continues; None where it starts from its window alone.

    Its age must be that in the card of the model, or differ from it by at most half. It must be of the
    same model, hold the first states of the window, have the same selection of observations, and have
    antithetic members, whose mean is the analysis and not a random draw. The model must provide the
    errors of such backgrounds.

    Arguments:
        plan: The states of the job.
        spec: Specification: a warm start, and the selection of observations.
        earlier: A result that can be continued, if any.
        model: Model of the job.
    """
    known = model.card.background
    if model.background_errors is None or known is None:
        return None
    if not spec.starts_warm or any(plan.tied):
        return None
    if plan.length != model.blanket_size or not isinstance(earlier, PublishedStates):
        return None
    times, before = earlier.restart.times, earlier.manifest.spec.observations
    free: dict[str, Any] = {"cut_off": None, "deny": []}
    same = before.model_copy(update=free) == spec.observations.model_copy(update=free)
    age = plan.times[-1] - times[-1]
    fits = times[0] <= plan.times[0] <= times[-1]
    fits = fits and any(low <= age <= high for low, high in continued_ages(known.hours))
    made = earlier.manifest
    analysed = made.kind == "filtering" and made.mirrored and "batches" in made.provenance
    return earlier if same and fits and analysed and made.members % 2 == 0 else None


def already_seen(table: pa.Table, manifest: AnalysisManifest) -> NDArray[np.bool_]:
    """Return which rows of a table an analysis has seen, with shape (N,).

    Arguments:
        table: Observations of a later window.
        manifest: Manifest of the analysis.
    """
    code, names = category_codes(table, "batch_id")
    known = np.array([name in manifest.provenance["batches"] for name in names] + [False])
    seen = known[code] & _up_to(table["time"], manifest.valid_time)
    if manifest.cut_off is not None:
        seen &= _up_to(table["received_time"], manifest.cut_off)
    return seen


def _up_to(times: pa.ChunkedArray, last: datetime) -> NDArray[np.bool_]:
    limit = pa.scalar(last, pa.timestamp("ns", tz="UTC"))
    return np.array(pc.less_equal(times, limit).to_numpy(), dtype=bool)
