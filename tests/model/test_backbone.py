"""The backbone: names and sizes of the release, dates, kept constants, options."""

import copy
import json
import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import torch

from model.backbone import Backbone, BackboneConfig
from model.domain.errors import ConfigurationError, InvalidInput
from model.guidance.solvers import Tangent
from model.nn import frozen
from model.nn.embedding import date_features, year_progress
from model.nn.transformer import LocalMixing, rotate

TINY = BackboneConfig(
    in_channels=3,
    blanket_size=4,
    shape=(2, 6),
    mod_features=8,
    hid_channels=16,
    hid_blocks=2,
    attention_heads=2,
)
DATE = torch.tensor([[[2021, 3, 4, h] for h in range(4)], [[2020, 12, 31, h] for h in range(4)]])


def build(config=TINY, **options):
    torch.manual_seed(0)
    model = Backbone(config, **options).double().eval()
    for block in model.blocks:  # the released start is close to the identity; make it matter
        torch.nn.init.normal_(block.ada_zero[-1].weight)
    return model


def blankets(config=TINY, batch=2, shape=None):
    size = (batch, config.blanket_size, config.in_channels, *(shape or config.shape))
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_released_configuration_has_the_released_names_shapes_and_count(parity_dir):
    released = json.loads((parity_dir / "full_state_dict_keys.json").read_text())
    wanted = released["backbone_vit_large_k24"]
    with torch.device("meta"):
        model = Backbone(BackboneConfig(64, 24, (23, 47)))
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
    assert sum(p.numel() for p in parameters.values()) == wanted["params"]
    tokens = model.config.tokens(model.config.shape)
    assert math.prod(tokens) == released["meta"]["tokens_per_blanket"]


@pytest.mark.parametrize("patch", [(2, 1, 1), (2, 2, 2), (1, 2, 3), (4, 1, 2)])
def test_any_patch_and_one_noise_time_for_all_or_one_each(patch):
    model = build(replace(TINY, patch_size=patch))
    x = blankets()
    t = torch.tensor([1.0, -2.0], dtype=torch.float64)
    with torch.no_grad():
        y = model(x, t, DATE)
        assert y.shape == x.shape
        for i in range(2):
            single = model(x[i : i + 1], t[i], DATE[i : i + 1])
            assert torch.allclose(single[0], y[i], rtol=1e-10, atol=1e-12)


def test_splitting_the_input_projection_equals_appended_date_channels():
    model = build(replace(TINY, patch_size=(2, 2, 2)))
    x = blankets()
    dates = date_features(DATE).double()[:, None, :, None, None].expand(-1, 4, -1, 2, 6)
    dense = torch.cat((x, dates), dim=2)
    # Feature order: channel, time, row, column; token order: time, row, column.
    patches = dense.reshape(2, 2, 2, 19, 1, 2, 3, 2).permute(0, 1, 4, 6, 3, 2, 5, 7)
    expected = model.in_proj(patches.reshape(2, 6, 19 * 8))
    assert torch.allclose(model.embed(x, DATE), expected, rtol=1e-12, atol=1e-12)


def test_year_progress_counts_hours_of_the_year():
    for time in (
        datetime(2020, 2, 29, 23, tzinfo=UTC),
        datetime(2020, 3, 1, tzinfo=UTC),
        datetime(2021, 12, 31, 23, tzinfo=UTC),
        datetime(1900, 3, 1, 5, tzinfo=UTC),
        datetime(2000, 7, 15, 12, tzinfo=UTC),
        *(datetime(2023, m, 1, tzinfo=UTC) for m in range(1, 13)),
        *(datetime(2024, m, 28, 6, tzinfo=UTC) for m in range(1, 13)),
    ):
        first, following = (datetime(time.year + i, 1, 1, tzinfo=UTC) for i in (0, 1))
        angle = 2 * math.pi * ((time - first) / (following - first))
        got = year_progress(torch.tensor([time.year, time.month, time.day, time.hour]))
        expected = torch.tensor([math.sin(angle), math.cos(angle)])
        assert torch.allclose(got, expected, atol=1e-6)


