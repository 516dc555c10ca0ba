"""Explain what became of the observations of a cycle, and what changed between its revisions.

Read from the manifest and the feedback file, in which every observation of the window has exactly
one outcome.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from model.domain.errors import StorageError
from model.domain.observations import QC_FLAGS
from service.schemas import CycleView
from worker.contract.layout import Layout
from worker.contract.records import Record
from worker.results.manifest import AnalysisManifest

__all__ = ["CycleChange", "CycleExplanation", "LateNetwork", "OutcomeCount", "explain"]

_COLUMNS = ["batch_id", "observation_id", "report_type", "received_time", "rejected_by"]
_IDENTITY = ["batch_id", "observation_id"]


class OutcomeCount(Record):
    """Observed values of one network with one outcome."""

    network: str = Field(description="Report type.")
    outcome: str = Field(description="Name of the check that rejected them.")
    count: int = Field(description="Observed values.")
    meaning: str = Field(default="", description="What the check means.")


class LateNetwork(Record):
    """Values of one network that arrived after the cut-off."""

    network: str = Field(description="Report type.")
    count: int = Field(description="Observed values.")
    first: datetime = Field(description="Earliest arrival among them (UTC).")
    last: datetime = Field(description="Latest arrival among them (UTC).")


class CycleChange(Record):
    """Difference between an analysis and the previous revision of its valid time."""

    from_analysis: str = Field(description="The previous analysis.")
    from_flavour: str = Field(description="`early` or `final`.")
    from_revision: int = Field(description="Its revision.")
    from_cut_off: datetime | None = Field(default=None, description="Its cut-off (UTC).")
    added: dict[str, int] = Field(default={}, description="Values used only now, by network.")
    dropped: list[OutcomeCount] = Field(
        default=[], description="Values used before and rejected now, by network and check."
    )
    kept: int = Field(default=0, description="Number of values used by both.")


class CycleExplanation(Record):
    """What became of the observations of a cycle, in its newest analysis."""

    cycle: CycleView = Field(description="The cycle.")
    revisions: list[str] = Field(
        default=[], description="Analyses of this valid time, all flavours, oldest revision first."
    )
    window_start: datetime | None = Field(
        default=None, description="Start of the observation window, exclusive (UTC)."
    )
    window_end: datetime | None = Field(
        default=None, description="End of the observation window, inclusive (UTC)."
    )
    background: dict[str, str | int | float | None] = Field(
        default={}, description="First guess: source, analysis, age."
    )
    flags: list[str] = Field(default=[], description="Flags of the analysis.")
    outcomes: dict[str, int] = Field(default={}, description="Values by outcome, all networks.")
    used: dict[str, int] | None = Field(
        default=None, description="Values used, by network; null without a feedback file."
    )
    late: list[LateNetwork] = Field(
        default=[], description="Values that arrived after the cut-off."
    )
    rejected: list[OutcomeCount] = Field(
        default=[], description="Values rejected by a check, other than the late ones."
    )
    changed: CycleChange | None = Field(
        default=None, description="Difference from the previous revision; null if there is none."
    )


def explain(
    layout: Layout, cycle: CycleView, revisions: Sequence[AnalysisManifest]
) -> CycleExplanation:
    """Return what the newest analysis of `cycle` used and did not use.

    Arguments:
        layout: The data folder, which holds the feedback files.
        cycle: The cycle.
        revisions: Manifests of its valid time, of both flavours, in any order.
    """
    revisions = sorted(revisions, key=lambda m: (m.revision, m.created))
    found = CycleExplanation(cycle=cycle, revisions=[m.id for m in revisions])
    own = next((m for m in revisions if m.id == cycle.analysis_id), None)
    if own is None:
        return found
    found.window_start, found.window_end = own.window_start, own.window_end
    found.background = {k: v for k, v in own.background.items() if _is_plain(v)}
    found.flags, found.outcomes = own.flags, own.observations
    table = _feedback(layout, own)
    if table is None:
        return found
    found.used = _by_network(table.filter(pc.is_null(table["rejected_by"])))
    found.late = _late(table)
    found.rejected = _rejected(table)
    before = [m for m in revisions if m.revision < own.revision]
    if before:
        found.changed = _changed(layout, before[-1], table)
    return found


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _feedback(layout: Layout, manifest: AnalysisManifest) -> pa.Table | None:
    """The outcome columns of the feedback file; None when the analysis has none.

    Raises:
        StorageError: If it is gone or no feedback file.
    """
    for file in manifest.files:
        if file.role == "feedback" and file.name.endswith(".parquet"):
            path = layout.analysis_file(manifest.id, file.name)
            try:
                table = pq.read_table(path, columns=_COLUMNS)
            except (OSError, pa.ArrowException) as error:
                raise StorageError(f"Expected the feedback of '{manifest.id}'; {error}.") from error
            texts = ("batch_id", "report_type", "rejected_by")
            for name in texts:  # dictionaries of two files do not compare
                index = table.schema.get_field_index(name)
                table = table.set_column(index, name, table[name].cast(pa.string()))
            return table
    return None


def _by_network(table: pa.Table) -> dict[str, int]:
    groups = table.group_by("report_type").aggregate([("report_type", "count")])
    return {row["report_type"]: row["report_type_count"] for row in _rows(groups, "report_type")}


def _late(table: pa.Table) -> list[LateNetwork]:
    late = table.filter(pc.equal(table["rejected_by"], "late"))
    # whole microseconds: what a datetime can hold
    times = late["received_time"].cast(pa.timestamp("us", tz="UTC"), safe=False)
    late = late.set_column(late.schema.get_field_index("received_time"), "received_time", times)
    groups = late.group_by("report_type").aggregate(
        [("report_type", "count"), ("received_time", "min"), ("received_time", "max")]
    )
    return [
        LateNetwork(
            network=row["report_type"],
            count=row["report_type_count"],
            first=row["received_time_min"].astimezone(UTC),
            last=row["received_time_max"].astimezone(UTC),
        )
        for row in _rows(groups, "report_type")
    ]


def _rejected(table: pa.Table) -> list[OutcomeCount]:
    wanted = pc.and_(pc.is_valid(table["rejected_by"]), pc.not_equal(table["rejected_by"], "late"))
    return _outcomes(table.filter(pc.fill_null(wanted, False)))


def _outcomes(table: pa.Table) -> list[OutcomeCount]:
    keys = ["report_type", "rejected_by"]
    groups = table.group_by(keys).aggregate([("report_type", "count")])
    return [
        OutcomeCount(
            network=row["report_type"],
            outcome=row["rejected_by"],
            count=row["report_type_count"],
            meaning=QC_FLAGS[row["rejected_by"]].meaning if row["rejected_by"] in QC_FLAGS else "",
        )
        for row in _rows(groups, *keys)
    ]


def _rows(groups: pa.Table, *keys: str) -> list[dict]:  # type: ignore[type-arg]
    return sorted(groups.to_pylist(), key=lambda row: [row[key] for key in keys])


def _changed(layout: Layout, before: AnalysisManifest, table: pa.Table) -> CycleChange:
    change = CycleChange(
        from_analysis=before.id,
        from_flavour=before.flavour,
        from_revision=before.revision,
        from_cut_off=before.cut_off,
    )
    earlier = _feedback(layout, before)
    if earlier is None:
        return change
    used_before = earlier.filter(pc.is_null(earlier["rejected_by"])).select(_IDENTITY)
    used_now = table.filter(pc.is_null(table["rejected_by"]))
    change.added = _by_network(used_now.join(used_before, keys=_IDENTITY, join_type="left anti"))
    change.kept = used_before.join(
        used_now.select(_IDENTITY), keys=_IDENTITY, join_type="left semi"
    ).num_rows
    rejected_now = table.filter(pc.is_valid(table["rejected_by"]))
    change.dropped = _outcomes(
        rejected_now.join(used_before, keys=_IDENTITY, join_type="left semi")
    )
    return change
