"""Replay a published result: collect the inputs, run again, compare."""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from worker.arithmetic import Arithmetic, arithmetic_in
from worker.contract.jobs import Phase
from worker.contract.layout import Layout
from worker.loaded_models import load_models
from worker.pipeline.assimilation import assimilate_window, first_guess_of
from worker.pipeline.results import environment, plain
from worker.replay.comparison import (
    ArrayComparison,
    CannotReplay,
    InputComparison,
    ReplayOutcome,
    ReplayVerdict,
    compare_files,
)
from worker.replay.recipe import Recipe, compare_rows, feedback_in, feedback_table, read_recipe
from worker.results.manifest import AnalysisManifest
from worker.results.store import result_store
from worker.sandbox import scratch_prefix

__all__ = ["QuietProgress", "replay"]

_DECISIVE = ("observations", "seeds", "configuration", "arithmetic")
"""Findings about inputs of the run; if one differs, equal results would be a coincidence."""


class QuietProgress:
    """Stand-in for the `ProgressReporter` of a worker, without a job record and a lease."""

    def __init__(self, on_step: Callable[[int, int], None]) -> None:
        self.on_step = on_step

    def phase(self, phase: Phase, message: str = "") -> None:
        """Ignore the phase: there is no job record to write it to."""

    def __call__(self, step: int, steps: int) -> None:
        """Report that diffusion step `step` of `steps` begins."""
        self.on_step(step, steps)


def replay(
    layout: Layout,
    analysis_id: str,
    *,
    checkpoints: Sequence[str] = (),
    device: str | None = None,
    keep: Path | None = None,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> ReplayVerdict:
    """Recompute a published result and compare; nothing in the data folder is changed.

    Arguments:
        layout: The data folder.
        analysis_id: The result.
        checkpoints: Names or folders to look for its weights in, besides the bundled ones.
        device: Device of the run; by default of the same type as that of the first run.
        keep: Folder for the files of the second run; by default they are discarded.
        on_step: Called before each diffusion step with its number and their count.
    """
    try:
        recipe = read_recipe(layout, analysis_id, checkpoints)
        device = device or _device(recipe)
    except CannotReplay as error:
        return ReplayVerdict(
            analysis_id,
            ReplayOutcome.IMPOSSIBLE,
            tuple(error.findings),
            missing=tuple(error.missing),
        )
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=scratch_prefix("replay")) as scratch:
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        surroundings, made = _run(recipe, layout, folder, device, on_step)
        seconds = time.monotonic() - begun
        findings = [*recipe.findings, surroundings, *_inputs_used(recipe.manifest, made)]
        arrays: list[ArrayComparison] = []
        for file in recipe.files:
            recorded = result_store(layout).file(analysis_id, file.name)
            again = folder / file.name
            if again.exists():
                arrays += compare_files(recorded, again)
        findings = [_explained(f, recipe.manifest, made, layout, folder) for f in findings]
    return ReplayVerdict(
        analysis_id, _judge(findings, arrays), tuple(findings), tuple(arrays), seconds=seconds
    )


def _device(recipe: Recipe) -> str:
    recorded = str(recipe.manifest.provenance.get("device", "auto"))
    if recorded.startswith("cuda") and not torch.cuda.is_available():
        raise CannotReplay(
            ["a GPU: the result was made on one; give another device to try all the same"],
            list(recipe.findings),
        )
    return recorded


def _run(
    recipe: Recipe,
    layout: Layout,
    folder: Path,
    device: str,
    on_step: Callable[[int, int], None],
) -> tuple[InputComparison, AnalysisManifest]:
    """Run the job with the same number of threads, and the same arithmetic."""
    recorded: dict[str, Any] = recipe.manifest.provenance.get("environment", {})
    before = torch.get_num_threads()
    torch.set_num_threads(recorded.get("threads") or before)
    try:
        arithmetic = Arithmetic.recorded(recipe.manifest.provenance)
        with arithmetic_in(arithmetic):
            models = load_models([str(recipe.checkpoint)], device, arithmetic)
            present = environment(models.device)
            progress: Any = QuietProgress(on_step)
            job, inputs = recipe.job, recipe.inputs
            uploaded = first_guess_of(job.spec, layout, models.get(job.spec.model))
            inputs = replace(inputs, earlier=uploaded or inputs.earlier)
            made = assimilate_window(job, layout, models, progress, folder, inputs)
    finally:
        torch.set_num_threads(before)
    changed = {k: (v, present.get(k)) for k, v in recorded.items() if present.get(k) != v}
    note = ", ".join(f"{name}: {old} → {new}" for name, (old, new) in changed.items())
    same = not changed if recorded else None
    return InputComparison("environment", same, recorded, present, note=note), made


def _inputs_used(manifest: AnalysisManifest, made: AnalysisManifest) -> list[InputComparison]:
    """Compare the inputs of the second run with those of the first."""
    one, other = manifest.provenance, made.provenance
    found = []
    for name, key in (
        ("observations", "observations_sha256"),
        ("seeds", "seeds"),
        ("configuration", "configuration"),
        ("arithmetic", "arithmetic"),
    ):
        first, second = (
            json.loads(json.dumps(plain(p.get(key)), default=str)) for p in (one, other)
        )
        same = None if first is None else first == second
        note = ""
        if isinstance(first, dict) and not same:
            note = ", ".join(_changed(first, second))
        found.append(InputComparison(name, same, first, second, note))
    counts = InputComparison(
        "outcomes of checks",
        manifest.observations == made.observations,
        manifest.observations,
        made.observations,
    )
    return [*found, counts]


def _changed(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the names of entries that differ, with dots between levels."""
    names = []
    for key in sorted({*one, *other}):
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names += _changed(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(f"{prefix}{key}: {a} → {b}")
    return names


def _explained(
    finding: InputComparison,
    manifest: AnalysisManifest,
    made: AnalysisManifest,
    layout: Layout,
    folder: Path,
) -> InputComparison:
    """Add to a finding how the observations differ, if both feedback files exist."""
    if finding.name != "observations" or finding.same is not False:
        return finding
    recorded, again = feedback_table(manifest, layout), feedback_in(folder, made)
    if recorded is None or again is None:
        return finding
    return replace(finding, note=compare_rows(recorded, again))


def _judge(findings: list[InputComparison], arrays: list[ArrayComparison]) -> ReplayOutcome:
    used = all(f.same is not False for f in findings if f.name in _DECISIVE)
    same = bool(arrays) and used and all(array.same for array in arrays)
    return ReplayOutcome.IDENTICAL if same else ReplayOutcome.DIFFERENT