def test_rotation_makes_attention_depend_on_distance_alone():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 8, dtype=torch.float64)
    frequency = torch.randn(1, 1, 4, dtype=torch.float64)

    def score(i, j):
        turned = [(torch.cos(n * frequency), torch.sin(n * frequency)) for n in (i, j)]
        return (rotate(q, turned[0]) * rotate(k, turned[1])).sum()

    assert torch.allclose(score(3, 7), score(10, 14))
    assert not torch.allclose(score(3, 7), score(3, 8))
    assert torch.allclose(score(5, 5), (q * k).sum())


def test_kept_constants_follow_the_parameters():
    model = build().requires_grad_(False)
    x, t = blankets(), torch.zeros((), dtype=torch.float64)
    before = model(x, t, DATE)
    assert torch.equal(model(x, t, DATE), before)  # second call: from the cache
    model.blocks[0].theta.mul_(3.0)
    model.positional_embedding[-1].bias.add_(1.0)
    after = model(x, t, DATE)
    assert not torch.allclose(after, before)
    fresh = build().requires_grad_(False)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x, t, DATE), after)


def test_kept_constants_follow_the_type_and_the_grid():
    model = build().requires_grad_(False)
    x, t = blankets(), torch.zeros((), dtype=torch.float64)
    double = model(x, t, DATE)
    single = copy.deepcopy(model).float()(x.float(), t.float(), DATE)
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), double, atol=1e-4)
    model.float()
    assert torch.equal(model(x.float(), t.float(), DATE), single)
    assert model(blankets(shape=(4, 4)).float(), t.float(), DATE).shape[-2:] == (4, 4)


def test_constants_made_in_inference_mode_serve_a_later_gradient():
    model = build().requires_grad_(False)
    x, t = blankets(), torch.zeros((), dtype=torch.float64)
    with torch.inference_mode():
        model(x, t, DATE)
    x.requires_grad_()
    model(x, t, DATE).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_learns_also_after_an_evaluation(checkpointing):
    model = build(checkpointing=checkpointing)
    x, t = blankets(), torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        model(x, t, DATE)
    model(x, t, DATE).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    model.zero_grad()
    reference = build()
    reference(x, t, DATE).square().sum().backward()
    model(x, t, DATE).square().sum().backward()
    assert torch.allclose(model.blocks[0].theta.grad, reference.blocks[0].theta.grad)


def test_a_copy_has_its_own_constants_and_the_state_dict_none():
    model = build().requires_grad_(False)
    names = set(model.state_dict())
    model(blankets(), torch.zeros((), dtype=torch.float64), DATE)
    assert set(model.state_dict()) == names
    twin = copy.deepcopy(model)
    twin.blocks[0].theta.zero_()
    t = torch.zeros((), dtype=torch.float64)
    assert not torch.allclose(twin(blankets(), t, DATE), model(blankets(), t, DATE))


@pytest.mark.parametrize(
    "change",
    [{"window_size": (3, 3, 3)}, {"spatial": 2}, {"attention_heads": 3}, {"patch_size": (3, 1, 1)}],
)
def test_settings_that_cannot_work_are_refused(change):
    with pytest.raises(ConfigurationError, match="Expected"):
        replace(TINY, **change)


def test_wrong_shapes_are_named():
    model, t = build(), torch.zeros((), dtype=torch.float64)
    with pytest.raises(InvalidInput, match=r"\(B, 4, 3, h, w\); got \(2, 3, 4, 2, 6\)"):
        model(blankets().transpose(1, 2), t, DATE)
    with pytest.raises(InvalidInput, match=r"dates with shape \(2, 4, 4\); got \(1, 4, 4\)"):
        model(blankets(), t, DATE[:1])


