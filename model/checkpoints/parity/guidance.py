"""Guidance of single blankets against its recordings."""

from collections.abc import Iterator

import torch
from torch import Tensor

from model.checkpoints.parity.case import ParityCase
from model.checkpoints.parity.observations import (
    MaskedLatents,
    RecordedObservations,
    scalar_variance,
)
from model.guidance.base import BlanketRows, ObservedBlankets
from model.guidance.linearisation import Linearisation
from model.guidance.mmps import MMPS, MMPSSettings
from model.guidance.sda import SDA, SDASettings

__all__ = ["decoded_mmps", "linear_mmps", "masked", "pieces", "sda"]

Arrays = Iterator[tuple[str, Tensor]]

ONE = BlanketRows(torch.tensor([0]), torch.tensor([0]))
TWO = BlanketRows(torch.tensor([0, 0]), torch.tensor([0, 1]))


def masked(case: ParityCase, kind: str) -> MaskedLatents:
    """The recorded linear observations with `scalar` or `vector` variance."""
    variance = scalar_variance(case) if kind == "scalar" else case.array("lin.var_vec")
    return MaskedLatents(case, case.array(f"lin.y.{kind}")[None], variance)


def linear_mmps(case: ParityCase) -> Arrays:
    """`mmps.lin.*`: masked latents, alone and two in a batch."""
    for name, match in case.names(r"mmps\.lin\.(\w+)\.tw(\d)\.it(\d+)\.s(.+)"):
        sigma = case.level(match[4])
        guide = _mmps(masked(case, match[1]), int(match[3]), tweedie=match[2] == "1")
        x_t = case.noisy("den", sigma)
        yield name, case.flat(guide(case.denoise, x_t, sigma, case.dates[:1], ONE))
    for name, _ in case.names(r"mmps\.lin\.b2"):
        sigma = case.level(1.0)
        x_t = case.blankets(case.array("lin.x0_b2") + sigma * case.array("lin.eps_b2"))
        guide = _mmps(
            MaskedLatents(case, case.array("lin.y_b2"), case.array("lin.var_vec")), 2, tweedie=True
        )
        yield name, case.flat(guide(case.denoise, x_t, sigma, case.dates, TWO))


def decoded_mmps(case: ParityCase) -> Arrays:
    """`mmps.dec.*`: observations of the decoded states of the first blanket."""
    observed = RecordedObservations(case).decoded(1)
    for name, match in case.names(r"mmps\.dec\.tw(\d)\.it(\d+)\.s(.+)"):
        sigma = case.level(match[3])
        guide = _mmps(observed, int(match[2]), tweedie=match[1] == "1")
        x_t = _first_blanket(case, sigma)
        yield name, case.flat(guide(case.denoise, x_t, sigma, case.first_dates, ONE))


def sda(case: ParityCase) -> Arrays:
    """`sda.*`: masked latents, scalar variance, a constant of 0.5."""
    settings = SDASettings(gamma=case.config.get("sda_gamma", 0.5), relative=False)
    for name, match in case.names(r"sda\.s(.+)"):
        sigma = case.level(match[1])
        guide = SDA(masked(case, "scalar"), settings)
        x_t = case.noisy("den", sigma)
        yield name, case.flat(guide(case.denoise, x_t, sigma, case.dates[:1], ONE))


def pieces(case: ParityCase) -> Arrays:
    """`piece.*`: the parts of one evaluation at sigma = 1."""
    sigma, dates = case.level(1.0), case.first_dates
    seen = RecordedObservations(case).decoded(1).select(ONE, case.array("traj.x0"))
    if seen is None:
        return
    point = Linearisation(case.denoise, seen.predict, _first_blanket(case, sigma), sigma, dates)
    probe, y = case.blankets(case.array("probe.v_x")), case.array("obs.y.0")[None]
    adjoint = point.observe_vjp(y)
    yield "piece.x_hat", case.flat(point.x_hat)
    yield "piece.y_hat", point.y_hat[0]
    yield "piece.At_y", case.flat(adjoint)
    yield "piece.A_v", point.observe_jvp(probe)[0]
    yield "piece.cov_x_v", case.flat(point.denoise_vjp(probe))
    yield "piece.full_vjp", case.flat(point.denoise_vjp(adjoint))


def _first_blanket(case: ParityCase, sigma: Tensor) -> Tensor:
    return case.noisy("traj", sigma)[:, : case.config["trajectory"]["blanket_size"]]


def _mmps(observed: ObservedBlankets, iterations: int, *, tweedie: bool) -> MMPS:
    # The recorded system is not in units of the observation error.
    return MMPS(
        observed, MMPSSettings(iterations=iterations, tweedie=tweedie, whiten=False, recycle=False)
    )
