"""The policy: `retention.yaml` in the data folder; without it the defaults below.

Ages count from the end of a result, the arrival of an upload, the last line of a log, by the
operational clock. A rule without `days` keeps for ever; its `keep` newest stay whatever their age,
so that a system that stood still for a month does not delete its last analyses.
"""

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.domain.errors import ConfigurationError
from worker.jobs.manifest import AnalysisManifest

__all__ = ["AnalysisRules", "CompactionRule", "RetentionPolicy", "Rule", "category", "read_policy"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rule(_Part):
    """How long things of one sort are kept."""

    days: float | None = Field(default=None, ge=0, description="Null: for ever.")
    keep: int = Field(default=0, ge=0, description="The newest so many stay whatever their age.")


class AnalysisRules(_Part):
    """Published results by category."""

    early: Rule = Field(default=Rule(days=7, keep=48), description="Early analyses of the cycles.")
    final: Rule = Field(default=Rule(days=90, keep=48), description="Final analyses of the cycles.")
    forecast: Rule = Field(default=Rule(days=14, keep=8), description="Forecasts.")
    reanalysis: Rule = Field(default=Rule(), description="Reanalyses.")
    manual: Rule = Field(default=Rule(days=30, keep=24), description="Analyses outside the cycles.")

    def rule(self, name: str) -> Rule:
        """The rule of a category."""
        found: Rule = getattr(self, name)
        return found


class CompactionRule(_Part):
    """Merging of the small files of an hour of the observation store."""

    after_hours: float = Field(default=6.0, ge=0, description="Hours younger than this wait.")
    look_back_hours: float = Field(default=168.0, gt=0, description="Older hours are left alone.")
    least_files: int = Field(default=4, ge=2, description="Hours with fewer files are left alone.")
    every_minutes: float = Field(default=60.0, gt=0, description="Pause between runs.")


class RetentionPolicy(_Part):
    """All rules of an installation."""

    analyses: AnalysisRules = Field(default=AnalysisRules())
    restarts: Rule = Field(
        default=Rule(days=30, keep=48),
        description="Restart files of kept results, which make them backgrounds.",
    )
    uploads: Rule = Field(
        default=Rule(days=30), description="Uploads as they came in; their rows are in the store."
    )
    observations: Rule = Field(
        default=Rule(), description="Days of the observation store, by the time observed."
    )
    logs: Rule = Field(default=Rule(days=30), description="Log files nobody writes any more.")
    shorten_when_low: float = Field(
        default=1.0, gt=0, le=1, description="Ages are multiplied by this while the disk is low."
    )
    every_minutes: float = Field(default=5.0, gt=0, description="Pause between runs.")
    compaction: CompactionRule | None = Field(default=CompactionRule(), description="Null: never.")


def category(manifest: AnalysisManifest) -> str:
    """The rule a result falls under."""
    if manifest.kind != "filtering":
        return manifest.kind
    return manifest.flavour or "manual"


def read_policy(path: Path) -> RetentionPolicy:
    """The policy of an installation.

    Raises:
        ConfigurationError: If the file is no policy; nothing is deleted then.
    """
    try:
        content = yaml.safe_load(path.read_text()) if path.exists() else None
        return RetentionPolicy.model_validate(content or {})
    except (yaml.YAMLError, ValidationError, OSError) as error:
        raise ConfigurationError(
            f"Expected retention rules in {path.name}; {error}. Nothing is deleted until it is "
            "mended.",
            file=str(path),
        ) from error