def test_compiled_blocks_give_the_same_in_one_graph_each():
    model = build().requires_grad_(False)
    x, t = blankets(), torch.zeros((), dtype=torch.float64)
    plain = model(x, t, DATE)
    model.compile_blocks(backend="aot_eager", fullgraph=True)
    assert torch.allclose(model(x, t, DATE), plain, rtol=1e-12, atol=1e-12)
    assert not any("_orig_mod" in name for name in model.state_dict())


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # read while tracing
def test_compiled_blocks_have_the_same_gradients():
    model = build(replace(TINY, local_size=3))
    x, t = blankets(), torch.zeros((), dtype=torch.float64)
    plain = torch.autograd.grad(model(x, t, DATE).square().sum(), list(model.parameters()))
    model.compile_blocks(backend="aot_eager", fullgraph=True)
    compiled = torch.autograd.grad(model(x, t, DATE).square().sum(), list(model.parameters()))
    for found, wanted in zip(compiled, plain, strict=True):
        torch.testing.assert_close(found, wanted)


def test_local_mixing_sees_neighbours_around_the_globe_and_stops_at_the_poles():
    grid = (2, 3, 4)
    mixing = LocalMixing(5, 3).double()
    kernel = torch.randn(5, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    mixing.load_state_dict({"conv.weight": kernel[:, None], "conv.bias": torch.zeros(5)})
    x = torch.randn(2, 24, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    states = x.reshape(2, *grid, 5)
    wanted = torch.zeros_like(states)
    for row in range(3):
        for column in range(4):
            for i in (-1, 0, 1):
                for j in (-1, 0, 1):
                    if 0 <= row + i < 3:
                        neighbour = states[:, :, row + i, (column + j) % 4]
                        wanted[:, :, row, column] += neighbour * kernel[:, i + 1, j + 1]
    torch.testing.assert_close(mixing(x, grid), wanted.reshape(x.shape))


def test_local_mixing_by_zero_is_the_block_without_it():
    plain, mixed = build(), build(replace(TINY, local_size=3))
    mixed.load_state_dict(plain.state_dict(), strict=False)
    for block in mixed.blocks:
        torch.nn.init.zeros_(block.local.conv.weight)
        torch.nn.init.zeros_(block.local.conv.bias)
    x = blankets()
    t = torch.tensor([0.3, -1.0], dtype=torch.float64)
    torch.testing.assert_close(mixed(x, t, DATE), plain(x, t, DATE))


def test_products_with_the_jacobian_of_frozen_blocks_are_slopes_and_gradients():
    model = build(replace(TINY, local_size=3)).requires_grad_(False)
    x, t = blankets(), torch.tensor([0.3, -1.0], dtype=torch.float64)

    def f(z):
        return model(z, t, DATE).flatten(1)

    with frozen.linearising():
        point = Tangent(f, x)
    random = torch.Generator().manual_seed(4)
    u = torch.randn(x.shape, dtype=torch.float64, generator=random)
    w = torch.randn(point.y.shape, dtype=torch.float64, generator=random)
    slope = (f(x + 1e-6 * u) - f(x - 1e-6 * u)) / 2e-6
    torch.testing.assert_close(point.jvp(u), slope, rtol=1e-6, atol=1e-7)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(leaf), leaf, w)
    torch.testing.assert_close(point.vjp(w), gradient)


def test_local_mixing_is_linearised_without_splitting_its_channels():
    model = build(replace(TINY, local_size=3)).requires_grad_(False)
    t = torch.tensor([0.3, -1.0], dtype=torch.float64)
    point = Tangent(lambda z: model(z, t, DATE).flatten(1), blankets())
    point.vjp(torch.ones_like(point.y))
    with torch.profiler.profile() as profile:
        point.jvp(torch.ones_like(point.x))
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["aten::convolution"] == len(model.blocks)
