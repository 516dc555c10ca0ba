"""The autoencoder: names and sizes of the release, padding, norms, memory formats."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from model.autoencoder import SATURATIONS, Autoencoder, AutoencoderConfig
from model.domain.errors import ConfigurationError, InvalidInput
from model.nn.convolution import ChannelNorm

TINY = AutoencoderConfig(
    in_channels=3,
    lat_channels=2,
    shape=(9, 14),
    resize=4,
    hid_channels=(4, 6, 8),
    hid_blocks=(1, 0, 1),
)


def build(config=TINY, **options):
    torch.manual_seed(0)
    return Autoencoder(config, **options).double().requires_grad_(False)


@pytest.mark.parametrize("channels", [71, 191])
def test_released_configuration_has_the_released_names_shapes_and_counts(parity_dir, channels):
    released = json.loads((parity_dir / "full_state_dict_keys.json").read_text())
    wanted = released[f"autoencoder_{channels}ch"]
    with torch.device("meta"):
        model = Autoencoder(AutoencoderConfig(channels, 64, (721, 1440)))
    parameters = dict(model.named_parameters())
    state = {
        name: {
            "shape": list(value.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
            "kind": "parameter" if name in parameters else "buffer",
        }
        for name, value in model.state_dict().items()
    }
    assert state == wanted["state_dict"]
    for part in ("encoder", "decoder"):
        count = sum(p.numel() for p in getattr(model, part).parameters())
        assert count == wanted["params"][part]
    _, h, w = model.latent_shape
    assert [h, w, 64] == wanted["latent_shape"]


def test_padding_wraps_longitude_and_adds_zero_rows_and_crop_undoes_it():
    model = build()
    # 9 rows need 3 more (1 above, 2 below); 14 columns need 2 more, plus 2 x 4 (5 on each side).
    x = torch.arange(2 * 3 * 9 * 14, dtype=torch.float64).reshape(2, 3, 9, 14) + 1
    padded = model.pad(x)
    assert padded.shape == (2, 3, 12, 24)
    assert torch.equal(padded[:, :, 1:10, :5], x[..., -5:])
    assert torch.equal(padded[:, :, 1:10, -5:], x[..., :5])
    assert padded[:, :, 0].abs().max() == padded[:, :, 10:].abs().max() == 0
    assert torch.equal(model.crop(padded), x)
    assert model.latent_shape == (2, 3, 6)


def test_any_leading_dimensions_and_none():
    model = build()
    x = torch.randn(2, 5, 3, 9, 14, dtype=torch.float64)
    z = model.encode(x)
    assert z.shape == (2, 5, 2, 3, 6)
    assert torch.allclose(z[1, 3], model.encode(x[1, 3]))
    y = model.decode(z)
    assert y.shape == x.shape
    assert torch.allclose(y[0, 4], model.decode(z[0, 4]))


def test_memory_formats_agree():
    x = torch.randn(2, 3, 9, 14, dtype=torch.float64)
    last, first = build(channels_last=True), build(channels_last=False)
    z = last.encode(x)
    assert torch.allclose(z, first.encode(x), rtol=1e-12, atol=1e-12)
    assert torch.allclose(last.decode(z), first.decode(z), rtol=1e-12, atol=1e-12)


def test_channel_norm_gives_mean_zero_and_unbiased_variance_one():
    x = 1e3 * torch.randn(2, 5, 3, 4, dtype=torch.float64) + 7
    y = ChannelNorm()(x)
    variance = y.var(dim=1, unbiased=True)
    assert torch.allclose(y.mean(dim=1), torch.zeros(2, 3, 4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(variance, torch.ones_like(variance), atol=1e-9)


def test_channel_norm_reads_its_eps_from_the_state_dict():
    norm = ChannelNorm()
    norm.load_state_dict({"eps": torch.tensor(3.0)})
    # Channels 1 and -1: mean 0, unbiased variance 2, so y = x / sqrt(2 + 3).
    x = torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1)
    assert torch.allclose(norm(x), x / 5**0.5)


@pytest.mark.parametrize("name", ["softclip", "softclip2", "tanh"])
def test_bounded_saturations(name):
    z = torch.tensor([-1e9, -1e-6, 0.0, 1e-6, 1e9], dtype=torch.float64)
    y = SATURATIONS[name](z, 5.0)
    assert torch.allclose(y[[0, 4]], torch.tensor([-5.0, 5.0], dtype=torch.float64))
    assert torch.allclose(y[1:4], z[1:4], rtol=1e-6)  # slope one at zero


def test_up_and_down_sampling_start_near_the_identity():
    torch.manual_seed(0)
    model = Autoencoder(replace(TINY, hid_channels=(4, 16, 16)))
    down = model.encoder.descent[1][0][1]
    centre = down.weight[:, :, 1, 1]
    assert isinstance(down, nn.Conv2d)
    assert torch.allclose(centre, torch.eye(16), atol=0.01)
    assert down.weight[..., 0, 0].abs().max() < 0.01


def test_training_noise_has_the_configured_size():
    model = build(replace(TINY, noise_level=0.3))
    z = torch.zeros(1, *model.latent_shape, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    noise = 0.3 * torch.empty_like(z).normal_(generator=torch.Generator().manual_seed(0))
    noisy = model.decode(z, noisy=True, generator=generator)
    assert torch.allclose(noisy, model.decode(noise))
    assert not torch.allclose(noisy, model.decode(z))


@pytest.mark.parametrize(
    "change",
    [{"periodic": True}, {"resize": 8}, {"hid_blocks": (1, 1)}, {"patch_size": (2, 1)}],
)
def test_settings_that_cannot_work_are_refused(change):
    with pytest.raises(ConfigurationError, match="Expected"):
        replace(TINY, **change)


def test_wrong_shapes_are_named():
    with pytest.raises(InvalidInput, match=r"\(\*, 3, 9, 14\); got \(1, 3, 9, 15\)"):
        build().encode(torch.zeros(1, 3, 9, 15, dtype=torch.float64))
    with pytest.raises(InvalidInput, match="latents"):
        build().decode(torch.zeros(2, 3, 5, dtype=torch.float64))


@pytest.mark.parametrize("shuffle", [True, False])
def test_patches_and_strided_levels_keep_the_shape(shuffle):
    config = replace(
        TINY, hid_channels=(4, 6), hid_blocks=(1, 1), patch_size=(2, 2), pixel_shuffle=shuffle
    )
    model = build(config)
    x = torch.randn(1, 3, 9, 14, dtype=torch.float64)
    assert model.decode(model.encode(x)).shape == x.shape
