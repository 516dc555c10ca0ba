"""A rehearsal to be judged, and what is found."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from deploy.rehearsal.content import Content
from deploy.rehearsal.delivery import Delivery
from deploy.rehearsal.evidence import AnalysisEvidence, Evidence
from deploy.rehearsal.expectation import Expectation, expectation
from deploy.rehearsal.scenario import Scenario

__all__ = ["Case", "Finding", "Told"]


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be."""

    check: str
    cycle: str
    message: str


@dataclass(frozen=True)
class Case:
    """A rehearsal to be judged."""

    scenario: Scenario
    plan: Sequence[Delivery]
    contents: Mapping[str, Content]
    evidence: Evidence

    def expected(self, analysis: AnalysisEvidence) -> Expectation:
        """What this analysis should be made of."""
        return expectation(
            self.scenario,
            analysis.valid_time,
            analysis.flavour,
            self.plan,
            self.contents,
            self.evidence.sendings,
        )

    def files_in_time(self, analysis: AnalysisEvidence) -> frozenset[str] | None:
        """Names of the files that this analysis should hold; None if a race decided about one."""
        wanted = self.expected(analysis)
        names = {s.batch_id: s.name for s in reversed(self.evidence.sendings)}
        return None if wanted.may else frozenset(names[batch] for batch in wanted.must)


Told = Iterator[tuple[str, str]]
"""(cycle, message)"""
