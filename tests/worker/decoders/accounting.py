"""What holds of the report of any file, good or damaged: everything in it is accounted for."""

from model.domain.observations import validate_table
from worker.observations.decoders.base import REASONS


def assert_accounted(decoded, name=""):
    """Check the rows of a decoded file against its report, and each message against its outcome."""
    report = decoded.report
    validate_table(decoded.table)
    assert report.rows == decoded.table.num_rows, name
    assert report.rows == sum(report.rows_by_variable.values()), name
    assert report.rows == sum(report.rows_by_report_type.values()), name
    assert set(report.rejected) <= set(REASONS), name
    assert report.decoded <= report.messages, name
    # A message gives rows, or it (or each of its reports) is counted under a reason.
    assert report.messages <= report.decoded + sum(report.rejected.values()), name
    if report.rows == 0:
        assert sum(report.rejected.values()) > 0, name
    else:
        assert report.decoded > 0, name
