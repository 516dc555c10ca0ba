"""Records of the cycles made again from the published analyses, after Redis was lost.

Without it a new, empty Redis would have the hours within catch-up analysed once more, under
revisions that are taken.
"""

import structlog

from model.domain.errors import AppaError
from worker.jobs.cycle import CycleRecord, CycleState, parse_cycle_key
from worker.jobs.cycle_store import CycleStore
from worker.jobs.layout import Layout
from worker.jobs.manifest import AnalysisManifest, read_manifest

__all__ = ["recover"]

log = structlog.get_logger()


def recover(cycles: CycleStore, layout: Layout) -> int:
    """Fills an empty store with the cycles whose analyses are there; returns how many.

    Does nothing to a store that knows any cycle. Safe to run twice at once: the first record under
    a key stays.
    """
    if cycles.newest() is not None:
        return 0
    newest: dict[str, AnalysisManifest] = {}
    for path in layout.analyses.glob("*/manifest.json"):
        manifest = _read(layout, path.parent.name)
        key = str(manifest.cycle.get("key", "")) if manifest else ""
        if manifest is None or not key or manifest.kind != "filtering":
            continue
        if key not in newest or newest[key].revision < manifest.revision:
            newest[key] = manifest
    for key, manifest in newest.items():
        cycles.create(_record(key, manifest))
    if newest:
        log.warning("cycles recovered from published analyses", count=len(newest))
    return len(newest)


def _read(layout: Layout, name: str) -> AnalysisManifest | None:
    try:
        return read_manifest(layout, name)
    except (AppaError, ValueError, OSError) as error:
        log.warning("manifest passed by", analysis=name, reason=str(error)[:200])
        return None


def _record(key: str, manifest: AnalysisManifest) -> CycleRecord:
    time, flavour = parse_cycle_key(key)
    return CycleRecord(
        id=key,
        valid_time=time,
        flavour=flavour,
        cut_off=manifest.cut_off or time,
        state=CycleState.PUBLISHED,
        job_id=manifest.job_id,
        analysis_id=manifest.id,
        revision=manifest.revision,
        caught_up=bool(manifest.cycle.get("caught_up")),
        message="recovered from its manifest",
    )
