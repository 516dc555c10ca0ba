"""When a computed array counts as equal to a recorded one.

float64: relative to the largest recorded value, 1e-9 for a single call and 1e-6 for a whole
sampler run. float32: ten times the noise of the recorded float32 run itself, its distance from the
float64 run.
"""

from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from model.checkpoints.parity.case import ParityCase

__all__ = ["Outcome", "Status", "compare"]

Status = Literal["matched", "missed", "not carried", "input"]


@dataclass(frozen=True)
class Outcome:
    """One recorded array.

    Attributes:
        name: Its name.
        run: `float32` or `float64`.
        status: Whether it was matched; `input` for what is given to the computations.
        error: Largest absolute difference; None where nothing was compared.
        tolerance: Largest that counts as equal.
        note: Why it was missed, or what was not compared.
    """

    name: str
    run: str
    status: Status
    error: float | None = None
    tolerance: float | None = None
    note: str = ""

    def as_dict(self) -> dict[str, str | float | None]:
        """For JSON."""
        return asdict(self)


def compare(case: ParityCase, name: str, ours: Tensor, noise: float | None = None) -> Outcome:
    """Compares one array.

    Arguments:
        case: The recording.
        name: Name of the array.
        ours: What was computed for it.
        noise: Noise of the recorded float32 value, where the recording has no float64 twin.
    """
    theirs = case.outputs[name]
    if ours.shape != theirs.shape:
        note = f"shape {tuple(ours.shape)} instead of {tuple(theirs.shape)}"
        return Outcome(name, case.label, "missed", note=note)
    allowed = _tolerance(case, name, theirs, noise)
    if not theirs.is_floating_point():
        error = float((ours.long() - theirs.long()).abs().max()) if theirs.numel() else 0.0
    else:
        error = float((ours.double() - theirs.double()).abs().max()) if theirs.numel() else 0.0
    status: Status = "matched" if error <= allowed else "missed"  # a NaN is missed
    return Outcome(name, case.label, status, error, allowed)


def _tolerance(case: ParityCase, name: str, theirs: Tensor, noise: float | None) -> float:
    if not theirs.is_floating_point() or not theirs.numel():
        return 0.0
    scale = float(theirs.abs().max())
    if case.dtype == torch.float64:
        return (1e-6 if name.startswith("samp.") else 1e-9) * scale
    known = case.noise.get(name, noise)
    # Where the recorded run has no noise at all, or none is known, the rounding of single
    # elementary functions, which differ between vectorised and plain code, still counts.
    floor = (4 if known == 0 else 16) * torch.finfo(torch.float32).eps * scale
    return 10 * known if known else floor
