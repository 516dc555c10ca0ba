"""Guidance, trajectories and samplers against the reference's arrays, in both precisions."""

import pytest
import torch
from azula.noise import Schedule
from reference_run import Reference
from torch import Tensor

from model.guidance.base import BlanketRows, Observed
from model.guidance.jacobian import MMPS, SDA, Linearisation, MMPSSettings, SDASettings
from model.guidance.observed import DecodedObservations
from model.samplers.control import RecordedNoise
from model.samplers.sampling import SamplerSettings, sample, time_grid
from model.trajectory import Blankets, TrajectoryDenoiser, fold, unfold

ONE = BlanketRows(torch.tensor([0]), torch.tensor([0]))
TWO_ITERATIONS = MMPSSettings(iterations=2, whiten=False, recycle=False)


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["float64", "float32"])
def reference(request, parity_dir) -> Reference:
    return Reference(parity_dir, request.param)


class GivenLevel(Schedule):
    """Takes the noise level itself as the time."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t


class SinglePrecisionClock(Schedule):
    """The reference's rectified schedule as it evaluates it, with its cancellation near t = 1."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.float()
        sigma = (t + (1 - t) * 1e-3) / (t * (1 / 1e3 - 1) + 1)
        return torch.ones_like(sigma), sigma


class Masked:
    """The random masking of flattened blankets."""

    def __init__(self, reference: Reference, kind: str) -> None:
        self.reference = reference
        self.y = reference.array(f"lin.y.{kind}")[None]
        variance = torch.tensor(0.04).to(self.y)
        if kind == "vector":
            variance = reference.array("lin.var_vec")
        self.error_std = variance.sqrt().expand_as(self.y)

    def select(self, rows: BlanketRows, like: Tensor) -> Observed:
        index = self.reference.inputs["lin.idx"]
        present = torch.ones_like(self.y, dtype=torch.bool)
        return Observed(
            self.y,
            self.error_std,
            present,
            lambda x: self.reference.flat(x)[:, index],
            (("masked", 200),),
        )


def level(reference: Reference, sigma: float) -> Tensor:
    return torch.tensor(sigma).to(reference.dtype)


def noisy(reference: Reference, name: str, sigma: float) -> Tensor:
    x, eps = (reference.states(reference.array(f"{name}.{part}")) for part in ("x0", "eps"))
    return x + level(reference, sigma) * eps


def check(reference: Reference, name: str, ours: Tensor, tolerance: float = 1e-9) -> None:
    error = reference.error(name, reference.flat(ours) if ours.ndim == 5 else ours)
    assert error <= (tolerance if reference.dtype == torch.float64 else 1), name


def decoded(reference: Reference, blankets: int) -> DecodedObservations:
    return DecodedObservations(
        [reference.observations(n) for n in range(blankets)], reference.decode
    )


def test_pieces(reference) -> None:
    seen = decoded(reference, 1).select(ONE, reference.array("traj.x0"))
    x_t, date = noisy(reference, "traj", 1.0)[:, :6], reference.inputs["traj.date"][:, :6]
    point = Linearisation(reference.denoiser, seen.predict, x_t, level(reference, 1.0), date)
    probe = reference.states(reference.array("probe.v_x"))
    y = reference.array("obs.y.0")[None]
    check(reference, "piece.x_hat", point.x_hat)
    check(reference, "piece.y_hat", point.y_hat)
    check(reference, "piece.At_y", point.observe_vjp(y))
    check(reference, "piece.A_v", point.observe_jvp(probe))
    check(reference, "piece.cov_x_v", point.denoise_vjp(probe))
    check(reference, "piece.full_vjp", point.denoise_vjp(point.observe_vjp(y)))


@pytest.mark.parametrize("sigma", [0.05, 1.0, 50.0])
@pytest.mark.parametrize("tweedie", [False, True])
def test_mmps_of_decoded_observations(reference, sigma, tweedie) -> None:
    x_t, date = noisy(reference, "traj", sigma)[:, :6], reference.inputs["traj.date"][:, :6]
    for n in (1, 2, 3):
        settings = MMPSSettings(iterations=n, tweedie=tweedie, whiten=False, recycle=False)
        guide = MMPS(decoded(reference, 1), settings)
        ours = guide(reference.denoiser, x_t, level(reference, sigma), date, ONE)
        check(reference, f"mmps.dec.tw{int(tweedie)}.it{n}.s{sigma}", ours)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 50.0])
@pytest.mark.parametrize("tweedie", [False, True])
def test_mmps_of_masked_latents(reference, sigma, tweedie) -> None:
    x_t, date = noisy(reference, "den", sigma), reference.inputs["traj.date"][:, :6]
    for kind, n in (("vector", 1), ("vector", 2), ("vector", 3), ("scalar", 2)):
        settings = MMPSSettings(iterations=n, tweedie=tweedie, whiten=False, recycle=False)
        guide = MMPS(Masked(reference, kind), settings)
        ours = guide(reference.denoiser, x_t, level(reference, sigma), date, ONE)
        check(reference, f"mmps.lin.{kind}.tw{int(tweedie)}.it{n}.s{sigma}", ours)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 50.0])
def test_sda(reference, sigma) -> None:
    x_t, date = noisy(reference, "den", sigma), reference.inputs["traj.date"][:, :6]
    guide = SDA(Masked(reference, "scalar"), SDASettings(gamma=0.5, relative=False))
    ours = guide(reference.denoiser, x_t, level(reference, sigma), date, ONE)
    check(reference, f"sda.s{sigma}", ours)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 50.0])
