"""Bundles: written whole, read back equal, refused when anything does not match."""

import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from checkpoint_parts import DATE, tiny_card, tiny_model
from safetensors.torch import load_file, save_file

from lab.training.background_errors import attach_background_errors, first_guess
from model.assimilation_settings import AssimilationSettings, EntrySettings, recommended_settings
from model.card import BackgroundCard, read_card, write_card
from model.checkpoints import bundle as loading
from model.checkpoints.assemble import sha256
from model.checkpoints.bundle import load_checkpoint, save_checkpoint
from model.domain.errors import AppaError, CheckpointError
from model.guidance.jacobian import SDASettings
from model.samplers.sampling import SamplerSettings


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    save_checkpoint(tiny_model(), folder)
    return folder


@pytest.fixture
def bundle(written, tmp_path):
    return shutil.copytree(written, tmp_path / "tiny")


def change_card(bundle, change):
    path = bundle / "card.yaml"
    values = yaml.safe_load(path.read_text())
    change(values)
    path.write_text(yaml.safe_dump(values))


def change_arrays(bundle, role, change):
    path = bundle / f"{role}.safetensors"
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)
    change_card(bundle, lambda card: card["files"][role].update(sha256=sha256(path)))


@pytest.mark.parametrize("based", [False, True])
def test_a_saved_model_loads_equal(tmp_path, based):
    model = tiny_model(based=based)
    save_checkpoint(model, tmp_path / "bundle")
    loaded = load_checkpoint(tmp_path / "bundle")
    states = 50 * torch.randn(1, *model.state_shape)
    x, sigma = torch.randn(1, 4, *model.latent_shape), torch.tensor(0.7)
    assert torch.allclose(loaded.encode(states), model.encode(states), atol=1e-5)
    assert torch.equal(loaded.denoise(x, sigma, DATE), model.denoise(x, sigma, DATE))
    assert torch.allclose(loaded.latent_normalisation.std, model.latent_normalisation.std)
    assert torch.equal(loaded.static["orography"], model.static["orography"])
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not loaded.training
    assert loaded.card.files.keys() >= {"autoencoder", "backbone", "statistics", "static"}


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_half_precision_storage_loads_as_float32_within_its_rounding(tmp_path, stored):
    model = tiny_model()
    save_checkpoint(model, tmp_path / "half", stored=stored)
    raw = load_file(tmp_path / "half" / "backbone.safetensors")
    assert raw["in_proj.weight"].dtype == getattr(torch, stored)
    assert raw["positional_embedding.0.freqs"].dtype == torch.float32
    loaded = load_checkpoint(tmp_path / "half")
    epsilon = torch.finfo(getattr(torch, stored)).eps
    for (name, a), b in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert b.dtype == torch.float32, name
        assert torch.allclose(a, b, rtol=epsilon, atol=1e-7), name


