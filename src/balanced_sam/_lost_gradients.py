"""Gradients that came before a step and would be thrown away."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from balanced_sam._guards import version_of

Groups = Sequence[dict[str, Any]]


def last_with_gradient(groups: Groups) -> tuple[Tensor, Tensor] | None:
    """Return the last parameter that has a gradient, and this gradient."""
    for group in reversed(groups):
        for parameter in reversed(group["params"]):
            if parameter.grad is not None:
                return parameter, parameter.grad
    return None


class LastGradient:
    """One gradient that a step left behind, to tell old gradients from new ones later.

    It is known by its parameter, which may have left the groups since. Holding it keeps its memory
    in use, but the last gradient is small in most networks. (A weak reference would forbid torch to
    swap it.)
    """

    _known: tuple[Tensor, Tensor, int] | None = None

    def remember(self, groups: Groups) -> None:
        """Remember the last gradient that is there now."""
        last = last_with_gradient(groups)
        self._known = None if last is None else (*last, version_of(last[1]))

    def is_there(self) -> bool:
        """Return whether the known gradient is where it was; others may have been added to it."""
        return self._known is not None and self._known[0].grad is self._known[1]

    def others_came(self, groups: Groups) -> bool:
        """Return whether other gradients replaced the known one, or were added to it."""
        if self._known is None:
            return last_with_gradient(groups) is not None
        parameter, gradient, version = self._known
        now = parameter.grad
        return now is not None and (now is not gradient or version_of(now) != version)
