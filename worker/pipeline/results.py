"""From latent members to the product, its files and its manifest."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from model.diagnostics.departures import departure_statistics
from model.domain.windows import WindowPlan
from worker.backgrounds.background import Background
from worker.columns import kept, numbers
from worker.disk_errors import disk_errors
from worker.jobs.job import JobRecord
from worker.jobs.manifest import AnalysisManifest, ManifestFile, describe_file
from worker.outputs.product import Product
from worker.outputs.registry import OUTPUTS
from worker.pipeline.checking import CheckedWindow
from worker.pipeline.gather import observation_window, table_digest
from worker.pipeline.model_equivalents import (
    count_outcomes,
    fill_analysis,
    model_equivalents,
    monitored_set,
)
from worker.pipeline.solve import Analysis
from worker.restart import RESTART_NAME, Restart, write_restart
from worker.runtime import code_version
from worker.warm_model import WarmModel

__all__ = ["describe_result", "make_product", "write_outputs"]


def make_product(
    job: JobRecord,
    plan: WindowPlan,
    warm: WarmModel,
    checked: CheckedWindow,
    background: Background,
    analysis: Analysis,
) -> Product:
    """The states at the written times, O-A, and all that is known about them."""
    states, feedback = _states_and_feedback(job, plan, warm, checked.feedback, analysis.latents)
    first_guess = None
    if not any(plan.tied):
        first_guess = _decode_written(background.latents, plan, warm)
    provenance = {
        "checkpoint": warm.name,
        "checkpoint_sha256": warm.sha256,
        "code_version": code_version(),
        "seed": job.spec.seed,
        "seeds": list(analysis.seeds),
        "configuration": analysis.configuration,
        "quality_control": checked.parameters,
        "observations_sha256": table_digest(checked.feedback),
        "device": str(warm.model.device),
    }
    simulated = ("simulated",) if warm.model.card.simulated else ()
    caught_up = ("caught_up",) if job.cycle.get("caught_up") else ()
    flags = (*simulated, *caught_up, *background.flags, *analysis.flags)
    return Product(
        job=job,
        times=plan.written_times,
        states=states,
        background=first_guess,
        grid=warm.model.grid,
        channels=warm.model.channels,
        window=observation_window(plan),
        feedback=feedback,
        counts=count_outcomes(feedback),
        background_info=background.info,
        provenance=provenance,
        flags=tuple(dict.fromkeys(flags)),
    )


def _states_and_feedback(
    job: JobRecord, plan: WindowPlan, warm: WarmModel, feedback: pa.Table, latents: Tensor
) -> tuple[np.ndarray, pa.Table]:
    written = np.flatnonzero(plan.written)
    states = np.empty((len(latents), len(written), *warm.model.state_shape), dtype=np.float32)

    def keep(member: int, trajectory: Tensor) -> None:
        states[member] = trajectory[written].float().cpu().numpy()

    monitored = monitored_set(feedback, warm.model, plan.times)
    hofx = model_equivalents(latents, warm.model, monitored, keep)
    return states, fill_analysis(feedback, monitored.rows, hofx, job.spec.seed)


def _decode_written(latents: Tensor, plan: WindowPlan, warm: WarmModel) -> np.ndarray:
    written = np.flatnonzero(plan.written)
    states = np.empty((len(latents), len(written), *warm.model.state_shape), dtype=np.float32)
    with torch.no_grad():
        for number, member in enumerate(latents):
            for place, i in enumerate(written):  # one at a time: full-size states are large
                latent = member[i].to(warm.model.device, warm.model.dtype)
                states[number, place] = warm.model.decode(latent[None])[0].float().cpu().numpy()
    return states


def write_outputs(
    product: Product, analysis: Analysis, plan: WindowPlan, warm: WarmModel, folder: Path
) -> list[ManifestFile]:
    """Writes every format asked for, and the restart file; nothing is visible yet.

    Raises:
        UnknownName: If a format is not known here.
        OSError: If the disk is full.
    """
    written: list[tuple[Path, str]] = []
    writers = [OUTPUTS[name].load() for name in dict.fromkeys(product.job.spec.outputs)]
    for write in writers:
        with disk_errors(folder):
            written += write(product, folder)
    if not any(plan.tied):  # a forecast is nothing to start from
        path = folder / RESTART_NAME
        write_restart(Restart(plan.times, analysis.latents, warm.sha256), path)
        written.append((path, "restart"))
    return [describe_file(path, role) for path, role in written]


def describe_result(product: Product, files: Sequence[ManifestFile]) -> AnalysisManifest:
    """The manifest."""
    job, window = product.job, product.window
    return AnalysisManifest(
        id=job.analysis_id,
        job_id=job.id,
        kind=job.kind,
        valid_time=product.reference_time,
        times=list(product.times),
        flavour=job.flavour,
        revision=job.revision,
        cycle=job.cycle,
        files=list(files),
        members=product.members,
        window_start=window.start if window else None,
        window_end=window.end if window else None,
        cut_off=job.spec.observations.cut_off,
        observations=product.counts,
        background=product.background_info,
        flags=list(product.flags),
        scores=_scores(product.feedback),
        provenance=product.provenance,
        spec=job.spec,
    )


def _scores(feedback: pa.Table) -> dict[str, Any]:
    """Departure statistics of the observations in use, by network, variable and layer."""
    if not len(feedback) or not np.isfinite(numbers(feedback, "background_departure")).any():
        return {}
    used = feedback.filter(pa.array(kept(feedback)))
    error = numbers(used, "obs_error") ** 2 + np.nan_to_num(numbers(used, "background_spread")) ** 2
    chi2 = np.nanmean(numbers(used, "background_departure") ** 2 / error) if len(used) else None
    lines = [asdict(line) for line in departure_statistics(used)]
    return {"chi2": None if chi2 is None else float(chi2), "departures": lines}
