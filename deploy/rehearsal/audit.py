"""The audit: every cycle held against what it should have been. Pure; knows only the evidence."""

from collections.abc import Callable

from deploy.rehearsal.case import Case, Finding, Told
from deploy.rehearsal.cycle_checks import (
    backgrounds,
    catching_up,
    complete,
    deadlines,
    patience,
    revisions,
)
from deploy.rehearsal.evidence import AnalysisEvidence
from deploy.rehearsal.observation_checks import (
    counts,
    duplicates,
    observations,
    silence,
    storage,
)

__all__ = ["CHECKS", "alike", "audit", "same_day"]

CHECKS: dict[str, Callable[[Case], Told]] = {
    "complete": complete,
    "revisions": revisions,
    "deadlines": deadlines,
    "storage": storage,
    "observations": observations,
    "counts": counts,
    "duplicates": duplicates,
    "silence": silence,
    "patience": patience,
    "catching up": catching_up,
    "backgrounds": backgrounds,
}
"""By name, in the order of the report."""


def audit(case: Case) -> tuple[Finding, ...]:
    """All findings; none means that the day was as it should be."""
    return tuple(
        Finding(name, cycle, message)
        for name, check in CHECKS.items()
        for cycle, message in check(case)
    )


def same_day(one: Case, other: Case) -> tuple[Finding, ...]:
    """What was published in one run of a day and not in the other.

    Compared are valid time, flavour and revision, and the observations of each analysis for which
    the senders got the same files in by its cut-off in both runs.
    """
    found = []
    for which, here, there in (("first run", one, other), ("second run", other, one)):
        known = {(a.valid_time, a.flavour, a.revision): a for a in there.evidence.analyses}
        for analysis in here.evidence.analyses:
            twin = known.get((analysis.valid_time, analysis.flavour, analysis.revision))
            if twin is None:
                message = f"revision {analysis.revision} is in the {which} only"
                found.append(Finding("same day", analysis.key, message))
            elif analysis.digest != twin.digest and alike(here, there, analysis):
                message = f"made of {analysis.digest[:12]} in the {which}, not in the other"
                found.append(Finding("same day", analysis.key, message))
    return tuple(found)


def alike(one: Case, other: Case, analysis: AnalysisEvidence) -> bool:
    """Whether the senders got the same files in by the cut-off of an analysis in both runs."""
    here, there = (case.files_in_time(analysis) for case in (one, other))
    return here is not None and here == there
