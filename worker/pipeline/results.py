"""Turn latent members into the product, its files and its manifest.

The manifest holds the provenance: what is needed to reproduce the result bit by bit.
"""

import hashlib
import math
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.diagnostics.equivalents import Equivalents, model_equivalents
from model.domain.errors import AppaError
from model.domain.files import code_version
from model.domain.registry import installed_extensions
from model.domain.variables import Channel
from model.domain.windows import WindowPlan
from model.latent_model import LatentModel
from model.operators.observation_set import ObservationSet
from worker.backgrounds.restarts import RESTART_NAME, Restart, write_restart
from worker.contract import traces
from worker.contract.disk import disk_errors
from worker.contract.jobs import JobRecord
from worker.contract.layout import Layout
from worker.loaded_models import LoadedModel
from worker.observations.bias import BiasState
from worker.observations.columns import category_codes
from worker.observations.store.files import StoreFiles
from worker.pipeline.departures import CheckedWindow, WrittenStates, count_outcomes, fill_analysis
from worker.pipeline.gather import observation_window, table_digest
from worker.results.manifest import AnalysisManifest, ManifestFile, describe_file
from worker.results.outputs.formats import OUTPUTS
from worker.results.outputs.product import Product
from worker.results.outputs.states import StateFile, States
from worker.results.verification.comparison import challenged, compared
from worker.results.verification.control import check_cycle
from worker.results.verification.departures import withheld_errors
from worker.results.verification.report import new_values, verify_product
from worker.results.verification.series import (
    OUTSIDE_FLAG,
    SERIES_NAME,
    SeriesEntry,
    series_table,
)
from worker.results.verification.states import pressure_tendency
from worker.solver import Analysis, Background, Solver

__all__ = [
    "DecodedAnalysis",
    "code_digest",
    "decode_analysis",
    "describe_result",
    "environment",
    "from_plain",
    "make_product",
    "plain",
    "rows_of_batches",
    "weigh_innovations",
    "write_outputs",
]

log = structlog.get_logger()

UNCHECKED_FLAG = "control_limits_not_checked"
"""Flag of an analysis whose control limits could not be read."""

_SOURCES = ("model", "worker")
_INFINITE = {"inf": math.inf, "-inf": -math.inf}


