"""What may be a base optimizer, and which of its parameters are perturbed."""

import inspect
from collections import OrderedDict
from collections.abc import Iterable
from operator import is_
from types import MethodType
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from balanced_sam._checks import check_rho
from balanced_sam._guards import HOOKS

Groups = list[dict[str, Any]]


def check_base(base: object, rho: float) -> None:
    """Raise if ``base`` cannot descend for us; leave it as it is."""
    if not isinstance(base, Optimizer):
        raise TypeError(
            "Expected `base_optimizer` to be, or to return, a torch.optim.Optimizer, but got "
            f"{type(base).__name__}."
        )
    missing = [name for name in ("param_groups", "state") if not hasattr(base, name)]
    if missing:
        raise TypeError(
            f"Expected `base_optimizer` to have `param_groups` and `state`, but {_name(base)} has "
            f"no `{missing[0]}`."
        )
    defaults = getattr(base, "defaults", {})
    if "rho" in defaults:
        raise ValueError(
            f"Expected `base_optimizer` to have no option `rho` yet, but got {_name(base)} with "
            f"rho={defaults['rho']}: there it means something else, or a BalancedSAM holds this "
            "optimizer already."
        )
    closure = inspect.signature(base.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"Expected `base_optimizer` to step without a closure, but {_name(base)}.step requires "
            "one."
        )
    for group in base.param_groups:
        check_rho(group.get("rho", rho))


def complete(base: Optimizer) -> None:
    """Give the base what ``Optimizer.__init__`` makes, where a wrapper never called it."""
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


def left_out(params: Iterable[Any], base: Optimizer) -> list[Tensor]:
    """Return the tensors that the base trains and ``params``, a flat iterable, leaves out."""
    tensors = [p[1] if isinstance(p, tuple) and len(p) == 2 else p for p in params]
    for tensor in tensors:
        if isinstance(tensor, dict):
            raise ValueError(
                "Expected `params` to be a flat iterable of tensors beside a built base optimizer, "
                "but got a group dict: options such as `rho` belong in the base's own groups, or "
                "pass the optimizer's class in the base's place."
            )
        if not isinstance(tensor, Tensor):
            raise TypeError(f"Expected `params` to hold tensors, but got {type(tensor).__name__}.")
    given = {id(tensor) for tensor in tensors}
    trained = {id(p) for group in base.param_groups for p in group["params"]}
    missing = [t for t in tensors if t.requires_grad and id(t) not in trained]
    if missing:
        shapes = ", ".join(str(tuple(t.shape)) for t in missing[:5])
        raise ValueError(
            "Expected every trainable tensor in `params` to be one that the base optimizer trains, "
            f"but got {len(missing)} that it does not, of shapes {shapes}"
            f"{', ...' if len(missing) > 5 else ''}."
        )
    if not given & trained:
        raise ValueError(
            "Expected `params` to hold tensors that the base optimizer trains, but got "
            f"{len(tensors)} others."
        )
    return [p for group in base.param_groups for p in group["params"] if id(p) not in given]


class LeftOut:
    """The tensors that are never perturbed, wherever the base's groups are edited to have them.

    One that comes later is perturbed, unless it stands where one stood that is gone: so does the
    shard that a trainer puts in a parameter's place.

    Args:
        tensors: The tensors that are left out.
        groups: The base optimizer's groups.
    """

    def __init__(self, tensors: list[Tensor], groups: Groups) -> None:
        # Strong references: a weak one would forbid torch to swap what a parameter holds.
        self._out = tensors
        self._remember(groups)

    def tensors(self, groups: Groups) -> list[Tensor]:
        """Return those that are left out, after what has happened to the groups."""
        if not self._is_current(groups):
            self._follow(groups)
            self._remember(groups)
        return self._out

    def _remember(self, groups: Groups) -> None:
        """Remember who stands where."""
        self._places = [(group, list(group["params"])) for group in groups]

    def _is_current(self, groups: Groups) -> bool:
        """Return whether all stand where they stood."""
        return len(groups) == len(self._places) and all(
            group is known
            and len(group["params"]) == len(row)
            and all(map(is_, group["params"], row))
            for group, (known, row) in zip(groups, self._places, strict=True)
        )

    def _follow(self, groups: Groups) -> None:
        """Leave out what has come in the place of what was left out, and forget that."""
        present = {id(p) for group in groups for p in group["params"]}
        known = {id(p) for _, row in self._places for p in row}
        replaced = {
            id(old): new
            for group, row in self._places
            for new, old in zip(group["params"], row, strict=False)
            if id(old) not in present and id(new) not in known
        }
        self._out = [replaced.get(id(tensor), tensor) for tensor in self._out]


def _name(base: Optimizer) -> str:
    """Return the name of the base's class."""
    return type(base).__name__
