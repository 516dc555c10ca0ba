"""From a manifest to all that a replay needs; or what of it is gone."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoints.card import CARD_NAME
from model.checkpoints.load import WEIGHTS, resolve
from model.domain.errors import CheckpointError, StorageError
from worker.backgrounds.first_guess import FirstGuess
from worker.backgrounds.restarts import Continuable
from worker.jobs.job import JobRecord
from worker.jobs.layout import Layout
from worker.jobs.manifest import AnalysisManifest, ManifestFile, describe_file, read_manifest
from worker.pipeline.checking import effective_parameters
from worker.pipeline.recorded import RecordedInputs
from worker.provenance import code_digest, from_plain, plain
from worker.replay.compare import COMPARED
from worker.replay.observations import StoredRows, stored_rows
from worker.replay.verdict import CannotReplay, Finding
from worker.restart import RESTART_NAME, read_restart
from worker.runtime import code_version

__all__ = ["Recipe", "read_recipe"]

_REMADE = ("netcdf", "feedback")
"""Formats whose files are compared."""


@dataclass(frozen=True)
class Recipe:
    """A result and how to make it again.

    Attributes:
        manifest: Of the published result.
        job: To run.
        inputs: To run it on.
        checkpoint: Folder of the very same weights.
        files: Published files to compare with.
        findings: What was found out so far.
    """

    manifest: AnalysisManifest
    job: JobRecord
    inputs: RecordedInputs
    checkpoint: Path
    files: tuple[ManifestFile, ...]
    findings: tuple[Finding, ...]


def read_recipe(layout: Layout, analysis_id: str, checkpoints: Sequence[str]) -> Recipe:
    """Looks for everything that the result was made of.

    Arguments:
        layout: The data folder.
        analysis_id: The result.
        checkpoints: Names or folders to look for the weights in, besides the bundled ones.

    Raises:
        CannotReplay: If something is gone; all of it is named.
        InvalidInput: If the id is no name.
    """
    try:
        manifest = read_manifest(layout, analysis_id)
    except StorageError as error:
        raise CannotReplay([error.message], []) from error
    missing: list[str] = []
    findings: list[Finding] = []
    files = _published(manifest, layout, missing, findings)
    checkpoint = _checkpoint(manifest, checkpoints, missing, findings)
    findings += _code(manifest)
    earlier = _background(manifest, layout, missing, findings)
    rows = stored_rows(manifest, layout)
    missing += rows.missing
    findings += [rows.finding, _quality_control(manifest, layout)]
    if missing or checkpoint is None:
        raise CannotReplay(missing, findings)
    inputs = _inputs(manifest, earlier, rows)
    return Recipe(manifest, _job(manifest), inputs, checkpoint, files, tuple(findings))


def _published(
    manifest: AnalysisManifest, layout: Layout, missing: list[str], findings: list[Finding]
) -> tuple[ManifestFile, ...]:
    """Files to compare with, each as its manifest says."""
    there, faults = [], []
    for file in manifest.files:
        path = layout.analysis_file(manifest.id, file.name)
        wanted = file.name.endswith(COMPARED) and file.role in ("data", "feedback", "restart")
        if not path.exists():
            faults.append(f"{file.name} is gone")
        elif describe_file(path).sha256 != file.sha256:
            faults.append(f"{file.name} was changed after it was published")
        if wanted and path.exists():
            there.append(file)
    if not there:
        missing.append("no file with numbers to compare (restart file or NetCDF)")
    findings.append(Finding("published files", not faults, note="; ".join(faults)))
    return tuple(there)


def _checkpoint(
    manifest: AnalysisManifest,
    checkpoints: Sequence[str],
    missing: list[str],
    findings: list[Finding],
) -> Path | None:
    """The folder whose card has the recorded hash."""
    wanted = str(manifest.provenance.get("checkpoint_sha256", ""))
    name = manifest.provenance.get("checkpoint", "?")
    bundled = sorted(path.parent.name for path in WEIGHTS.glob(f"*/{CARD_NAME}"))
    known = {}
    for candidate in dict.fromkeys([*checkpoints, *bundled]):
        try:
            card = resolve(candidate) / CARD_NAME
        except CheckpointError:
            continue
        if card.is_file():
            known[hashlib.sha256(card.read_bytes()).hexdigest()] = card.parent
    folder = known.get(wanted)
    found = wanted if folder else ", ".join(f"{h[:12]} ({p.name})" for h, p in known.items())
    findings.append(Finding("checkpoint", folder is not None, wanted, found, note=str(name)))
    if folder is None:
        missing.append(f"checkpoint '{name}' with the SHA-256 {wanted[:12]}…; give its folder")
    return folder


def _code(manifest: AnalysisManifest) -> list[Finding]:
    recorded = manifest.provenance
    version, digest = recorded.get("code_version", ""), recorded.get("code_sha256")
    same = None if digest is None else digest == code_digest()
    return [
        Finding("code version", version == code_version(), version, code_version()),
        Finding("code", same, digest or "", code_digest(), note="sources of model and worker"),
    ]


def _background(
    manifest: AnalysisManifest, layout: Layout, missing: list[str], findings: list[Finding]
) -> Continuable | None:
    """The result that was continued."""
    about = manifest.background
    name = about.get("analysis_id")
    if about.get("source") == FirstGuess.source:
        _first_guess(about, layout, missing, findings)
        return None
    if name is None:
        source = about.get("source", "none")
        findings.append(Finding("background", True, source, source))
        return None
    path = layout.analysis_file(str(name), RESTART_NAME)
    try:
        earlier = Continuable(read_manifest(layout, str(name)), read_restart(path))
    except StorageError:
        missing.append(f"the background: result '{name}' and its {RESTART_NAME}")
        findings.append(Finding("background", False, name, "", note="deleted since"))
        return None
    wanted, digest = about.get("restart_sha256"), describe_file(path).sha256
    same = None if wanted is None else digest == wanted
    findings.append(Finding("background", same, wanted or "", digest, note=str(name)))
    return earlier


def _first_guess(
    about: Mapping[str, Any], layout: Layout, missing: list[str], findings: list[Finding]
) -> None:
    """The upload that was the first guess: the job names it, and reads it again."""
    batch, wanted = str(about["batch_id"]), str(about["batch_sha256"])
    path = layout.raw_file(batch)
    if not path.is_file():
        missing.append(f"the background: upload '{batch}' as it came in")
        findings.append(Finding("background", False, wanted, "", note="deleted since"))
        return
    digest = describe_file(path).sha256
    findings.append(Finding("background", digest == wanted, wanted, digest, note=batch))


def _quality_control(manifest: AnalysisManifest, layout: Layout) -> Finding:
    """Whether the installation would choose the same parameters today; the recorded ones are used."""
    recorded = manifest.provenance.get("quality_control", {})
    cold = manifest.background.get("source") == "climatology"
    now: Any = plain(
        effective_parameters(manifest.spec.observations, layout.checks_file, cold=cold)
    )
    changed = [
        f"{check}.{name}"
        for check in sorted({*recorded, *now})
        for name in sorted({*recorded.get(check, {}), *now.get(check, {})})
        if recorded.get(check, {}).get(name) != now.get(check, {}).get(name)
    ]
    note = f"changed since, recorded ones used: {', '.join(changed)}" if changed else ""
    return Finding("quality control", not changed, note=note)


def _inputs(
    manifest: AnalysisManifest, earlier: Continuable | None, rows: StoredRows
) -> RecordedInputs:
    recorded = manifest.provenance
    return RecordedInputs(
        earlier=earlier,
        batches=rows.batches,
        checks=from_plain(recorded["quality_control"]) if "quality_control" in recorded else None,
        careful=recorded.get("configuration", {}).get("batch_rows") == 1,
    )


def _job(manifest: AnalysisManifest) -> JobRecord:
    """The job as it was, with those of its formats that are compared."""
    outputs = [name for name in manifest.spec.outputs if name in _REMADE]
    return JobRecord(
        id=manifest.job_id,
        spec=manifest.spec.model_copy(update={"outputs": outputs}),
        analysis_id=manifest.id,
        flavour=manifest.flavour,
        revision=manifest.revision,
        cycle=manifest.cycle,
    )
