"""Scores of the baselines of one start, from the observations that the checkpoint saw."""

from datetime import timedelta

import torch

from model.gaussian_prior import ZonalGaussianPrior
from model.osse.baselines.windowed import windowed_analysis
from model.osse.climate import climatological_states, date_rows
from model.osse.observed_case import ObservedCase
from model.osse.one_hour import one_hour_analysis
from model.osse.scorer import Scorer
from model.osse.start_skill import Method

__all__ = ["score_interpolation", "score_persistence", "score_windowed"]


def score_persistence(scorer: Scorer, case: ObservedCase) -> None:
    """Climatology, and the truth of 6 hours before and, where there is one, of 24."""
    scorer.score(Method.CLIMATOLOGY, climatological_states(case.model, [case.end])[0], case.last)
    last = case.window - 1
    if last >= 6:
        scorer.score(Method.PERSISTENCE_6, case.truth[last - 6], case.last)
    if last >= 24:
        scorer.score(Method.PERSISTENCE_24, case.truth[last - 24], case.last)
    elif len(case.truth) > last + 24:
        # The window is too short to look back a day: the day ahead stands for it.
        scorer.score(Method.PERSISTENCE_24, case.last, case.truth[last + 24])


def score_interpolation(scorer: Scorer, case: ObservedCase, members: int) -> None:
    """Optimal interpolation of the last hour; nothing where there is no closed-form prior.

    Arguments:
        scorer: Takes the scores.
        case: The window.
        members: Climatological states behind the covariance.
    """
    model, end = case.model, case.end
    if not isinstance(model.denoise.base, ZonalGaussianPrior):
        return
    dates = date_rows([end - timedelta(hours=i) for i in reversed(range(model.blanket_size))])
    background = climatological_states(model, [end])[0]
    state = scorer.timed(
        Method.OPTIMAL_INTERPOLATION,
        lambda: one_hour_analysis(model, case.known(), end, background, dates, members),
    )
    scorer.score(Method.OPTIMAL_INTERPOLATION, state, case.last)


@torch.no_grad()
def score_windowed(scorer: Scorer, case: ObservedCase) -> None:
    """Windowed optimal interpolation over the last blanket; nothing without a closed-form prior."""
    model, prior = case.model, case.model.denoise.base
    if not isinstance(prior, ZonalGaussianPrior) or prior.blanket_size > case.window:
        return
    k, times = prior.blanket_size, case.times()
    seen = case.observations().for_blanket(case.window - k, case.window)
    result = scorer.timed(
        Method.WINDOWED,
        lambda: (
            windowed_analysis(
                prior,
                lambda z: model.decode(z, mask=False),
                seen,
                date_rows(times[-k:]),
                iterations=60,
                tolerance=0.01,
            ).latents
        ),
    )
    scorer.score(Method.WINDOWED, model.decode(result[0, -1], mask=False), case.last)
    inside = case.middle - (case.window - k)
    if inside >= 0:
        state = model.decode(result[0, inside], mask=False)
        scorer.score(Method.WINDOWED_MIDDLE, state, case.truth[case.middle])
