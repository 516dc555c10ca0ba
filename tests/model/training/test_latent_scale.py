"""The scale of latents, against a decoder whose response is known."""

import torch
from torch import nn

from lab.training.train_denoiser import decoder_response, latent_scale


class Weighted(nn.Module):
    """Each latent channel becomes one channel of the state, times a weight."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.weights = weights

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        states = latents * self.weights[:, None, None]
        return states.repeat_interleave(4, -1).repeat_interleave(4, -2)


def test_the_response_is_the_weight_times_the_change():
    weights, std = torch.tensor([1.0, 0.1, 3.0]), torch.tensor([2.0, 5.0, 0.5])
    response = decoder_response(Weighted(weights), torch.zeros(50, 3, 12, 24), std)
    # One channel of three moves, by its weight times a standard normal number of size `std`.
    torch.testing.assert_close(response, weights * std / 3**0.5, rtol=0.02, atol=0)


def test_equal_steps_in_scaled_latents_move_the_state_equally():
    weights, std = torch.tensor([1.0, 0.1, 3.0]), torch.tensor([2.0, 5.0, 0.5])
    scale = latent_scale(std, weights * std)
    torch.testing.assert_close(weights * scale, (weights * scale)[:1].expand(3))
    torch.testing.assert_close((std / scale).square().mean(), torch.tensor(1.0))
