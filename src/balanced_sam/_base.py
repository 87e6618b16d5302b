"""What may be a base optimizer, and which of its parameters are perturbed."""

import inspect
from collections import OrderedDict
from collections.abc import Iterable
from types import MethodType
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from balanced_sam._checks import check_rho
from balanced_sam._guards import HOOKS

Groups = list[dict[str, Any]]


def check_base(base: object, rho: float) -> None:
    """Raise if ``base`` cannot be the base optimizer; do not change it."""
    name = type(base).__name__
    if not (
        isinstance(base, Optimizer) and hasattr(base, "param_groups") and hasattr(base, "state")
    ):
        raise TypeError(
            "Expected `base_optimizer` to be a torch.optim.Optimizer with `param_groups` and "
            f"`state`, or a callable that makes one of `params`, but got {name}."
        )
    if "rho" in getattr(base, "defaults", {}):
        raise ValueError(
            f"Expected `base_optimizer` to have no option `rho` yet, but got {name} with "
            f"rho={base.defaults['rho']}: either its `rho` means something else, or a "
            "BalancedSAM already holds this optimizer."
        )
    closure = inspect.signature(base.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"Expected `base_optimizer` to step without a closure, but {name}.step requires one."
        )
    for group in base.param_groups:
        check_rho(group.get("rho", rho))


def complete(base: Optimizer) -> None:
    """Add what ``Optimizer.__init__`` sets to the base, if a wrapper never called it."""
    if not hasattr(base, "defaults"):
        base.defaults = {}
    for name in HOOKS:
        hooks = getattr(base, name, None)
        # Torch's handles of hooks want a dictionary that can be referred to weakly.
        if not isinstance(hooks, OrderedDict):
            setattr(base, name, OrderedDict(hooks or {}))
    step = type(base).step
    if not getattr(step, "hooked", False):
        # Of this object alone: other objects of the class do without hooks.
        base.step = MethodType(Optimizer.profile_hook_step(step), base)  # type: ignore[method-assign]


class LeftOut:
    """The tensors that a built base trains but that are never perturbed: those not in ``params``.

    A tensor that is added to the groups later is perturbed, unless it replaces a tensor that is
    left out, as the shard of a trainer replaces a parameter.
    """

    def __init__(self, out: list[Tensor], groups: Groups) -> None:
        # Strong references: a weak one would forbid torch to swap what a parameter holds.
        self._out = out
        self._rows = [list(group["params"]) for group in groups]

    @classmethod
    def of(cls, params: Iterable[Any], base: Optimizer) -> "LeftOut":
        """Return what the base trains and ``params``, a flat iterable, leaves out."""
        if isinstance(params, Tensor):
            raise TypeError("Expected `params` to be an iterable of tensors, but got a tensor.")
        tensors = [p[1] if isinstance(p, tuple) and len(p) == 2 else p for p in params]
        for tensor in tensors:
            if isinstance(tensor, dict):
                raise ValueError(
                    "Expected `params` to be a flat iterable of tensors beside a built base, but "
                    "got a group dict: options such as `rho` belong in the base's own groups."
                )
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    f"Expected `params` to hold tensors, but got {type(tensor).__name__}."
                )
        given = {id(tensor) for tensor in tensors}
        trained = {id(p): p for group in base.param_groups for p in group["params"]}
        others = [t for t in tensors if t.requires_grad and id(t) not in trained]
        if others or not given & trained.keys():
            others = others or tensors
            shapes = ", ".join(str(tuple(t.shape)) for t in others[:5])
            came = (
                f"{len(others)} it does not, of shapes {shapes}"
                if others
                else "none at all (a generator can be read once: call `model.parameters()` again)"
            )
            raise ValueError(
                f"Expected `params` to hold tensors that the base optimizer trains, but got {came}."
            )
        return cls([p for i, p in trained.items() if i not in given], base.param_groups)

    def tensors(self, groups: Groups) -> list[Tensor]:
        """Return the tensors that are left out, updated for changes to the groups."""
        if not self._out:
            return []
        rows = [list(group["params"]) for group in groups]
        if [[*map(id, row)] for row in rows] == [[*map(id, row)] for row in self._rows]:
            return self._out
        present = {id(p) for row in rows for p in row}
        known = {id(p) for row in self._rows for p in row}
        replaced = {
            id(old): new
            for row, old_row in zip(rows, self._rows, strict=False)
            for new, old in zip(row, old_row, strict=False)
            if id(old) not in present and id(new) not in known and new.shape == old.shape
        }
        self._out = [replaced.get(id(tensor), tensor) for tensor in self._out]
        self._rows = rows
        return self._out
