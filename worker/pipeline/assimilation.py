"""Run one job, from its observations to a finished folder.

Filtering, forecast and reanalysis take the same steps; how they differ is in the plan. A replay
passes the recorded inputs of the earlier run in place of what is there now.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from model.domain.errors import ResourceExhausted
from worker.backgrounds.first_guess import read_first_guess
from worker.backgrounds.load import EarlierStates, load_background
from worker.backgrounds.restarts import PublishedStates, find_restart
from worker.contract import clock
from worker.contract.jobs import JobRecord, Phase
from worker.contract.layout import Layout
from worker.lease import ProgressReporter
from worker.loaded_models import LoadedModel, LoadedModels
from worker.pipeline.departures import check_window
from worker.pipeline.gather import gather_observations
from worker.pipeline.results import describe_result, make_product, write_outputs
from worker.results.manifest import AnalysisManifest
from worker.results.publication import write_manifest
from worker.solver import Solver

__all__ = ["RecordedInputs", "assimilate_window"]


@dataclass(frozen=True)
class RecordedInputs:
    """Inputs of a finished job.

    Attributes:
        earlier: The result it continued; None for a cold start or an uploaded first guess.
        batches: Uploads whose rows it saw; None takes all there are now.
        checks: Effective parameters of quality control, this job's own changes included; None
            takes the installation's.
        careful: Whether it took the smallest sub-batches.
    """

    earlier: PublishedStates | None
    batches: tuple[str, ...] | None
    checks: Mapping[str, Any] | None
    careful: bool = False


log = structlog.get_logger()


def assimilate_window(
    job: JobRecord,
    layout: Layout,
    models: LoadedModels,
    progress: ProgressReporter,
    folder: Path,
    recorded: RecordedInputs | None = None,
) -> AnalysisManifest:
    """Runs the job; afterwards the folder holds all files and the manifest, ready to be published.

    Arguments:
        job: What was asked.
        layout: Observation store, earlier results, place for files.
        models: The warm models.
        progress: Told of every phase and step; raises when the job must stop.
        folder: Empty; not visible to readers.
        recorded: What an earlier run of this job had to go on, to do the same again.

    Raises:
        AppaError: With its code kept in the job.
    """
    spec = job.spec
    warm = models.get(spec.model)
    careful = job.error is not None and job.error.code == ResourceExhausted.code
    if recorded is not None:
        careful = recorded.careful
    solver = Solver(warm.model, spec, progress, careful=careful)

    progress.phase(Phase.GATHERING)
    earlier = _find_earlier(job, layout, warm, recorded)
    past = earlier.hours_to(spec.reference_time) if earlier else 0
    plan = spec.plan(warm.model.blanket_size, past)
    gathered = clock.now()
    batches = recorded.batches if recorded else None
    table = gather_observations(plan, spec.observations, layout, batches)

    progress.phase(Phase.BACKGROUND)
    background = load_background(plan, spec, earlier, solver)

    checks = recorded.checks if recorded else None
    checks = layout.checks_file if checks is None else checks
    checked = check_window(table, plan, spec.observations, warm.model, background, checks)
    log.info("observations", id=job.id, stored=len(table), used=len(checked.observations))

    progress.phase(Phase.SAMPLING)
    analysis = solver.analysis(plan, checked.observations, background)

    progress.phase(Phase.WRITING)
    product = make_product(job, plan, warm, checked, background, analysis, layout, gathered)
    files = write_outputs(product, analysis, plan, warm, folder)
    manifest = describe_result(product, files)
    write_manifest(folder, manifest)
    return manifest


def _find_earlier(
    job: JobRecord, layout: Layout, warm: LoadedModel, recorded: RecordedInputs | None
) -> EarlierStates | None:
    """The first guess that the job names, or else the result that it continues, if any."""
    spec = job.spec
    if spec.background_batch is not None:
        return read_first_guess(layout, spec.background_batch, warm, spec)
    if recorded is not None:
        return recorded.earlier
    return find_restart(
        layout,
        warm.sha256,
        spec.first_guess_until,
        spec.first_guess_age,
        analysis_id=spec.continues,
        cycled=bool(job.flavour),
    )
