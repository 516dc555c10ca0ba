"""A linear Gaussian process in time, its Kalman filter and smoother, and its exact denoiser."""

from dataclasses import dataclass

import numpy as np
import torch
from azula.denoise import GaussianDenoiser
from azula.linalg.covariance import FullCovariance
from azula.noise import Schedule
from torch import Tensor


class GivenLevel(Schedule):
    """Takes the noise level itself as the time."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t


@dataclass(frozen=True)
class VAR1:
    """x[0] ~ N(0, P), x[t+1] = A x[t] + noise of covariance Q; stationary: P = A P A' + Q."""

    A: np.ndarray
    P: np.ndarray

    @property
    def Q(self) -> np.ndarray:
        return self.P - self.A @ self.P @ self.A.T

    @classmethod
    def rotating(cls, memory: float) -> "VAR1":
        """Two components that turn into each other and forget."""
        angle = 0.4
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        return cls(memory * turn, np.eye(2))

    def covariance(self, length: int) -> np.ndarray:
        """Of x[0..length-1] flattened, with shape (length * d, length * d)."""
        d = len(self.P)
        full = np.zeros((length, d, length, d))
        for s in range(length):
            block = self.P
            for t in range(s, length):
                full[t, :, s] = block
                full[s, :, t] = block.T
                block = self.A @ block
        return full.reshape(length * d, length * d)

    def sample(self, length: int, rng: np.random.Generator) -> np.ndarray:
        x = [rng.multivariate_normal(np.zeros(len(self.P)), self.P)]
        for _ in range(length - 1):
            x.append(self.A @ x[-1] + rng.multivariate_normal(np.zeros(len(self.P)), self.Q))
        return np.array(x)


@dataclass(frozen=True)
class Estimates:
    """Means (T, d) and covariances (T, d, d)."""

    mean: np.ndarray
    cov: np.ndarray


def kalman_filter(
    process: VAR1, h: np.ndarray, r: np.ndarray, y: list[np.ndarray | None]
) -> tuple[Estimates, Estimates]:
    """Filtered and predicted estimates; None in `y` where nothing is observed."""
    d = len(process.P)
    mean, cov = np.zeros(d), process.P
    filtered, predicted = [], []
    for t, value in enumerate(y):
        if t:
            mean = process.A @ mean
            cov = process.A @ cov @ process.A.T + process.Q
        predicted.append((mean, cov))
        if value is not None:
            gain = cov @ h.T @ np.linalg.inv(h @ cov @ h.T + r)
            mean = mean + gain @ (value - h @ mean)
            cov = (np.eye(d) - gain @ h) @ cov
        filtered.append((mean, cov))
    return tuple(
        Estimates(np.array([m for m, _ in e]), np.array([c for _, c in e]))
        for e in (filtered, predicted)
    )


def rts_smoother(process: VAR1, filtered: Estimates, predicted: Estimates) -> Estimates:
    """Rauch, Tung and Striebel (1965)."""
    mean, cov = filtered.mean.copy(), filtered.cov.copy()
    for t in range(len(mean) - 2, -1, -1):
        gain = filtered.cov[t] @ process.A.T @ np.linalg.inv(predicted.cov[t + 1])
        mean[t] += gain @ (mean[t + 1] - predicted.mean[t + 1])
        cov[t] += gain @ (cov[t + 1] - predicted.cov[t + 1]) @ gain.T
    return Estimates(mean, cov)


class ExactDenoiser:
    """The denoiser of a blanket of the process: azula's, on flattened blankets."""

    def __init__(self, covariance: np.ndarray) -> None:
        variance, vectors = torch.linalg.eigh(torch.from_numpy(covariance))
        mean = torch.zeros(len(variance), dtype=torch.float64)
        self.gaussian = GaussianDenoiser(mean, FullCovariance(vectors, variance), GivenLevel())

    def __call__(self, x_t: Tensor, sigma: Tensor, date: Tensor) -> Tensor:
        flat = self.gaussian(x_t.flatten(1), sigma.to(x_t)).mean
        return flat.reshape(x_t.shape)


class LinearObservations:
    """y = h x of chosen states, in the protocol of `ObservationSet`.

    Arguments:
        h: With shape (p, d).
        values: One vector of p values for each observed state.
        states: Which states these are.
        error_std: Of each of the p components.
    """

    def __init__(
        self, h: np.ndarray, values: np.ndarray, states: list[int], error_std: np.ndarray
    ) -> None:
        self.h, self.states = h, list(states)
        self._values, self._error_std = np.asarray(values).reshape(len(states), -1), error_std

    def __len__(self) -> int:
        return self._values.size

    @property
    def values(self) -> Tensor:
        return torch.from_numpy(self._values.reshape(-1).copy())

    @property
    def error_std(self) -> Tensor:
        return torch.from_numpy(np.tile(self._error_std, len(self.states)))

    @property
    def time_support(self) -> tuple[np.ndarray, np.ndarray]:
        time = np.repeat(np.array(self.states, dtype=np.int64), len(self.h))
        return time, time

    def operator(self, states: Tensor) -> Tensor:
        flat = states[..., self.states, :, :, :].flatten(-3)
        return (flat @ torch.from_numpy(self.h.T).to(flat)).flatten(-2)

    def select(self, mask: np.ndarray) -> "LinearObservations":
        whole = mask.reshape(len(self.states), -1).all(axis=1)
        keep = np.flatnonzero(whole)
        states = [self.states[i] for i in keep]
        return LinearObservations(self.h, self._values[keep], states, self._error_std)

    def for_blanket(self, start: int, stop: int) -> "LinearObservations":
        keep = [i for i, s in enumerate(self.states) if start <= s < stop]
        states = [self.states[i] - start for i in keep]
        return LinearObservations(self.h, self._values[keep], states, self._error_std)
