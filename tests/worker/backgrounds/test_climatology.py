"""The background of a cold start: which of the priors it is drawn from, and what its draws are."""

from datetime import UTC, datetime, timedelta

import pytest
import torch

from model.nn.embedding import date_rows
from tests.model.checkpoint_parts import tiny_model
from tests.model.osse.small_world import small_model
from worker.backgrounds.load import climatology
from worker.contract.kinds import FilteringSpec
from worker.solver import Solver

END = datetime(2024, 1, 1, 12, tzinfo=UTC)


class Asked(Exception):
    """The network was evaluated."""


def refuse(*_):
    raise Asked


def solver_of(model, members=4):
    spec = FilteringSpec(valid_time=END, members=members, window_hours=model.blanket_size)
    return Solver(model, spec, lambda *_: None)


def plan_of(solver):
    return solver.spec.plan(solver.model.blanket_size)


def test_the_network_draws_only_what_becomes_the_analysis():
    model = small_model()
    solver = solver_of(model)
    model.denoise.backbone.forward = refuse
    drawn = climatology(plan_of(solver), solver, observed=True)
    assert (drawn.members, drawn.flags, drawn.prior) == (4, ("cold_start",), None)
    with pytest.raises(Asked):
        climatology(plan_of(solver), solver, observed=False)


def test_a_model_without_a_closed_form_is_asked_in_any_case():
    model = tiny_model()
    solver = solver_of(model)
    model.denoise.backbone.forward = refuse
    with pytest.raises(Asked):
        climatology(plan_of(solver), solver, observed=True)


def test_draws_have_the_mean_and_the_variance_of_the_climate():
    model = small_model()
    solver = solver_of(model, members=400)
    plan = plan_of(solver)
    latents = climatology(plan, solver, observed=True).latents
    base = model.denoise.base
    mean = base.climatology(date_rows(plan.times)[None])[0]
    # Pairs of opposite perturbations have the mean of the climate exactly.
    torch.testing.assert_close(latents.mean(0), mean, atol=1e-4, rtol=1e-4)
    around = base.sample(date_rows(plan.times)[None].expand(400, -1, -1)) - mean
    ratio = (latents - mean).square().mean() / around.square().mean()
    assert 0.93 < float(ratio) < 1.07


def test_a_window_of_several_blankets_is_drawn_as_well():
    model = small_model()
    times = tuple(END + timedelta(hours=h) for h in range(2 * model.blanket_size))
    drawn = solver_of(model).prior(times, closed_form=True)
    assert drawn.shape[:2] == (4, len(times))
    assert torch.isfinite(drawn).all()
