"""Which background a job gets."""

from model.domain.errors import InvalidInput
from model.domain.windows import WindowPlan
from worker.backgrounds.background import Background
from worker.backgrounds.climatology import climatology
from worker.backgrounds.earlier import Earlier
from worker.backgrounds.previous_analysis import covers, previous_analysis, tied_states
from worker.jobs.kinds.base import SpecBase
from worker.pipeline.solve import Solver

__all__ = ["load_background"]


def load_background(
    plan: WindowPlan, spec: SpecBase, earlier: Earlier | None, solver: Solver
) -> Background:
    """The first guess at `plan.times`.

    Arguments:
        plan: Times; which of them are tied.
        spec: The choice between a previous analysis and climatology.
        earlier: The uploaded first guess, or the newest result that can be continued, if any.
        solver: Runs the model where states must be made.

    Raises:
        InvalidInput: If a previous analysis is needed and there is none.
    """
    if any(plan.tied):
        if earlier is None:
            raise InvalidInput(
                f"Expected a published analysis at {spec.reference_time.isoformat()} with a "
                "restart file of this model; there is none. Run a filtering job for that time.",
                field="valid_time",
            )
        return tied_states(plan, earlier)
    if spec.background != "climatology" and earlier is not None and covers(earlier, plan):
        return previous_analysis(plan, earlier, solver)
    if spec.background == "previous_analysis":
        raise InvalidInput(
            f"Expected a previous analysis at most {spec.background_max_age_hours} h before "
            f"{spec.reference_time.isoformat()} that reaches back to "
            f"{plan.times[0].isoformat()}; there is none. Use background 'auto' for a cold start.",
            field="background",
        )
    return climatology(plan, solver)