def test_a_bundle_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("model.checkpoints.bundle.write_card", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tiny_model(), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


LOAD = """
import sys
from model.checkpoints.bundle import load_checkpoint
load_checkpoint(sys.argv[1])
print({"torch._dynamo", "sympy"} & set(sys.modules))
"""


def test_loading_imports_no_compiler(written):
    """Laying out a network on the device `meta` does for some operations, for 1.4 s and 70 MB."""
    command = [sys.executable, "-c", LOAD, str(written)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_folder_in_use_is_not_overwritten(bundle):
    with pytest.raises(CheckpointError, match="absent or empty"):
        save_checkpoint(tiny_model(), bundle)


def test_a_card_reads_back_equal(tmp_path):
    card = tiny_card(provenance={"steps": 3, "data": ["a", "b"]})
    write_card(card, tmp_path / "card.yaml")
    assert read_card(tmp_path / "card.yaml") == card


def test_changed_bytes_are_noticed(bundle):
    path = bundle / "autoencoder.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"SHA-256 [0-9a-f]{64} of .*autoencoder") as caught:
        load_checkpoint(bundle)
    assert caught.value.context["file"] == str(path)
    load_checkpoint(bundle, verify=False)


def test_an_absent_file_is_named(bundle):
    (bundle / "statistics.safetensors").unlink()
    with pytest.raises(CheckpointError, match="statistics.safetensors"):
        load_checkpoint(bundle)


def test_missing_unexpected_and_misshapen_arrays_are_named(bundle):
    change_arrays(bundle, "backbone", lambda a: a.pop("in_proj.bias"))
    with pytest.raises(CheckpointError, match=r"backbone.*1 missing \(in_proj.bias\)"):
        load_checkpoint(bundle)
    change_arrays(bundle, "backbone", lambda a: a.update({"in_proj.bias": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=r"'in_proj.bias' .* \(16,\); got \(3,\)"):
        load_checkpoint(bundle)
    change_arrays(bundle, "backbone", lambda a: a.update({"other": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"1 unexpected \(other\)"):
        load_checkpoint(bundle)


def test_statistics_of_another_size_are_refused(bundle):
    change_arrays(bundle, "statistics", lambda a: a.update({"state_mean": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match="statistics.*got"):
        load_checkpoint(bundle)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c["grid"].update(nlon=16), "autoencoder.shape and grid"),
        (lambda c: c["channels"].reverse() or c["channels"].pop(), "in_channels and channels"),
        (lambda c: c["channels"].__setitem__(0, "temperature_7km"), "temperature_7km"),
        (lambda c: c["channels"].__setitem__(0, c["channels"][1]), "without repetition"),
        (lambda c: c.update(levels=[100, 500]), "levels"),
        (lambda c: c.update(latent_shape=[2, 3, 5]), "latent_shape"),
        (lambda c: c["blanket"].update(size=5), "blanket"),
        (lambda c: c.update(mystery=1), "mystery"),
        (lambda c: c["backbone"].update(window_size=[3, 3, 3]), "not carried"),
        (lambda c: c["backbone"].update(windows=1), "unknown settings windows"),
        (lambda c: c["files"]["backbone"].update(path="../x"), "beside the card"),
        (lambda c: c.pop("licence"), "licence"),
        (lambda c: c["recommended"]["sampler"].update(speed=2), "unknown settings speed"),
        (lambda c: c["recommended"]["entry"].update(steps=0), "at least one step"),
        (lambda c: c["recommended"].update(guidance={"iterations": 3}), "expected a method"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(bundle, change, text):
    change_card(bundle, change)
    with pytest.raises(CheckpointError, match=text) as caught:
        load_checkpoint(bundle)
    assert "card.yaml" in str(caught.value)


def test_a_card_that_is_not_yaml_is_refused(bundle):
    (bundle / "card.yaml").write_text("{")
    with pytest.raises(CheckpointError, match="YAML"):
        load_checkpoint(bundle)


def test_a_card_says_how_analyses_are_made(written, bundle):
    assert recommended_settings(load_checkpoint(written)) == AssimilationSettings()

    def change(card):
        card["recommended"] = {
            "sampler": {"name": "ddim", "steps": 5},
            "start": "prior",
            "entry": {"sigma": 0.3, "steps": 2},
            "guidance": {"method": "sda", "gamma": 7.0},
            "tie_error_std": 0.2,
        }

    change_card(bundle, change)
    settings = recommended_settings(load_checkpoint(bundle))
    assert settings == AssimilationSettings(
        sampler=SamplerSettings("ddim", steps=5),
        start="prior",
        entry=EntrySettings(0.3, 2),
        guidance=SDASettings(gamma=7.0),
        tie_error_std=0.2,
    )


@pytest.mark.parametrize(
    ("recommended", "text"),
    [
        ({"guidance": {"method": "guesswork"}}, "Unknown guidance 'guesswork'.*mmps"),
        ({"guidance": {"method": "mmps", "gamma": 1}}, "iterations.*got gamma"),
        ({"sampler": {"name": "dice"}}, "Unknown sampler 'dice'.*zeab"),
    ],
)
def test_what_a_card_recommends_must_be_there(bundle, recommended, text):
    change_card(bundle, lambda card: card.update(recommended=recommended))
    with pytest.raises(AppaError, match=text):
        recommended_settings(load_checkpoint(bundle))


def test_names_resolve_to_bundled_checkpoints(written, monkeypatch):
    monkeypatch.setattr(loading, "WEIGHTS", written.parent)
    assert loading.resolve("tiny") == written
    assert loading.resolve(written / "card.yaml") == written
    with pytest.raises(CheckpointError, match=r"bundled name \(tiny\); got 'large'"):
        loading.resolve("large")


def test_errors_of_backgrounds_share_the_eigenvectors_of_the_closed_form(tmp_path):
    model = tiny_model(based=True)
    model.denoise.base.mean.normal_()
    errors = first_guess(model.denoise.base, 0.7)
    attach_background_errors(model, errors, 0.5, 6)
    save_checkpoint(model, tmp_path / "bundle", stored="float16")
    stored = load_file(tmp_path / "bundle" / "background.safetensors")
    assert sorted(stored) == ["dense_variance", "mean", "rest_variance", "variance"]
    loaded = load_checkpoint(tmp_path / "bundle")
    assert loaded.card.background == BackgroundCard(modes=3, dense=2, sigma=0.5, hours=6)
    for name, value in errors.state_dict().items():
        found = loaded.background_errors.state_dict()[name]
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-3)
