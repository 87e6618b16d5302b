"""Gradients that came before a step and would be thrown away."""

import weakref
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

    It is known by its parameter, which may have left the groups since.
    """

    def __init__(self) -> None:
        self._known: tuple[weakref.ref[Tensor], weakref.ref[Tensor], int] | None = None

    def remember(self, groups: Iterable[dict[str, Any]]) -> None:
        """Take what is at hand for known."""
        parameter = first_with_gradient(groups)
        self._known = None
        if parameter is not None and parameter.grad is not None:
            gradient = parameter.grad
            self._known = weakref.ref(parameter), weakref.ref(gradient), version_of(gradient)

    def is_there(self) -> bool:
        """Return whether the known gradient is where it was; others may have been added to it."""
        if self._known is None:
            return False
        parameter, gradient = self._known[0](), self._known[1]()
        return parameter is not None and gradient is not None and parameter.grad is gradient

    def others_came(self, groups: Iterable[dict[str, Any]]) -> bool:
        """Return whether gradients came in the place of the known one, or were added to it."""
        if self._known is None:
            return first_with_gradient(groups) is not None
        parameter, version = self._known[0](), self._known[2]
        if parameter is None or parameter.grad is None:
            return False
        return not self.is_there() or version_of(parameter.grad) != version
