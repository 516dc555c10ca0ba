"""What a replay found."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from model.domain.errors import AppaError

__all__ = ["EXIT_CODES", "ArrayComparison", "CannotReplay", "Finding", "Outcome", "Verdict"]


class Outcome(StrEnum):
    """Whether the result could be made again."""

    IDENTICAL = "identical"
    DIFFERENT = "different"
    IMPOSSIBLE = "cannot be replayed"


EXIT_CODES = {Outcome.IDENTICAL: 0, Outcome.DIFFERENT: 1, Outcome.IMPOSSIBLE: 2}


@dataclass(frozen=True)
class Finding:
    """One thing that went into the result, as recorded and as found.

    Attributes:
        name: `checkpoint`, `code`, `observations` …
        same: Whether both agree; None when nothing was recorded.
        recorded: What the manifest says.
        found: What there is, or what the replay made.
        note: In words, where values do not say enough.
    """

    name: str
    same: bool | None
    recorded: Any = ""
    found: Any = ""
    note: str = ""


@dataclass(frozen=True)
class ArrayComparison:
    """One array of one file.

    Attributes:
        file: Its name.
        name: Of the variable or column.
        size: Values in it.
        differing: Values whose bits differ; all of them if the shapes do.
        max_difference: Largest absolute difference of numbers; None where there is none to take.
    """

    file: str
    name: str
    size: int
    differing: int
    max_difference: float | None = None

    @property
    def same(self) -> bool:
        """Whether all bits agree."""
        return self.differing == 0


@dataclass(frozen=True)
class Verdict:
    """The answer.

    Attributes:
        analysis_id: What was replayed.
        outcome: In a word.
        findings: What went in.
        arrays: What came out.
        missing: What a replay would need and does not have.
        seconds: How long the run took.
    """

    analysis_id: str
    outcome: Outcome
    findings: tuple[Finding, ...] = ()
    arrays: tuple[ArrayComparison, ...] = ()
    missing: tuple[str, ...] = ()
    seconds: float = 0.0
    exit_code: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "exit_code", EXIT_CODES[self.outcome])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


class CannotReplay(AppaError):
    """Something that the result was made of is gone.

    Attributes:
        missing: What, one sentence each.
        findings: What is known all the same.
    """

    code = "cannot_replay"

    def __init__(self, missing: list[str], findings: list[Finding]) -> None:
        super().__init__("; ".join(missing))
        self.missing = missing
        self.findings = findings
