"""Compute recorded observations and the guidance of single blankets for comparison.

Recorded observations decode, then take grid points and channels of each state.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lab.parity.case import ParityCase, ParityComparison, compare
from model.guidance.base import BlanketRows, Observed, ObservedBlankets
from model.guidance.jacobian import MMPS, SDA, Linearisation, MMPSSettings, SDASettings
from model.guidance.observed import DecodedObservations, ObservationsOfStates
from model.trajectory import unfold

__all__ = [
    "MaskedLatents",
    "RecordedObservations",
    "decoded_mmps",
    "derived_inputs",
    "linear_mmps",
    "masked",
    "observations",
    "pieces",
    "sda",
]


@dataclass(frozen=True)
class PointValues:
    """Observations of grid points and channels of a run of states (*, T, C, Y, X)."""

    values: Tensor
    error_std: Tensor
    time: NDArray[np.int64]
    channel: NDArray[np.int64]
    cell: NDArray[np.int64]

    @property
    def time_support(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First and last state that each observation reads."""
        return self.time, self.time

    def operator(self, states: Tensor) -> Tensor:
        """Map states (*, T, C, Y, X) to values (*, N)."""
        time, channel, cell = map(torch.from_numpy, (self.time, self.channel, self.cell))
        return states.flatten(-2)[..., time, channel, cell]

    def __len__(self) -> int:
        return len(self.values)


class RecordedObservations:
    """Stations, then satellite, of each observed state of each blanket."""

    def __init__(self, case: ParityCase) -> None:
        self.case = case
        trajectory = case.config["trajectory"]
        self.size: int = trajectory["blanket_size"]
        self.stride: int = trajectory["blanket_stride"]
        self.count: int = (trajectory["T"] - self.size) // self.stride + 1

    @cached_property
    def observed_steps(self) -> int:
        """How many of the first states are observed, inferred from the lengths of the vectors."""
        total = self.size + (self.count - 1) * self.stride
        wanted = [len(self.case.single[f"obs.cov.{n}"]) for n in range(self.count)]
        for steps in range(total, -1, -1):
            lengths = [len(self._index(n, steps)[0]) for n in range(self.count)]
            if lengths == wanted:
                return steps
        raise ValueError(f"no number of observed states gives vectors of {wanted} values")

    def blanket(self, n: int) -> PointValues:
        """Return the observations of blanket n, with the recorded variance, as it was assembled."""
        values, variance = (self.case.array(f"obs.{kind}.{n}") for kind in ("y", "cov"))
        return PointValues(values, variance.sqrt(), *self._index(n, self.observed_steps))

    def decode(self, z: Tensor) -> Tensor:
        """Map standardised latents (P, c, h, w) to standardised states."""
        mean, std = (self.case.array(f"obs.latent_{s}")[:, None, None] for s in ("mean", "std"))
        return self.case.decoder.decode(z * std + mean)

    def decoded(self, count: int) -> DecodedObservations:
        """Return the observations of the first `count` blankets for guidance."""
        # Guidance through the whole decoder needs no more of an operator than its call.
        seen = [cast(ObservationsOfStates, self.blanket(n)) for n in range(count)]
        return DecodedObservations(seen, self.decode)

    def variance(self, n: int) -> Tensor:
        """Return variances of blanket n: of each instrument's locations, repeated over its channels.

        The recording repeats the whole list of locations once per channel, while values run over
        channels first. This order exists here alone; it is harmless only where all locations of
        an instrument have the same variance.
        """
        parts = []
        for step in self._steps(n, self.observed_steps):
            station = self.case.single["obs.stations_cov"]
            parts.append(station.repeat(int((self._channels("stations")).size)))
            seen = len(self.case.single[f"obs.sat_idx.{step:02d}"]) * self._channels("sat").size
            parts.append(self.case.single["obs.sat_cov_value"].expand(seen))
        return torch.cat(parts) if parts else torch.empty(0)

    def _steps(self, n: int, observed: int) -> range:
        first = n * self.stride
        return range(first, min(first + self.size, observed))

    def _channels(self, instrument: str) -> NDArray[np.int64]:
        return np.flatnonzero(self.case.single[f"obs.{instrument}_vars"].numpy())

    def _index(self, n: int, observed: int) -> tuple[NDArray[np.int64], ...]:
        found: list[NDArray[np.int64]] = [np.empty((3, 0), dtype=np.int64)]
        for step in self._steps(n, observed):
            for instrument, name in (("stations", "stations_idx"), ("sat", f"sat_idx.{step:02d}")):
                points = self.case.single[f"obs.{name}"].numpy()
                cell, channel = np.meshgrid(points, self._channels(instrument), indexing="ij")
                time = np.full(cell.size, step - n * self.stride)
                found.append(np.stack((time, channel.ravel(), cell.ravel())))
        time, channel, cell = np.concatenate(found, axis=1)
        return time, channel, cell


class MaskedLatents:
    """Linear observations: chosen elements of the flattened blankets of a batch.

    Arguments:
        case: The recording.
        y: Values, with shape (B, N).
        variance: With shape () or (N,).
    """

    def __init__(self, case: ParityCase, y: Tensor, variance: Tensor) -> None:
        self.case = case
        self.y = y
        self.error_std = variance.sqrt().expand_as(y)

    def select(self, rows: BlanketRows, like: Tensor) -> Observed:
        """See `model.guidance.base.ObservedBlankets`; row i belongs to member i."""
        index = self.case.array("lin.idx")
        chosen = rows.member
        return Observed(
            self.y[chosen],
            self.error_std[chosen],
            torch.ones_like(self.y[chosen], dtype=torch.bool),
            lambda x: self.case.flat(x)[:, index],
            (("masked", len(index)),),
        )


