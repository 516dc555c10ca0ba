"""What a worker reports that it can do."""

from model.domain.observations import REPORT_TYPES
from worker.decoders.registry import FORMATS
from worker.jobs.workers import WorkerReport

__all__ = ["describe_ingest"]


def describe_ingest(report: WorkerReport) -> None:
    """The decoders of an ingest worker and the networks they know."""
    report.device = "cpu"
    report.capabilities.decoders = {name: entry.description for name, entry in FORMATS.items()}
    report.capabilities.networks = list(REPORT_TYPES)
