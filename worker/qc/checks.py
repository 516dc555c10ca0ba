"""All checks, in the order they run: one line each."""

from worker.qc.background import background_check, wind_pairs
from worker.qc.blocklist import blocklist
from worker.qc.bounds import bounds
from worker.qc.buddy import buddy
from worker.qc.check import Check
from worker.qc.duplicates import duplicates
from worker.qc.orography import orography, reduce_to_surface
from worker.qc.profile import profile
from worker.qc.stuck import stuck
from worker.qc.superobbing import append_superobservations, merged
from worker.qc.thinning import thinning
from worker.qc.track import track
from worker.qc.validity import flags, impossible, late, missing
from worker.qc.withholding import withholding

__all__ = ["CHECKS"]

CHECKS: tuple[Check, ...] = (
    Check("flags", "preqc", "pre", flags),
    Check("missing", "missing", "pre", missing),
    Check("domain", "domain", "pre", impossible),
    Check("bounds", "bounds", "pre", bounds),
    Check("duplicates", "duplicate", "pre", duplicates),
    Check("blocklist", "blocklist", "pre", blocklist),
    Check("track", "track", "pre", track),
    Check("stuck", "stuck", "pre", stuck),
    Check("profile", "profile", "pre", profile),
    # Batches of one window meet here for the first time, so identity and tracks are checked again.
    Check("late", "late", "window", late),
    Check("blocklist", "blocklist", "window", blocklist),
    Check("duplicates", "duplicate", "window", duplicates),
    Check("track", "track", "window", track),
    Check("stuck", "stuck", "window", stuck),
    Check("orography", "difference", "window", orography, prepare=reduce_to_surface),
    Check("background_check", "background_check", "background", background_check),
    Check("buddy", "buddy", "background", buddy),
    Check("wind_pairs", "difference", "background", wind_pairs),
    Check("withholding", "withheld", "select", withholding),
    Check("superobbing", "thinned", "select", merged, prepare=append_superobservations),
    Check("thinning", "thinned", "select", thinning),
)
"""First come, first named: a row keeps the outcome of the first check that rejected it."""