def observations(case: ParityCase) -> Iterator[tuple[str, Tensor]]:
    """Yield `obs.A_clean.<n>`: model equivalents of the clean blankets."""
    recorded = RecordedObservations(case)
    clean = unfold(case.blankets(case.array("traj.x0")), recorded.size, recorded.stride)
    for n in range(recorded.count):
        states = recorded.decode(clean[0, n])
        yield f"obs.A_clean.{n}", recorded.blanket(n).operator(states)


def derived_inputs(case: ParityCase) -> Iterator[ParityComparison]:
    """Yield observed values and variances, which follow from other recorded arrays."""
    recorded = RecordedObservations(case)
    used = 0
    for n in range(recorded.count):
        clean, noise = case.array(f"obs.A_clean.{n}"), case.array("traj.yn")
        yield compare(case, f"obs.cov.{n}", recorded.variance(n))
        std = case.array(f"obs.cov.{n}").sqrt()
        yield compare(case, f"obs.y.{n}", clean + std * noise[used : used + len(clean)])
        used += len(clean)
    index = case.array("lin.idx")
    variance = case.array("lin.var_vec")
    vector = case.array("den.x0")[0, index] + variance.sqrt() * case.array("lin.y_noise")
    yield compare(case, "lin.y.vector", vector)
    pair = case.array("lin.x0_b2")[:, index] + variance.sqrt() * case.array("lin.yn_b2")
    yield compare(case, "lin.y_b2", pair)
    scalar = scalar_variance(case)
    single = case.array("den.x0")[0, index] + scalar.sqrt() * case.array("lin.y_noise")
    yield compare(case, "lin.y.scalar", single)


def scalar_variance(case: ParityCase) -> Tensor:
    """Estimate the one variance of `lin.y.scalar` from its distance to the clean values."""
    clean = case.array("den.x0")[0, case.array("lin.idx")].double()
    ratio = (case.array("lin.y.scalar").double() - clean) / case.array("lin.y_noise").double()
    # Six digits survive the float32 of the recording; the setting had fewer.
    value = float(f"{float(ratio.median().square()):.4g}")
    return torch.tensor(value, dtype=torch.float32).to(case.dtype)


Arrays = Iterator[tuple[str, Tensor]]

ONE = BlanketRows(torch.tensor([0]), torch.tensor([0]))
TWO = BlanketRows(torch.tensor([0, 0]), torch.tensor([0, 1]))


def masked(case: ParityCase, kind: str) -> MaskedLatents:
    """Return the recorded linear observations with `scalar` or `vector` variance."""
    variance = scalar_variance(case) if kind == "scalar" else case.array("lin.var_vec")
    return MaskedLatents(case, case.array(f"lin.y.{kind}")[None], variance)


def linear_mmps(case: ParityCase) -> Arrays:
    """Yield `mmps.lin.*`: masked latents, alone and two in a batch."""
    for name, match in case.names(r"mmps\.lin\.(\w+)\.tw(\d)\.it(\d+)\.s(.+)"):
        sigma = case.level(match[4])
        guide = _mmps(masked(case, match[1]), int(match[3]), tweedie=match[2] == "1")
        x_t = case.noisy("den", sigma)
        yield name, case.flat(guide(case.denoise, x_t, sigma, case.dates[:1], ONE))
    for name, _ in case.names(r"mmps\.lin\.b2"):
        sigma = case.level(case.stated("pair_sigma", 1.0))
        x_t = case.blankets(case.array("lin.x0_b2") + sigma * case.array("lin.eps_b2"))
        guide = _mmps(
            MaskedLatents(case, case.array("lin.y_b2"), case.array("lin.var_vec")),
            case.stated("guidance_iterations", 2),
            tweedie=True,
        )
        yield name, case.flat(guide(case.denoise, x_t, sigma, case.dates, TWO))


def decoded_mmps(case: ParityCase) -> Arrays:
    """Yield `mmps.dec.*`: observations of the decoded states of the first blanket."""
    observed = RecordedObservations(case).decoded(1)
    for name, match in case.names(r"mmps\.dec\.tw(\d)\.it(\d+)\.s(.+)"):
        sigma = case.level(match[3])
        guide = _mmps(observed, int(match[2]), tweedie=match[1] == "1")
        x_t = _first_blanket(case, sigma)
        yield name, case.flat(guide(case.denoise, x_t, sigma, case.first_dates, ONE))


def sda(case: ParityCase) -> Arrays:
    """Yield `sda.*`: masked latents, scalar variance, a constant of 0.5."""
    settings = SDASettings(gamma=case.stated("sda_gamma", 0.5), relative=False)
    for name, match in case.names(r"sda\.s(.+)"):
        sigma = case.level(match[1])
        guide = SDA(masked(case, "scalar"), settings)
        x_t = case.noisy("den", sigma)
        yield name, case.flat(guide(case.denoise, x_t, sigma, case.dates[:1], ONE))


def pieces(case: ParityCase) -> Arrays:
    """Yield `piece.*`: the parts of one evaluation at one noise level."""
    sigma, dates = case.level(case.stated("piece_sigma", 1.0)), case.first_dates
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
