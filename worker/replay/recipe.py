"""Collect from a manifest everything that a replay needs, or report the missing inputs.

This includes whether the observations of a result still exist, and which have arrived since.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.card import CARD_NAME
from model.checkpoints.bundle import WEIGHTS, resolve
from model.domain.errors import CheckpointError, StorageError
from model.domain.files import code_version, file_digest
from model.domain.windows import AssimilationWindow
from worker.backgrounds.load import FirstGuess
from worker.backgrounds.restarts import RESTART_NAME, PublishedStates, read_restart
from worker.contract.jobs import JobRecord
from worker.contract.layout import Layout
from worker.contract.suites import suite_of
from worker.contract.uploads import upload_store
from worker.observations.columns import SUPEROBSERVATIONS, category_codes
from worker.observations.qc.base import Override
from worker.observations.store.files import StoreFiles
from worker.observations.store.store import ObservationStore
from worker.pipeline.assimilation import JobInputs
from worker.pipeline.departures import effective_parameters
from worker.pipeline.results import code_digest, from_plain, plain
from worker.replay.comparison import COMPARED, CannotReplay, InputComparison
from worker.results.manifest import AnalysisManifest, ManifestFile, describe_file, read_manifest
from worker.results.store import result_store

__all__ = [
    "Recipe",
    "StoredRows",
    "compare_rows",
    "feedback_in",
    "feedback_table",
    "read_recipe",
    "stored_rows",
]


@dataclass(frozen=True)
class StoredRows:
    """The uploads whose rows a result used, in the present state of the observation store.

    Attributes:
        batches: Ids of the uploads, including those with rows of ascents beyond the window.
        missing: Rows that are gone, one sentence for each upload.
        finding: Comparison with what was recorded.
    """

    batches: tuple[str, ...]
    missing: tuple[str, ...]
    finding: InputComparison


def stored_rows(manifest: AnalysisManifest, layout: Layout) -> StoredRows:
    """Look up the uploads of `manifest` in the observation store."""
    if manifest.window_start is None or manifest.window_end is None:
        return StoredRows(
            (), (), InputComparison("uploads", True, note="no observations were asked for")
        )
    window = AssimilationWindow(manifest.window_start, manifest.window_end)
    recorded, how = _recorded(manifest, layout)
    counts = _count(window, manifest, layout)
    files = StoreFiles.of(layout)
    if recorded is None:
        recorded = {name: {} for name in counts if _known_then(files, name, manifest)}
    missing, changed = [], []
    hashes = files.content_hashes(recorded)
    for name, about in recorded.items():
        there, wanted = counts.get(name, 0), about.get("rows")
        if wanted is not None and there < wanted:
            missing.append(f"{wanted - there} of {wanted} observations of the upload '{name}'")
        stored, known = hashes.get(name), about.get("content_hash")
        if stored is not None and known is not None and stored != known:
            changed.append(name)
    beside = manifest.provenance.get("batches_beside", {})
    kept = files.content_hashes(beside)
    missing += [f"the upload '{name}', beside the window" for name in beside if name not in kept]
    changed += [n for n, known in kept.items() if known != beside[n].get("content_hash", known)]
    since = sorted(set(counts) - set(recorded))
    notes = [how] if how else []
    notes += [f"content changed: {', '.join(changed)}"] if changed else []
    if since:
        rows = sum(counts[name] for name in since)
        notes.append(f"left out: {rows} observations of {len(since)} uploads that came since")
    finding = InputComparison(
        "uploads",
        same=not (missing or changed),
        recorded=len(recorded),
        found=len(set(counts) & set(recorded)),
        note="; ".join(notes),
    )
    return StoredRows(tuple(sorted({*recorded, *beside})), tuple(missing), finding)


def _recorded(
    manifest: AnalysisManifest, layout: Layout
) -> tuple[Mapping[str, Mapping[str, Any]] | None, str]:
    """Return uploads and rows as recorded, else from the feedback, and which of the two."""
    batches = manifest.provenance.get("batches")
    if batches is not None:
        return batches, ""
    feedback = feedback_table(manifest, layout)
    if feedback is None:
        return None, "uploads were not recorded: taken by the time of their publication"
    names = Counter(feedback["batch_id"].cast(pa.string()).to_pylist())
    names.pop(SUPEROBSERVATIONS, None)
    return {n: {"rows": c} for n, c in names.items()}, "uploads were taken from the feedback"


def _known_then(files: StoreFiles, name: str, manifest: AnalysisManifest) -> bool:
    stored = files.manifest(name)
    return stored is not None and stored.created <= manifest.created


def _count(
    window: AssimilationWindow, manifest: AnalysisManifest, layout: Layout
) -> dict[str, int]:
    """Return the number of rows of each upload that the job would use now."""
    selection = manifest.spec.observations
    table = ObservationStore.of(layout).read_window(
        window,
        columns=("batch_id",),
        report_types=selection.report_types,
        batches=selection.batches or (),
    )
    code, names = category_codes(table, "batch_id")
    if not len(names):
        return {}
    counts = np.bincount(code, minlength=len(names))
    return {name: int(n) for name, n in zip(names, counts, strict=True) if n}


def feedback_table(manifest: AnalysisManifest, layout: Layout) -> pa.Table | None:
    """Return the published feedback; None if the result has none or it was deleted."""
    name = manifest.feedback_name
    return None if name is None else _read_if_there(result_store(layout).file(manifest.id, name))


def feedback_in(folder: Path, manifest: AnalysisManifest) -> pa.Table | None:
    """Return the feedback of `manifest` in `folder`, if there is one."""
    name = manifest.feedback_name
    return None if name is None else _read_if_there(folder / name)


def _read_if_there(path: Path) -> pa.Table | None:
    return pq.read_table(path) if path.exists() else None


def compare_rows(recorded: pa.Table, found: pa.Table) -> str:
    """Describe how the inputs in two feedback tables differ: rows, values, errors, outcomes."""
    keys = ["batch_id", "observation_id"]
    columns = ["obs_value", "obs_error", "rejected_by"]
    frames = []
    for table in (recorded, found):
        table = table.select([*keys, *columns])
        for name in ("batch_id", "rejected_by"):
            index = table.schema.get_field_index(name)
            table = table.set_column(index, name, table[name].cast(pa.string()))
        frames.append(table.to_pandas())
    both = frames[0].merge(frames[1], on=keys, how="outer", indicator=True, suffixes=("", "_now"))
    matched = both[both["_merge"] == "both"]
    words = {
        "rows missing": int((both["_merge"] == "left_only").sum()),
        "rows added": int((both["_merge"] == "right_only").sum()),
    }
    for column, word in zip(columns, ("values", "errors", "outcomes"), strict=True):
        one, other = matched[column], matched[f"{column}_now"]
        words[f"{word} changed"] = int((~((one == other) | (one.isna() & other.isna()))).sum())
    return ", ".join(f"{count} {word}" for word, count in words.items() if count)


_REMADE = ("netcdf", "feedback")
"""Formats whose files are compared."""


@dataclass(frozen=True)
class Recipe:
    """A published result and all that a replay needs.

    Attributes:
        manifest: Manifest of the published result.
        job: The job to run.
        inputs: Its inputs, without an uploaded first guess.
        checkpoint: Folder of the same weights.
        files: Published files to compare with.
        findings: Comparisons of the inputs.
    """

    manifest: AnalysisManifest
    job: JobRecord
    inputs: JobInputs
    checkpoint: Path
    files: tuple[ManifestFile, ...]
    findings: tuple[InputComparison, ...]


def read_recipe(layout: Layout, analysis_id: str, checkpoints: Sequence[str]) -> Recipe:
    """Find all inputs of a published result.

    Arguments:
        layout: The data folder.
        analysis_id: The result.
        checkpoints: Names or folders to look for the weights in, besides the bundled ones.

    Raises:
        CannotReplay: If inputs are gone; the error names all of them.
        InvalidInput: If the id is not the name of a result.
    """
    try:
        manifest = read_manifest(layout, analysis_id)
    except StorageError as error:
        raise CannotReplay([error.message], []) from error
    missing: list[str] = []
    findings: list[InputComparison] = []
    files = _published(manifest, layout, missing, findings)
    checkpoint = _checkpoint(manifest, checkpoints, missing, findings)
    findings += _code(manifest)
    earlier = _background(manifest, layout, missing, findings)
    rows = stored_rows(manifest, layout)
    missing += rows.missing
    findings += [rows.finding, _quality_control(manifest, layout)]
    if missing or checkpoint is None:
        raise CannotReplay(missing, findings)
    inputs = _inputs(manifest, layout, earlier, rows)
    return Recipe(manifest, _job(manifest), inputs, checkpoint, files, tuple(findings))


def _published(
    manifest: AnalysisManifest, layout: Layout, missing: list[str], findings: list[InputComparison]
) -> tuple[ManifestFile, ...]:
    """Return the files to compare with, and record those that differ from the manifest."""
    there, faults = [], []
    for file in manifest.files:
        path = result_store(layout).file(manifest.id, file.name)
        compared = file.name.endswith(COMPARED) and file.role in ("data", "feedback", "restart")
        if not path.exists():
            faults.append(f"{file.name} is gone")
        elif describe_file(path).sha256 != file.sha256:
            faults.append(f"{file.name} was changed after it was published")
        if compared and path.exists():
            there.append(file)
    if not there:
        missing.append("no file with numbers to compare (restart file or NetCDF)")
    findings.append(InputComparison("published files", not faults, note="; ".join(faults)))
    return tuple(there)


def _checkpoint(
    manifest: AnalysisManifest,
    checkpoints: Sequence[str],
    missing: list[str],
    findings: list[InputComparison],
) -> Path | None:
    """Return the folder whose card has the recorded hash."""
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
            known[file_digest(card)] = card.parent
    folder = known.get(wanted)
    found = wanted if folder else ", ".join(f"{h[:12]} ({p.name})" for h, p in known.items())
    findings.append(
        InputComparison("checkpoint", folder is not None, wanted, found, note=str(name))
    )
    if folder is None:
        missing.append(f"checkpoint '{name}' with the SHA-256 {wanted[:12]}…; give its folder")
    return folder


def _code(manifest: AnalysisManifest) -> list[InputComparison]:
    recorded = manifest.provenance
    version, digest = recorded.get("code_version", ""), recorded.get("code_sha256")
    same = None if digest is None else digest == code_digest()
    return [
        InputComparison("code version", version == code_version(), version, code_version()),
        InputComparison(
            "code", same, digest or "", code_digest(), note="sources of model and worker"
        ),
    ]


def _background(
    manifest: AnalysisManifest, layout: Layout, missing: list[str], findings: list[InputComparison]
) -> PublishedStates | None:
    """Return the result that was continued; None without one."""
    about = manifest.background
    name = about.get("analysis_id")
    if about.get("source") == FirstGuess.source:
        _first_guess(about, layout, missing, findings)
        return None
    if name is None:
        source = about.get("source", "none")
        findings.append(InputComparison("background", True, source, source))
        return None
    path = result_store(layout).file(str(name), RESTART_NAME)
    try:
        earlier = PublishedStates(read_manifest(layout, str(name)), read_restart(path))
    except StorageError:
        missing.append(f"the background: result '{name}' and its {RESTART_NAME}")
        findings.append(InputComparison("background", False, name, "", note="deleted since"))
        return None
    wanted, digest = about.get("restart_sha256"), describe_file(path).sha256
    same = None if wanted is None else digest == wanted
    findings.append(InputComparison("background", same, wanted or "", digest, note=str(name)))
    return earlier


def _first_guess(
    about: Mapping[str, Any], layout: Layout, missing: list[str], findings: list[InputComparison]
) -> None:
    """Check the upload that was the first guess; the job reads it again."""
    batch, wanted = str(about["batch_id"]), str(about["batch_sha256"])
    try:
        with upload_store(layout).local({batch: ""}) as found:
            digest = describe_file(found[batch]).sha256
    except FileNotFoundError:
        missing.append(f"the background: upload '{batch}' as it came in")
        findings.append(InputComparison("background", False, wanted, "", note="deleted since"))
        return
    findings.append(InputComparison("background", digest == wanted, wanted, digest, note=batch))


def _quality_control(manifest: AnalysisManifest, layout: Layout) -> InputComparison:
    """Compare the recorded parameters, which the replay uses, with the present ones."""
    recorded = manifest.provenance.get("quality_control", {})
    cold = manifest.background.get("source") == "climatology"
    now: Any = plain(
        effective_parameters(manifest.spec.observations, _checks(manifest, layout), cold=cold)
    )
    changed = [
        f"{check}.{name}"
        for check in sorted({*recorded, *now})
        for name in sorted({*recorded.get(check, {}), *now.get(check, {})})
        if recorded.get(check, {}).get(name) != now.get(check, {}).get(name)
    ]
    note = f"changed since, recorded ones used: {', '.join(changed)}" if changed else ""
    return InputComparison("quality control", not changed, note=note)


def _checks(manifest: AnalysisManifest, layout: Layout) -> list[Override]:
    """Return the present parameters of the checks of installation and suite."""
    suite = suite_of(manifest.cycle)
    return [layout.checks_file, suite.checks if suite else None]


def _inputs(
    manifest: AnalysisManifest, layout: Layout, earlier: PublishedStates | None, rows: StoredRows
) -> JobInputs:
    """Return the recorded inputs; an uploaded first guess is read when the model is loaded."""
    recorded = manifest.provenance
    checks = recorded.get("quality_control")
    return JobInputs(
        earlier=earlier,
        batches=rows.batches,
        checks=_checks(manifest, layout) if checks is None else from_plain(checks),
        minimal_batches=recorded.get("configuration", {}).get("batch_rows") == 1,
        parts=tuple(range(start, stop) for start, stop in recorded.get("parts", ())),
    )


def _job(manifest: AnalysisManifest) -> JobRecord:
    """Return the original job, with only those outputs that are compared."""
    outputs = [name for name in manifest.spec.outputs if name in _REMADE]
    return JobRecord(
        id=manifest.job_id,
        spec=manifest.spec.model_copy(update={"outputs": outputs}),
        analysis_id=manifest.id,
        flavour=manifest.flavour,
        revision=manifest.revision,
        cycle=manifest.cycle,
    )
