"""Schedules of rho."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from balanced_sam._checks import check_callable, check_rho, check_type


class LambdaRho(LambdaLR):
    r"""Multiply each group's initial rho by a function of the step, as ``LambdaLR`` does for lr.

    .. math:: \rho_t = \rho_0 \cdot \mathit{rho\_lambda}(t)

    A step whose rho is 0 costs one pass. Each of these schedules takes one line:

    - warm-up, for a large rho: ``lambda t: min(1, (t + 1) / 500)``
    - late start: ``lambda t: float(t >= 5000)``
    - every third step: ``lambda t: float(t % 3 == 0)``

    It is a ``LambdaLR``, so trainers accept it beside a schedule of the learning rate. It leaves
    the learning rate alone, but notes the present one as ``initial_lr``, from which later schedules
    of the learning rate start. Each group keeps its initial rho as ``initial_rho``. The checkpoint
    of the optimizer contains it, and every later schedule starts from it. A group added later
    starts from the rho it was added with.

    Args:
        optimizer: A :class:`BalancedSAM`, or a trainer's wrapper of one.
        rho_lambda: Function from the number of ``step()`` calls so far, 0 at first, to a
            non-negative factor; or one function per group.
        last_epoch: The index of the last step, to continue a run; -1 for a new run.

    Raises:
        TypeError: If a function cannot be called or returns no number.
        ValueError: If a group has no ``rho``, the number of functions differs from the number of
            groups, or a function returns a negative or infinite factor.

    Example:
        >>> import torch
        >>> from balanced_sam import BalancedSAM, LambdaRho
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = BalancedSAM([w], torch.optim.SGD([w], lr=0.1), rho=0.05)
        >>> schedule = LambdaRho(optimizer, lambda step: min(1.0, (step + 1) / 4))
        >>> optimizer.param_groups[0]["rho"]
        0.0125
    """

    def __init__(
        self,
        optimizer: Optimizer,
        rho_lambda: Callable[[int], float] | list[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        check_type("optimizer", optimizer, Optimizer)
        if not all("rho" in group for group in optimizer.param_groups):
            raise ValueError(
                "Expected `optimizer` to have a `rho` in every parameter group, as BalancedSAM "
                f"has, but got {type(optimizer).__name__}."
            )
        for function in rho_lambda if isinstance(rho_lambda, list | tuple) else [rho_lambda]:
            check_callable("rho_lambda", function)
        for group in optimizer.param_groups:
            # What torch needs to continue a run; no learning rate is changed here. One in a tensor
            # is changed in place.
            lr = group["lr"]
            group.setdefault("initial_lr", lr.clone() if isinstance(lr, Tensor) else lr)
        super().__init__(optimizer, rho_lambda, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Set every group's rho for this step; return the learning rates as they are."""
        groups = self.optimizer.param_groups
        for i, group in enumerate(groups):
            rho = group.setdefault("rho", self.optimizer.defaults["rho"])
            group.setdefault("initial_rho", check_rho(rho))
            # The last function also serves the groups added later.
            factor = float(self.lr_lambdas[min(i, len(self.lr_lambdas) - 1)](self.last_epoch))
            if not 0 <= factor < math.inf:
                raise ValueError(
                    "Expected `rho_lambda` to return a non-negative, finite factor, but got "
                    f"{factor} at step {self.last_epoch}."
                )
            group["rho"] = group["initial_rho"] * factor
        return [group["lr"] for group in groups]

    @property
    def base_rhos(self) -> list[float]:
        """The initial rho of each group that the schedule knows so far."""
        groups = self.optimizer.param_groups
        return [group["initial_rho"] for group in groups if "initial_rho" in group]

    def state_dict(self) -> dict[str, Any]:
        """Return the step, the rhos, initial and present, and the state of callable objects."""
        groups = self.optimizer.param_groups
        rhos = [group["rho"] for group in groups if "initial_rho" in group]
        return super().state_dict() | {"base_rhos": self.base_rhos, "rhos": rhos}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume: restore the step and each group's rho, initial and present.

        Args:
            state_dict: What :meth:`state_dict` returned.

        Raises:
            ValueError: If it is something else.
        """
        state = dict(state_dict)
        if not {"base_rhos", "rhos"} <= state.keys():
            raise ValueError(
                "Expected `state_dict` to be what `state_dict()` of a LambdaRho returned, but got "
                f"one with {', '.join(state)}."
            )
        rhos = zip(state.pop("base_rhos"), state.pop("rhos"), strict=True)
        super().load_state_dict(state)
        # Not from the function: in a chain of schedules that of another may be the active one.
        for group, (initial, present) in zip(self.optimizer.param_groups, rhos, strict=False):
            group["initial_rho"], group["rho"] = initial, present