def test_mmps_of_a_trajectory_with_unequal_blankets(reference, sigma) -> None:
    guide = MMPS(decoded(reference, 3), TWO_ITERATIONS)
    dates = reference.inputs["traj.date"][0]
    denoiser = TrajectoryDenoiser(
        reference.denoiser, GivenLevel(), dates, Blankets(3, 6, 3), guidance=guide
    )
    ours = denoiser(noisy(reference, "traj", sigma), level(reference, sigma)).mean
    check(reference, f"traj.mmps.s{sigma}", ours)


@pytest.mark.parametrize("sigma", [0.5, 20.0])
@pytest.mark.parametrize("mode", ["symmetrical", "causal"])
def test_trajectory_denoiser(reference, sigma, mode) -> None:
    dates = reference.inputs["traj.date"][0]
    denoiser = TrajectoryDenoiser(
        reference.denoiser, GivenLevel(), dates, Blankets(3, 6, 3), mode=mode
    )
    ours = denoiser(noisy(reference, "traj", sigma), level(reference, sigma)).mean
    check(reference, f"traj.den.{mode}.s{sigma}", ours)


@pytest.mark.parametrize("sigma", [0.5, 20.0])
def test_average_in_the_single_precision_of_the_reference(reference, sigma) -> None:
    parts = unfold(noisy(reference, "traj", sigma), 6, 3)[0]
    dates = unfold(reference.inputs["traj.date"], 6, 3)[0]
    done = reference.denoiser(parts, level(reference, sigma), dates)
    total, count = torch.zeros(1, 12, *done.shape[2:]), torch.zeros(12, 1, 1, 1)
    for n, part in enumerate(done):
        total[0, 3 * n : 3 * n + 6] += part  # float32 += float64 rounds after each addition
        count[3 * n : 3 * n + 6] += 1
    check(reference, f"traj.den.average.s{sigma}", (total / count).to(reference.dtype))
    torch.testing.assert_close(
        fold(done[None], 3, "average"), (total / count).to(done), rtol=1e-6, atol=1e-6
    )


def run(
    reference: Reference, name: str, denoiser: TrajectoryDenoiser, start: str, options: dict
) -> None:
    settings = SamplerSettings(**options)
    _, sigma = SinglePrecisionClock()(torch.tensor(1.0))
    draws = reference.inputs.get(f"{name}.noise", torch.empty(0))
    out = sample(
        denoiser,
        sigma * reference.states(reference.array(start)),
        settings,
        RecordedNoise([reference.states(draw.to(reference.dtype)) for draw in draws]),
        times=time_grid(settings, torch.float32),
    )
    check(reference, name, out, tolerance=1e-6)


PRIOR_RUNS = {
    "samp.ddim": {"name": "ddim", "steps": 8},
    "samp.ddpm": {"name": "ddpm", "steps": 8},
    "samp.lms": {"name": "lms", "steps": 8, "order": 3},
    "samp.lms1": {"name": "lms", "steps": 8, "order": 1},
    "samp.pc": {"name": "pc", "steps": 8},
    "samp.rewind": {"name": "rewind", "steps": 4},
}
POSTERIOR_RUNS = {
    "samp.ddim_mmps": {"name": "ddim", "steps": 8},
    "samp.pc_mmps": {"name": "pc", "steps": 8},
    "samp.lms_mmps": {"name": "lms", "steps": 8, "order": 3},
}


@pytest.mark.parametrize("name", list(PRIOR_RUNS))
def test_samplers_of_one_blanket(reference, name) -> None:
    dates = reference.inputs["traj.date"][0, :6]
    denoiser = TrajectoryDenoiser(
        reference.denoiser, SinglePrecisionClock(), dates, Blankets(1, 6, 3)
    )
    run(reference, name, denoiser, "samp.x1_unit", PRIOR_RUNS[name])


@pytest.mark.parametrize("name", list(POSTERIOR_RUNS))
def test_guided_samplers_of_one_blanket(reference, name) -> None:
    denoiser = TrajectoryDenoiser(
        reference.denoiser,
        SinglePrecisionClock(),
        reference.inputs["traj.date"][0, :6],
        Blankets(1, 6, 3),
        guidance=MMPS(Masked(reference, "vector"), TWO_ITERATIONS),
    )
    run(reference, name, denoiser, "samp.x1_unit", POSTERIOR_RUNS[name])


def test_samplers_of_a_trajectory(reference) -> None:
    dates, blankets = reference.inputs["traj.date"][0], Blankets(3, 6, 3)
    prior = TrajectoryDenoiser(reference.denoiser, SinglePrecisionClock(), dates, blankets)
    run(reference, "samp.traj_ddim", prior, "traj.x1_unit", {"name": "ddim", "steps": 8})


@pytest.mark.slow
def test_guided_samplers_of_a_trajectory(reference) -> None:
    denoiser = TrajectoryDenoiser(
        reference.denoiser,
        SinglePrecisionClock(),
        reference.inputs["traj.date"][0],
        Blankets(3, 6, 3),
        guidance=MMPS(decoded(reference, 3), TWO_ITERATIONS),
    )
    run(reference, "samp.traj_pc_mmps", denoiser, "traj.x1_unit", {"name": "pc", "steps": 8})
