"""What a long computation tells its caller, and how the caller stops it."""

__all__ = ["OnStep", "no_progress"]

from collections.abc import Callable

OnStep = Callable[[int, int], None]
"""Called with (i, n) before diffusion step i of n; may raise `JobCancelled`."""


def no_progress(step: int, steps: int) -> None:
    """Tells nobody."""
