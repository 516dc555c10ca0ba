"""One job from its observations to a finished folder: the straight walk.

Filtering, forecast and reanalysis take the same steps; how they differ is in the plan.
"""

from pathlib import Path

import structlog

from model.domain.errors import ResourceExhausted
from worker.backgrounds.earlier import Earlier
from worker.backgrounds.first_guess import read_first_guess
from worker.backgrounds.load import load_background
from worker.backgrounds.restarts import find_restart
from worker.jobs import clock
from worker.jobs.job import JobRecord, Phase
from worker.jobs.layout import Layout
from worker.jobs.manifest import AnalysisManifest
from worker.pipeline.checking import check_window
from worker.pipeline.gather import gather_observations
from worker.pipeline.publication import write_manifest
from worker.pipeline.recorded import RecordedInputs
from worker.pipeline.results import describe_result, make_product, write_outputs
from worker.pipeline.solve import Solver
from worker.progress import ProgressReporter
from worker.warm_model import WarmModel, WarmModels

__all__ = ["assimilate_window"]

log = structlog.get_logger()


def assimilate_window(
    job: JobRecord,
    layout: Layout,
    models: WarmModels,
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
    job: JobRecord, layout: Layout, warm: WarmModel, recorded: RecordedInputs | None
) -> Earlier | None:
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
