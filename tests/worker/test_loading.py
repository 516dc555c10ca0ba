"""What is loaded stays out of garbage collection; collection itself goes on."""

import gc

import pytest

from worker.contract.loading import loading


class Node:
    """An object that refers to itself."""

    def __init__(self) -> None:
        self.own = self


def test_garbage_is_not_collected_while_something_is_loaded():
    with loading():
        assert not gc.isenabled()
        kept = Node()
    assert gc.isenabled()
    assert not any(found is kept for found in gc.get_objects())  # frozen: never looked at again
    later = Node()
    assert any(found is later for found in gc.get_objects())


def test_it_goes_on_after_an_error():
    with pytest.raises(ValueError, match="odd"), loading():
        raise ValueError("odd")
    assert gc.isenabled()
