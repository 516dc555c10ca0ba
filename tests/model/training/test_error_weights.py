"""Errors of a training loss divided by their size."""

import torch

from lab.training.preconditioning import ErrorWeights

ROWS, COLUMNS, CHANNELS = 3, 16, 4


def errors(count: int = 400) -> torch.Tensor:
    """Return errors whose directions are mixed and whose variances differ by row: 1 to 30."""
    random = torch.Generator().manual_seed(0)
    white = torch.randn(count, ROWS, COLUMNS, CHANNELS, generator=random)
    sizes = torch.tensor([1.0, 2.0, 4.0, 5.5]) * torch.tensor([[1.0], [0.5], [1.0]])
    mixing = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=random)).Q
    return ((white * sizes[:, None]) @ mixing.T).permute(0, 3, 1, 2)


def test_weighted_errors_are_alike_along_all_directions_and_in_all_rows() -> None:
    sample = errors()
    weighted = ErrorWeights.of(sample)(sample)
    variance = weighted.square().mean((0, 3))  # by direction and row
    assert float(variance.max() / variance.min()) < 1.1
    together = weighted.permute(0, 2, 3, 1).reshape(-1, CHANNELS)
    covariance = together.T @ together / len(together)
    off = covariance - covariance.diag().diag()
    assert float(off.abs().max() / covariance.diag().mean()) < 0.05


def test_weights_leave_the_total_error_as_it_was() -> None:
    sample = errors()
    weights = ErrorWeights.of(sample)
    torch.testing.assert_close(weights(sample).square().mean(), sample.square().mean())
    blankets = sample.reshape(8, -1, *sample.shape[1:])
    torch.testing.assert_close(weights(blankets).flatten(0, 1), weights(sample))


def test_weights_keep_the_minimum_of_a_regression_and_reach_it_with_less_noise() -> None:
    """The mean of noisy samples: the weighted least squares of a factor common to all channels."""
    random = torch.Generator().manual_seed(1)
    truth, found = 0.7, {"plain": [], "weighted": []}
    weights = ErrorWeights.of(errors())
    for _ in range(200):
        x = torch.randn(1, CHANNELS, ROWS, COLUMNS, generator=random)
        noise = errors(400)[torch.randint(400, (1,), generator=random)]
        y = truth * x + noise
        for name, f in (("plain", lambda v: v), ("weighted", weights)):
            a, b = f(x), f(y)
            found[name].append(float((a * b).sum() / (a * a).sum()))
    mean = {name: torch.tensor(values).mean() for name, values in found.items()}
    spread = {name: torch.tensor(values).std() for name, values in found.items()}
    assert abs(float(mean["weighted"]) - truth) < 0.05
    assert float(spread["weighted"]) < 0.75 * float(spread["plain"])