def environment(device: torch.device) -> dict[str, Any]:
    """Return what else the last bits of a result depend on: libraries, threads, CPU."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        **({"extensions": extensions} if (extensions := installed_extensions()) else {}),
    }


def code_digest() -> str:
    """Return the SHA-256 over the sources of model and worker, which also reveals local edits."""
    return _CODE


def _digest_of_sources() -> str:
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for package in _SOURCES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def rows_of_batches(table: pa.Table, store: StoreFiles) -> dict[str, dict[str, Any]]:
    """Return, for each batch with rows in `table`, their number and the hash of its content."""
    code, names = category_codes(table, "batch_id")
    counts = np.bincount(code[code >= 0], minlength=len(names))
    rows = {name: int(count) for name, count in zip(names, counts, strict=True) if count}
    # Superobservations belong to no batch of the store.
    hashes = store.content_hashes(rows)
    return {name: {"rows": rows[name], "content_hash": hashes[name]} for name in hashes}


def plain(value: Any) -> Any:
    """Return `value` as JSON types: infinite numbers become texts."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def from_plain(value: Any) -> Any:
    """Invert `plain`."""
    if isinstance(value, Mapping):
        return {k: from_plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [from_plain(v) for v in value]
    return _INFINITE.get(value, value) if isinstance(value, str) else value


_CODE = _digest_of_sources()
"""Computed at the start of the process, because files may be replaced under a running worker."""


@dataclass(frozen=True, eq=False)
class DecodedAnalysis:
    """Quantities computed while the members of the analysis are decoded.

    Attributes:
        states: States at the written times, with shape (M, T, C, Y, X).
        equivalents: H(x_a) at every row of the feedback that can be monitored.
        tendency: Pressure tendencies of the last hour, mean over members; None for a single time.
        weights: What each innovation did at the withheld values, with shape (rows of the feedback,);
            None if the adjoint of the analysis is not known. See `weigh_innovations`.
    """

    states: States
    equivalents: Equivalents
    tendency: tuple[float, float] | None
    weights: NDArray[np.float64] | None = None


def make_product(
    job: JobRecord,
    plan: WindowPlan,
    loaded: LoadedModel,
    checked: CheckedWindow,
    background: Background,
    analysis: Analysis,
    decoded: DecodedAnalysis,
    layout: Layout,
    gathered: datetime,
    scratch: Path,
) -> Product:
    """Return the states at the written times with O-A, scores and provenance.

    Arguments:
        job: What was asked.
        plan: Times of the states, and which of them are written.
        loaded: The model.
        checked: The observations after all checks.
        background: The first guess.
        analysis: The result of the solver.
        decoded: Its states and equivalents.
        layout: The data folder, for the hashes of batches and earlier scores.
        gathered: Operational time at which the observations were read.
        scratch: Folder for decoded states.
    """
    feedback = fill_analysis(checked.feedback, decoded.equivalents, job.spec.seed)
    first_guess = None
    if not any(plan.tied):
        first_guess = checked.background_states
        if first_guess is None:
            first_guess = _decode_written(background.latents, plan, loaded.model, scratch)
    simulated = ("simulated",) if loaded.model.card.simulated else ()
    caught_up = ("caught_up",) if job.cycle.get("caught_up") else ()
    flags = (*simulated, *caught_up, *background.flags, *analysis.flags)
    product = Product(
        job=job,
        times=plan.written_times,
        states=decoded.states,
        background=first_guess,
        grid=loaded.model.grid,
        channels=loaded.model.channels,
        window=observation_window(plan),
        feedback=feedback,
        counts=count_outcomes(feedback),
        background_info=background.info,
        provenance=_provenance(job, loaded, checked, analysis, layout, gathered),
        flags=tuple(dict.fromkeys(flags)),
        mirrored=analysis.antithetic,
    )
    if product.window is None:  # a forecast: nothing to compare it with yet
        return product
    scored = _verified(product, layout, checked.background, decoded)
    return challenged(compared(scored, layout), layout)


def _verified(
    product: Product,
    layout: Layout,
    background: Equivalents | None,
    analysis: DecodedAnalysis,
) -> Product:
    """Return the product with its scores, its series and a flag if outside control limits.

    Arguments:
        product: A job with a window of observations.
        layout: Where the time series and the policy are.
        background: H(x_b) at rows of the feedback.
        analysis: H(x_a), likewise, with pressure tendencies and weights of innovations.
    """
    began = time.monotonic()
    job = product.job
    entry = SeriesEntry(product.reference_time, job.flavour, job.revision, job.analysis_id)
    report = verify_product(
        product, background, analysis.equivalents, analysis.tendency, analysis.weights
    )
    scores, flags = report.scores, list(product.flags)
    try:
        control = check_cycle(report.rows, entry, layout)
    except AppaError as error:  # unreadable limits must not lose the analysis
        log.warning("control limits not checked", id=job.id, reason=error.message)
        control, flags = None, [*flags, UNCHECKED_FLAG]
    rows = report.rows
    if control is not None:
        scores["control"] = control.scores
        rows += control.rows
        if control.outside:
            flags.append(OUTSIDE_FLAG)
    log.info(
        "verified",
        id=job.id,
        chi2=report.chi2,
        withheld=sum(line["count"] for line in scores["withheld"]),
        outside=[] if control is None else [o.statistic for o in control.outside],
        seconds=round(time.monotonic() - began, 3),
    )
    series = series_table(entry, rows)
    return replace(product, scores=scores, series=series, flags=tuple(dict.fromkeys(flags)))


def _provenance(
    job: JobRecord,
    loaded: LoadedModel,
    checked: CheckedWindow,
    analysis: Analysis,
    layout: Layout,
    gathered: datetime,
) -> dict[str, Any]:
    """Return everything needed to reproduce the result."""
    files = StoreFiles.of(layout)
    return {
        "checkpoint": loaded.name,
        "checkpoint_sha256": loaded.sha256,
        "code_version": code_version(),
        "seed": job.spec.seed,
        "seeds": list(analysis.seeds),
        "code_sha256": code_digest(),
        "configuration": analysis.configuration,
        "arithmetic": asdict(loaded.arithmetic),
        "memory": analysis.memory,
        **({"ranks": analysis.ranks} if analysis.ranks > 1 else {}),
        **({"parts": [[p.start, p.stop] for p in analysis.parts]} if analysis.parts else {}),
        "quality_control": plain(checked.parameters),
        "biases": checked.biases.summary(),
        "bias_coefficients": checked.biases.coefficients(),
        "gathered": gathered.isoformat(),
        "batches": rows_of_batches(checked.feedback, files),
        "batches_beside": rows_of_batches(checked.outside_window, files),
        "observations_sha256": table_digest(checked.feedback),
        "environment": environment(loaded.model.device),
        "device": str(loaded.model.device),
    }


def decode_analysis(
    plan: WindowPlan,
    model: LatentModel,
    monitored: ObservationSet,
    analysis: Analysis,
    scratch: Path,
) -> DecodedAnalysis:
    """Decode the members of an analysis once, for equivalents, written states and tendencies.

    Arguments:
        plan: Times of the states, and which of them are written.
        model: Decodes the states.
        monitored: Rows of the feedback that have equivalents.
        analysis: The result of the solver.
        scratch: Folder for decoded states.
    """
    states = WrittenStates(plan, model, len(analysis.latents), scratch)
    channels = list(model.channels)
    pressure = Channel("mean_sea_level_pressure")
    tendencies: list[tuple[float, float]] = []

    def collect(member: int, trajectory: Tensor) -> None:
        states(member, trajectory)
        if pressure in channels and len(trajectory) > 1:
            last = trajectory[-2:, channels.index(pressure)]
            tendencies.append(pressure_tendency(last, model.grid))

    looked_at = {*states.written.tolist(), *range(plan.length)[-2:]}
    hofx = model_equivalents(analysis.latents, model, monitored, collect, hours=looked_at)
    equivalents = Equivalents(monitored.rows, monitored.obs_errors, hofx, analysis.antithetic)
    mean = [float(value) for value in np.mean(tendencies, axis=0)] if tendencies else []
    return DecodedAnalysis(states.values, equivalents, (mean[0], mean[1]) if mean else None)


def weigh_innovations(
    decoded: DecodedAnalysis,
    checked: CheckedWindow,
    background: Background,
    analysis: Analysis,
    solver: Solver,
) -> DecodedAnalysis:
    """Return the decoded analysis with the weights of its innovations at the withheld values.

    They are known where a cycle continues an analysis, because the posterior is then a closed form.

    Arguments:
        decoded: The analysis, decoded.
        checked: The observations after all checks.
        background: The first guess.
        analysis: The result of the solver.
        solver: Has made it.
    """
    if background.prior is None or not len(checked.observations):
        return decoded
    new = new_values(checked.feedback, background.info)
    withheld = withheld_errors(checked.feedback, decoded.equivalents, new)
    if not len(withheld):
        return decoded
    weights = np.zeros(len(checked.feedback))
    with traces.step("weigh innovations"):
        weights[checked.observations.rows] = solver.innovation_weights(
            background.prior,
            analysis.latents.mean(0),
            checked.observations,
            checked.monitored.select(np.isin(checked.monitored.rows, withheld.rows)),
            withheld.sensitivity,
        )
    return replace(decoded, weights=weights)


def _decode_written(latents: Tensor, plan: WindowPlan, model: LatentModel, scratch: Path) -> States:
    """Return the states at the written times, decoded one at a time as full-size ones are large."""
    written = np.flatnonzero(plan.written)
    states = StateFile(scratch, (len(latents), len(written), *model.state_shape))
    with torch.no_grad():
        for number, member in enumerate(latents):
            for place, i in enumerate(written):
                latent = member[i].to(model.device, model.dtype)
                states[number, place] = model.decode(latent[None])[0].float().cpu().numpy()
    return states


def write_outputs(
    product: Product,
    analysis: Analysis,
    plan: WindowPlan,
    loaded: LoadedModel,
    folder: Path,
    biases: BiasState,
) -> list[ManifestFile]:
    """Write every requested format and the restart file into a folder that is not visible yet.

    Raises:
        UnknownName: If a format is not known here.
        OSError: If the disk is full.
    """
    written: list[tuple[Path, str]] = []
    names = list(dict.fromkeys(product.job.spec.outputs))
    with ThreadPoolExecutor(1) as beside:  # the restart is written without the interpreter's lock
        restart = None
        if not any(plan.tied):  # no job continues a forecast
            states = Restart(plan.times, analysis.latents, loaded.sha256, biases)
            restart = beside.submit(_write_restart, states, folder / RESTART_NAME)
        for name, write in zip(names, [OUTPUTS[name].load() for name in names], strict=True):
            with traces.step(f"write {name}"), disk_errors(folder):
                written += write(product, folder)
        if product.series is not None:
            path = folder / SERIES_NAME
            pq.write_table(product.series, path, compression="zstd")
            written.append((path, "verification"))
        files = [describe_file(path, role) for path, role in written]
        return files if restart is None else [*files, restart.result()]


def _write_restart(states: Restart, path: Path) -> ManifestFile:
    """Write a restart file, and return its entry in the manifest."""
    write_restart(states, path)
    return describe_file(path, "restart")


def describe_result(product: Product, files: Sequence[ManifestFile]) -> AnalysisManifest:
    """Return the manifest of a result, from its product and its files."""
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
