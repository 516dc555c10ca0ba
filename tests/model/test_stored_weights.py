"""Weights of an idle model: their memory goes, and the same values come back from the bundle."""

import gc
import shutil
import weakref

import pytest
import torch
from checkpoint_parts import DATE, tiny_model

from model.checkpoints import stored_weights as stored
from model.checkpoints.bundle import load_checkpoint, save_checkpoint
from model.domain.errors import CheckpointError


@pytest.fixture(autouse=True)
def _tiny_arrays_count(monkeypatch):
    monkeypatch.setattr(stored, "_LEAST_BYTES", 256)


@pytest.fixture
def bundle(tmp_path):
    save_checkpoint(tiny_model(based=True), tmp_path / "tiny", stored="float16")
    return tmp_path / "tiny"


def held_bytes(model):
    return sum(
        {s.data_ptr(): s.nbytes() for s in map(storage, model.state_dict().values())}.values()
    )


def storage(array):
    return array.untyped_storage()


def copies(model):
    return {name: array.clone() for name, array in model.state_dict().items()}


def test_the_memory_goes_and_the_same_values_come_back(bundle):
    model = load_checkpoint(bundle)
    x, sigma = torch.randn(1, 4, *model.latent_shape), torch.tensor(0.7)
    before, bytes_before, wanted = copies(model), held_bytes(model), model.denoise(x, sigma, DATE)
    parameters = [id(p) for p in model.parameters()]
    weights = stored.stored_weights(bundle, model)
    shutil.rmtree(bundle)  # a job goes on with what the worker has loaded
    for _ in range(2):
        weights.rest()
        assert held_bytes(model) < 0.5 * bytes_before
        weights.wake()
        assert held_bytes(model) == bytes_before
        after = model.state_dict()
        assert all(torch.equal(after[name], array) for name, array in before.items())
    assert [id(p) for p in model.parameters()] == parameters
    assert torch.equal(model.denoise(x, sigma, DATE), wanted)


def test_what_was_derived_from_them_goes_as_well(bundle):
    model = load_checkpoint(bundle)
    weights = stored.stored_weights(bundle, model)
    levels = torch.tensor([0.1, 0.1, 2.0, 2.0])
    factors = weakref.ref(model.denoise.base.given(levels)._factors[0])
    gc.collect()
    assert factors() is not None  # held for the next evaluation
    weights.rest()
    assert factors() is None
    weights.wake()
    x = torch.randn(1, 4, *model.latent_shape)
    other = load_checkpoint(bundle).denoise.base.given(levels)
    torch.testing.assert_close(model.denoise.base.given(levels).gain(x), other.gain(x))


def test_what_differs_from_the_stored_values_is_kept(bundle):
    model = load_checkpoint(bundle)
    changed = max(model.denoise.backbone.parameters(), key=lambda p: p.nbytes)
    changed.mul_(1.5)
    wanted = changed.clone()
    weights = stored.stored_weights(bundle, model)
    weights.rest()
    assert torch.equal(changed, wanted)
    weights.wake()
    assert torch.equal(changed, wanted)


def test_a_file_that_was_written_to_is_refused(bundle):
    model = load_checkpoint(bundle)
    weights = stored.stored_weights(bundle, model)
    weights.rest()
    path = bundle / "backbone.safetensors"
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    for _ in range(2):  # and no job ever computes with other weights
        with pytest.raises(CheckpointError, match="Restart this worker"):
            weights.wake()


def test_a_file_that_was_written_to_before_keeps_the_weights_in_memory(bundle):
    model = load_checkpoint(bundle)
    before, weights = copies(model), stored.stored_weights(bundle, model)
    for path in bundle.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    weights.rest()
    assert all(torch.equal(array, before[name]) for name, array in model.state_dict().items())
