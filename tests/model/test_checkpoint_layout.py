"""The authors' layout as their scripts leave it: what is taken, what is left, what is ambiguous."""

import shutil

import pytest
import torch
from checkpoint_parts import write_layout

from model.checkpoints.released import find_released, load_released
from model.domain.errors import CheckpointError


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("layout")
    write_layout(root)
    return root


@pytest.fixture
def tree(written, tmp_path):
    shutil.copytree(written, tmp_path / "tree")
    return tmp_path / "tree"


def relative(run, root):
    parts = ("autoencoder", "denoiser", "latent_statistics", "state_statistics")
    return {part: str(getattr(run, part).relative_to(root)) for part in parts}


DUMP = "autoencoders/run0/latents/dump0"


def test_the_tree_is_taken_as_it_is(tree):
    run = find_released(tree)
    assert relative(run, tree) == {
        "autoencoder": f"{DUMP}/ae",
        "denoiser": f"{DUMP}/denoisers/run1",
        "latent_statistics": f"{DUMP}/stats.pth",
        "state_statistics": "stats_era5.zarr",
    }
    left = {str(c.path.relative_to(tree)): c.reason for c in run.found if c.reason}
    assert left == {
        "autoencoders/run0": "no weights (model*.pth)",
        "masks.zarr": "no dimension 'statistic'",
    }


def test_the_dump_of_the_denoiser_decides_between_autoencoders_with_weights(tree):
    run = tree / "autoencoders" / "run0"
    shutil.copy(tree / DUMP / "ae" / "model.pth", run / "model_best.pth")
    shutil.copytree(run, tree / "autoencoders" / "run7", ignore=lambda *_: ["latents"])
    found = find_released(tree)
    assert found.autoencoder == tree / DUMP / "ae"
    why = {c.path: c.reason for c in found.found}
    assert why[run] == f"{tree / DUMP / 'ae'} was taken"
    shutil.rmtree(tree / DUMP / "ae")
    assert find_released(tree).autoencoder == run  # the nearest above the dump


def test_a_second_dump_without_denoiser_is_left(tree):
    shutil.copytree(tree / DUMP, tree / "autoencoders/run0/latents/dump1")
    shutil.rmtree(tree / "autoencoders/run0/latents/dump1/denoisers")
    assert relative(find_released(tree), tree)["latent_statistics"] == f"{DUMP}/stats.pth"


@pytest.mark.parametrize(
    ("part", "copied", "option"),
    [
        ("denoiser", f"{DUMP}/denoisers/run1", "--denoiser"),
        ("state_statistics", "stats_era5.zarr", "--state-statistics"),
    ],
)
def test_what_is_ambiguous_names_the_option(tree, part, copied, option):
    original = tree / copied
    second = original.with_name("second" + original.suffix)
    shutil.copytree(original, second)
    with pytest.raises(CheckpointError, match=f"Name the one to use with {option}") as error:
        find_released(tree)
    assert set(error.value.context["found"]) == {str(original), str(second)}
    assert getattr(find_released(tree, **{part: second}), part) == second


def test_two_dumps_apart_from_the_denoiser_are_ambiguous(tree):
    shutil.move(tree / DUMP / "denoisers", tree / "denoisers")
    shutil.copytree(tree / DUMP, tree / "autoencoders/run0/latents/dump1")
    with pytest.raises(CheckpointError, match="--latent-statistics"):
        find_released(tree)
    stats = tree / DUMP / "stats.pth"
    found = find_released(tree, latent_statistics=stats)
    assert found.autoencoder == tree / DUMP / "ae"


def test_a_config_without_weights_alone_is_named_with_the_reason(tree):
    (tree / DUMP / "ae" / "model.pth").unlink()
    with pytest.raises(CheckpointError, match=r"left out: .*run0 \(no weights .*/ae \(no weights"):
        find_released(tree)


def test_a_store_that_is_none_and_one_of_another_name(tree):
    (tree / "broken.zarr").mkdir()
    (tree / "stats_era5.zarr").rename(tree / "statistics")
    found = find_released(tree)
    assert found.state_statistics == tree / "statistics"
    assert [c.reason[:10] for c in found.found if c.path.name == "broken.zarr"] == ["unreadable"]


def test_weights_of_denoiser_and_autoencoder_are_chosen_apart(tree):
    ae = tree / DUMP / "ae"
    other = torch.load(ae / "model.pth", weights_only=True)
    name = next(n for n in other if n.endswith("bias"))
    torch.save(other | {name: other[name] + 2}, ae / "model_last.pth")

    def loaded(**options):
        model = load_released(tree, **options)
        bias = model.denoise.backbone.in_proj.bias
        return bias.mean().item(), model.autoencoder.state_dict()[name].mean().item()

    best, plain = loaded()
    assert loaded(weights="last") == pytest.approx((best + 1, plain))
    assert loaded(autoencoder_weights="last") == pytest.approx((best, plain + 2))
    with pytest.raises(CheckpointError, match="got model, last.*--autoencoder-weights"):
        loaded(autoencoder_weights="best")
    with pytest.raises(CheckpointError, match="got best, last.*--weights"):
        loaded(weights="model")


def test_the_bundle_is_called_after_the_dump(tree):
    assert load_released(tree).card.name == "dump0"
