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
from deploy.rehearsal.evidence import Evidence
from deploy.rehearsal.observation_checks import (
    counts,
    duplicates,
    observations,
    silence,
    storage,
)

__all__ = ["CHECKS", "audit", "same_day"]

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


def same_day(one: Evidence, other: Evidence) -> tuple[Finding, ...]:
    """What was published in one run of a day and not in the other: valid time, flavour, revision
    and observations."""
    return tuple(
        Finding("same day", a.key, f"revision {a.revision}, {a.digest[:12]}: only in the {which}")
        for which, here, there in (("first run", one, other), ("second run", other, one))
        for a in here.analyses
        if a.identity not in {b.identity for b in there.analyses}
    )
