"""Load modules and models without garbage collection."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["loading"]


@contextmanager
def loading() -> Iterator[None]:
    """Pause garbage collection within a block, and leave what exists at its end out of it for good.

    Imports create hundreds of thousands of objects that stay: to collect among them takes a quarter of
    the time in which a model worker loads its modules. Afterwards each full collection would pause jobs
    and requests for 0.2 s, and copy the pages that forks share.
    """
    gc.disable()
    try:
        yield
        gc.collect()
        gc.freeze()
    finally:
        gc.enable()
