"""The arithmetic of networks: what settings mean, and that they change results by rounding alone."""

import pytest
import torch
from torch.nn import functional

from lab.training.loop import Optimisation
from model.denoiser import native_precision
from model.domain.errors import UnknownName
from tests.model.checkpoint_parts import DATE, tiny_model
from worker.arithmetic import Arithmetic, arithmetic_in, choose_arithmetic, compile_backbone
from worker.contract.kinds import FilteringSpec
from worker.contract.queues import Capabilities, ModelInfo, WorkerReport, merge
from worker.loaded_models import LoadedModel, open_models
from worker.settings import WorkerSettings
from worker.solver import Solver

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SPEC = {"valid_time": "2024-01-01T12:00:00Z"}


@pytest.mark.parametrize(
    ("device", "asked", "has", "precision", "tf32"),
    [
        (CPU, "auto", True, "float32", False),
        (CPU, "bfloat16", True, "bfloat16", False),
        (GPU, "auto", True, "bfloat16", True),
        (GPU, "auto", False, "float32", True),
        (GPU, "float32", True, "float32", True),
    ],
)
def test_precision_follows_the_device(monkeypatch, device, asked, has, precision, tf32):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has)
    chosen = choose_arithmetic(device, asked)
    assert (chosen.precision, chosen.tf32) == (precision, tf32)
    assert choose_arithmetic(device, asked, tf32=False).tf32 is False
    assert chosen.at("bfloat16") == Arithmetic("bfloat16", chosen.tf32)


@pytest.mark.parametrize(
    ("units", "precision"),
    [
        ({"avx2": True, "avx512_f": True}, "float32"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True, "avx512_bf16": False}, "bfloat16"),
        ({"neon": True, "bf16": True}, "bfloat16"),
        ({"neon": True, "bf16": False}, "float32"),
    ],
)
def test_a_processor_computes_in_bfloat16_where_it_has_units_for_it(monkeypatch, units, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert native_precision(CPU) == precision
    with Optimisation(steps=1).autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, precision)


def test_settings_reach_the_model_and_the_capabilities(monkeypatch, tmp_path):
    monkeypatch.setenv("APPA_PRECISION", "bfloat16")
    monkeypatch.setenv("APPA_MODELS", "appa-t31")
    monkeypatch.setattr("worker.loaded_models.warm_up", lambda model: None)
    (loaded,) = open_models(WorkerSettings()).models
    assert loaded.model.precision == loaded.model.denoise.precision == "bfloat16"
    info = loaded.info
    assert info.default_precision == "bfloat16"
    assert {"float32", "bfloat16"} == set(info.precisions)
    assert {"zeab", "ddim", "pc"} <= set(info.samplers)
    assert {"mmps", "sda", "prior_covariance"} <= set(info.guidance)
    assert (info.default_guidance, info.default_sampler) == ("prior_covariance", "zeab")
    assert info.default_steps == loaded.model.card.recommended.entry.steps


def test_guidance_that_needs_a_closed_form_is_not_offered_without_one(tmp_path):
    offered = {
        based: LoadedModel("tiny", "", tiny_model(based=based), tmp_path).info.guidance
        for based in (True, False)
    }
    assert set(offered[True]) - set(offered[False]) == {"prior_covariance"}


def test_another_precision_is_a_view_that_leaves_the_model_alone():
    model = tiny_model()
    x, sigma = torch.randn(1, 4, *model.latent_shape), torch.tensor(0.7)
    before = model.denoise(x, sigma, DATE)
    view = model.in_precision("bfloat16")
    assert view is model.in_precision("bfloat16")
    assert view.denoise.backbone is model.denoise.backbone
    rounded = view.denoise(x, sigma, DATE)
    assert 0 < (rounded - before).abs().max() < 0.05 * before.abs().max()
    assert torch.equal(model.denoise(x, sigma, DATE), before)
    fresh = tiny_model().in_precision("bfloat16")  # which has computed nothing in float32
    assert torch.equal(fresh.denoise(x, sigma, DATE), rounded)


def test_plain_attention_is_the_same_function_and_is_set_back():
    q, k, v = torch.randn(3, 2, 4, 50, 8, dtype=torch.float64)
    fused = functional.scaled_dot_product_attention(q, k, v)
    by_hand = torch.softmax(q @ k.mT / 8**0.5, dim=-1) @ v
    with arithmetic_in(Arithmetic(attention="plain")):
        assert not torch.backends.cuda.flash_sdp_enabled()
        plain = functional.scaled_dot_product_attention(q, k, v)
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.allclose(plain, by_hand, atol=1e-12)
    assert torch.allclose(fused, by_hand, atol=1e-12)


def test_a_job_gets_the_settings_it_chose():
    model = tiny_model(based=True)
    settings = Solver(model, FilteringSpec(**SPEC, steps=3, sampler="ddim"), None).settings
    assert (settings.sampler.name, settings.entry.steps, settings.own_steps) == ("ddim", 3, 3)
    assert settings.guidance == model_default(model).guidance
    chosen = Solver(model, FilteringSpec(**SPEC, guidance="sda"), None).settings
    assert chosen.guidance.method == "sda"
    for field, text in {
        "sampler": "Unknown sampler 'x'",
        "guidance": "Unknown guidance 'x'",
    }.items():
        with pytest.raises(UnknownName, match=text):
            Solver(model, FilteringSpec(**SPEC, **{field: "x"}), None)


def test_a_job_may_choose_what_all_workers_with_the_model_offer():
    names = {"samplers": ["zeab", "ddim"], "guidance": ["mmps"], "precisions": ["float32"]}
    one = ModelInfo(name="t31", default_sampler="zeab", **names)
    other = one.model_copy(update={"samplers": ["own", "ddim"], "default_sampler": "own"})
    reports = [
        WorkerReport(name=info.default_sampler, queues=[], capabilities=Capabilities(models=[info]))
        for info in (one, other)
    ]
    [shared] = merge(reports).models
    assert shared == one.model_copy(update={"samplers": ["ddim"]})


def model_default(model):
    return Solver(model, FilteringSpec(**SPEC), None).settings


@pytest.mark.slow  # the compiler takes half a minute
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of its own
def test_a_compiled_network_pulls_the_same_cotangents_more_than_once():
    model = tiny_model()
    x, sigma = torch.randn(1, 4, *model.latent_shape), torch.tensor(0.7)

    def pulled():
        z = x.clone().requires_grad_()
        y = model.denoise(z, sigma, DATE)
        return [y.detach()] + [
            torch.autograd.grad(y, z, torch.full_like(y, s), retain_graph=True)[0]
            for s in (1.0, -2.0)
        ]

    eager = pulled()
    compile_backbone(model.denoise.backbone)
    for a, b in zip(eager, pulled(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert all(not name.startswith("_orig_mod") for name in model.denoise.state_dict())
