"""From latent members to the product, its files and its manifest."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from model.domain.variables import Channel
from model.domain.windows import WindowPlan
from worker.backgrounds.background import Background
from worker.disk_errors import disk_errors
from worker.jobs.job import JobRecord
from worker.jobs.layout import Layout
from worker.jobs.manifest import AnalysisManifest, ManifestFile, describe_file
from worker.jobs.observation_files import StoreFiles
from worker.jobs.verification_series import SERIES_NAME
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
from worker.provenance import code_digest, environment, plain, rows_of_batches
from worker.restart import RESTART_NAME, Restart, write_restart
from worker.runtime import code_version
from worker.verification.equivalents import Equivalents
from worker.verification.states import pressure_tendency
from worker.verification.verify import verified
from worker.warm_model import WarmModel

__all__ = ["describe_result", "make_product", "write_outputs"]


def make_product(
    job: JobRecord,
    plan: WindowPlan,
    warm: WarmModel,
    checked: CheckedWindow,
    background: Background,
    analysis: Analysis,
    layout: Layout,
    gathered: datetime,
) -> Product:
    """The states at the written times, O-A, and all that is known about them, verified."""
    decoded = _decode_analysis(plan, warm, checked.feedback, analysis)
    found = decoded.equivalents
    feedback = fill_analysis(checked.feedback, found, job.spec.seed)
    first_guess = None
    if not any(plan.tied):
        first_guess = _decode_written(background.latents, plan, warm)
    simulated = ("simulated",) if warm.model.card.simulated else ()
    caught_up = ("caught_up",) if job.cycle.get("caught_up") else ()
    flags = (*simulated, *caught_up, *background.flags, *analysis.flags)
    product = Product(
        job=job,
        times=plan.written_times,
        states=decoded.states,
        background=first_guess,
        grid=warm.model.grid,
        channels=warm.model.channels,
        window=observation_window(plan),
        feedback=feedback,
        counts=count_outcomes(feedback),
        background_info=background.info,
        provenance=_provenance(job, warm, checked, analysis, layout, gathered),
        flags=tuple(dict.fromkeys(flags)),
        mirrored=analysis.mirrored,
    )
    if product.window is None:  # a forecast: nothing to compare it with yet
        return product
    return verified(product, layout, checked.background, found, decoded.tendency)


def _provenance(
    job: JobRecord,
    warm: WarmModel,
    checked: CheckedWindow,
    analysis: Analysis,
    layout: Layout,
    gathered: datetime,
) -> dict[str, Any]:
    """Everything needed to make the result again."""
    return {
        "checkpoint": warm.name,
        "checkpoint_sha256": warm.sha256,
        "code_version": code_version(),
        "seed": job.spec.seed,
        "seeds": list(analysis.seeds),
        "code_sha256": code_digest(),
        "configuration": analysis.configuration,
        "quality_control": plain(checked.parameters),
        "gathered": gathered.isoformat(),
        "batches": rows_of_batches(checked.feedback, StoreFiles(str(layout.observations))),
        "observations_sha256": table_digest(checked.feedback),
        "environment": environment(warm.model.device),
        "device": str(warm.model.device),
    }


@dataclass(frozen=True, eq=False)
class _Decoded:
    """The members as states.

    Attributes:
        states: At the written times, with shape (M, T, C, Y, X).
        equivalents: H(x_a) at every row of the feedback that can be monitored.
        tendency: Pressure tendencies of the last hour, mean over members; None of a single time.
    """

    states: np.ndarray
    equivalents: Equivalents
    tendency: tuple[float, float] | None


def _decode_analysis(
    plan: WindowPlan, warm: WarmModel, feedback: pa.Table, analysis: Analysis
) -> _Decoded:
    latents, written = analysis.latents, np.flatnonzero(plan.written)
    states = np.empty((len(latents), len(written), *warm.model.state_shape), dtype=np.float32)
    channels = list(warm.model.channels)
    pressure = Channel("mean_sea_level_pressure")
    tendencies: list[tuple[float, float]] = []

    def keep(member: int, trajectory: Tensor) -> None:
        states[member] = trajectory[written].float().cpu().numpy()
        if pressure in channels and len(trajectory) > 1:
            last = trajectory[-2:, channels.index(pressure)]
            tendencies.append(pressure_tendency(last, warm.model.grid))

    monitored = monitored_set(feedback, warm.model, plan.times)
    hofx = model_equivalents(latents, warm.model, monitored, keep)
    equivalents = Equivalents(monitored.rows, monitored.obs_errors, hofx, analysis.mirrored)
    mean = [float(value) for value in np.mean(tendencies, axis=0)] if tendencies else []
    return _Decoded(states, equivalents, (mean[0], mean[1]) if mean else None)


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
    if product.series is not None:
        path = folder / SERIES_NAME
        pq.write_table(product.series, path, compression="zstd")
        written.append((path, "verification"))
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
        mirrored=product.mirrored,
        window_start=window.start if window else None,
        window_end=window.end if window else None,
        cut_off=job.spec.observations.cut_off,
        observations=product.counts,
        background=product.background_info,
        flags=list(product.flags),
        scores=product.scores,
        provenance=product.provenance,
        spec=job.spec,
    )
