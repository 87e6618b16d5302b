"""Gradients that came before a step and would be thrown away."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from balanced_sam._guards import version_of


def first_with_gradient(groups: Iterable[dict[str, Any]]) -> Tensor | None:
    """Return the first parameter that has a gradient."""
    for group in groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                found: Tensor = parameter
                return found
    return None


class LastGradient:
    """One gradient of those that a step left behind, to tell them from others later.

    It is known by its parameter, which may have left the groups since. Of all gradients it is the
    smallest: being known keeps its memory. (A weak reference would forbid torch to swap it.)
    """

    def __init__(self) -> None:
        self._known: tuple[Tensor, Tensor, int] | None = None

    def remember(self, groups: Iterable[dict[str, Any]]) -> None:
        """Take what is at hand for known."""
        parameter = None
        if self._known is not None and not self.is_there():
            parameter = self._known[0]
        if parameter is None or parameter.grad is None:
            found = [p for group in groups for p in group["params"] if p.grad is not None]
            parameter = min(found, key=Tensor.numel, default=None)
        gradient = None if parameter is None else parameter.grad
        if parameter is None or gradient is None:
            self._known = None
        else:
            self._known = parameter, gradient, version_of(gradient)

    def is_there(self) -> bool:
        """Return whether the known gradient is where it was; others may have been added to it."""
        return self._known is not None and self._known[0].grad is self._known[1]

    def others_came(self, groups: Iterable[dict[str, Any]]) -> bool:
        """Return whether gradients came in the place of the known one, or were added to it."""
        if self._known is None:
            return first_with_gradient(groups) is not None
        parameter, gradient, version = self._known
        if parameter.grad is None:
            return False
        return parameter.grad is not gradient or version_of(gradient) != version
