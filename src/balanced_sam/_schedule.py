"""Schedules of rho."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from balanced_sam._checks import as_plain, check_number, check_rho

RhoLambda = Callable[[int], float]


class LambdaRho(LRScheduler):
    r"""Multiply each group's initial rho by a function of the step, as ``LambdaLR`` does for lr.

    .. math:: \rho_t = \rho_0 \cdot \mathit{rho\_lambda}(t)

    A step whose rho is 0 costs one pass, so that these are all one line:

    - warm-up, which a large rho needs: ``lambda t: min(1, (t + 1) / 500)``
    - late start: ``lambda t: float(t >= 5000)``
    - every third step: ``lambda t: float(t % 3 == 0)``

    It is an ``LRScheduler``, so that trainers accept it beside the learning rate's, but leaves the
    learning rate alone. A group added later starts from the rho it was added with.

    Args:
        optimizer: A :class:`BalancedSAM`, or a trainer's wrapper of one.
        rho_lambda: Function from the number of ``step()`` calls so far, 0 at first, to a
            non-negative factor; or one function a group.

    Attributes:
        base_rhos: The initial rho of each group.

    Raises:
        TypeError: If a function cannot be called or returns no number.
        ValueError: If a group has no ``rho``, the number of functions is not that of the groups, or
            a function returns a negative or infinite factor.

    Example:
        >>> import torch
        >>> from balanced_sam import BalancedSAM, LambdaRho
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = BalancedSAM([w], torch.optim.SGD([w], lr=0.1), rho=0.4)
        >>> schedule = LambdaRho(optimizer, lambda step: min(1.0, (step + 1) / 4))
        >>> optimizer.param_groups[0]["rho"]
        0.1
    """

    def __init__(self, optimizer: Optimizer, rho_lambda: RhoLambda | Sequence[RhoLambda]) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                "Expected `optimizer` to be a torch.optim.Optimizer, but got "
                f"{type(optimizer).__name__}."
            )
        groups = optimizer.param_groups
        if not all("rho" in group for group in groups):
            raise ValueError(
                "Expected `optimizer` to have a `rho` in every parameter group, as BalancedSAM "
                f"has, but got {type(optimizer).__name__}."
            )
        is_one = callable(rho_lambda)
        if not is_one and not (
            isinstance(rho_lambda, Sequence) and all(callable(f) for f in rho_lambda)
        ):
            raise TypeError(
                "Expected `rho_lambda` to be a function or a sequence of one function a group, but "
                f"got {rho_lambda!r}."
            )
        rho_lambdas = [rho_lambda] if callable(rho_lambda) else list(rho_lambda)
        if not is_one and len(rho_lambdas) != len(groups):
            raise ValueError(
                f"Expected `rho_lambda` to hold one function a group, {len(groups)}, but got "
                f"{len(rho_lambdas)}."
            )
        self.rho_lambdas = rho_lambdas
        self.base_rhos: list[float] = [check_rho(group["rho"]) for group in groups]
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Set every group's rho for this step; return the learning rates as they are."""
        groups = self.optimizer.param_groups
        added = [check_rho(group["rho"]) for group in groups[len(self.base_rhos) :]]
        self.base_rhos = self.base_rhos + added
        self._set_rho()
        return [group["lr"] for group in groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the step and the initial rhos; the functions themselves are not saved."""
        state = super().state_dict()
        del state["rho_lambdas"]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume: restore the step and the initial rhos, and set every group's rho by them.

        Args:
            state_dict: What :meth:`state_dict` returned.

        Raises:
            ValueError: If it is something else.
        """
        if not isinstance(state_dict, dict) or "base_rhos" not in state_dict:
            raise ValueError(
                "Expected `state_dict` to be what `state_dict()` of a LambdaRho returned, but got "
                f"{state_dict!r}."
            )
        super().load_state_dict(state_dict)
        self._set_rho()

    def _set_rho(self) -> None:
        """Give every group whose initial rho is known the rho of the present step."""
        groups = self.optimizer.param_groups
        for i, (group, base_rho) in enumerate(zip(groups, self.base_rhos, strict=False)):
            # A single function, and the last of several, also serves the groups added later.
            factor = self.rho_lambdas[min(i, len(self.rho_lambdas) - 1)](self.last_epoch)
            number = _check_factor(factor)
            if not (number >= 0 and base_rho * number < math.inf):
                raise ValueError(
                    "Expected `rho_lambda` to return a non-negative, finite factor, but got "
                    f"{factor} at step {self.last_epoch}."
                )
            group["rho"] = base_rho * number


def _check_factor(factor: object) -> float:
    """Return a factor as a float, a condition as 0 or 1; raise if it is no number."""
    factor = as_plain(factor)
    return check_number("rho_lambda(step)", int(factor) if isinstance(factor, bool) else factor)
