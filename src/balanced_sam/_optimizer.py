"""BalancedSAM: ascend within rho, descend with the base optimizer."""

import inspect
import sys
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from balanced_sam._checks import check_callable, check_rho, check_type
from balanced_sam._perturbation import HALF_PRECISION, Perturbation, Room

Loss = Tensor | float
Closure = Callable[[], Loss]
ContextFactory = Callable[[], AbstractContextManager[Any]]

_HOOKS = tuple(
    f"_optimizer_{event}_{time}_hooks"
    for event in ("step", "state_dict", "load_state_dict")
    for time in ("pre", "post")
)


@dataclass
class _Cycle:
    """Where the optimizer is between two base steps.

    One mutable object, never replaced: wrappers such as Lightning's forward what is read from the
    optimizer but not what is assigned to it.
    """

    is_perturbed: bool = False
    awaits_step: bool = False
    losses: tuple[Loss, Loss] | None = None
    known_gradient: tuple[weakref.ref[Tensor], int] | None = None
    clearings: int = 0
    can_spare: bool = True
    warned: frozenset[str] = frozenset()


class BalancedSAM(Optimizer):
    r"""Balanced Sharpness-Aware Minimization: SAM on a loss balanced over the target range.

    .. math::

        L(w) &= \frac{1}{N} \sum_i q(y_i) \, \ell_i(w) \\
        \hat\epsilon &= \rho \, \nabla L(w) \, / \, \lVert \nabla L(w) \rVert_2 \\
        w &\leftarrow \text{base\_optimizer}\bigl(w, \nabla L(w + \hat\epsilon)\bigr)

    The closure is torch's own: it computes the loss, calls ``backward`` and returns the loss. It is
    called twice a step, at :math:`w` and at :math:`w + \hat\epsilon`, and once where every group's
    ``rho`` is 0. The weights :math:`q` live in the loss, see :func:`weighted_mean`; without them
    this is plain SAM. Gradients are cleared before each call, so gradients computed before ``step``
    do not count: loop over micro-batches inside the closure. The parameters are restored bit for
    bit before the base optimizer moves them, and however a closure ends.

    ``param_groups``, ``state``, ``defaults`` and hooks are the base optimizer's own. Learning-rate
    schedulers, ``state_dict`` and step hooks (which see the descent gradient: the place to clip it)
    work on either. ``rho`` is a group option beside ``lr``. A group whose ``rho`` is 0 is not
    perturbed and stays out of the norm. Outside a process group the first call computes no gradient
    of what is not perturbed: its ``requires_grad`` is False during that call. Where a part of the
    loss depends on nothing else the call is made once more, and all are computed from then on.

    Args:
        params: With a callable ``base_optimizer``, whatever that takes: parameters or group dicts,
            each with its own ``rho`` or not. With a built one, the tensors to perturb, a flat
            iterable; what the base trains beyond these is trained but never perturbed.
        base_optimizer: A ``torch.optim.Optimizer``, or a callable that makes one of ``params``
            (a class, a ``functools.partial``).
        rho: Radius of the perturbation, L2 norm in parameter space; the default of all groups.
        ascent_context: Factory of a context manager around the first call, such as
            ``model.no_sync`` for a perturbation per rank (m-sharpness). Not entered where the step
            has one pass.
        descent_context: Factory of a context manager around the second call, such as
            ``partial(frozen_running_stats, model)``. Not entered where the step has one pass.

    Raises:
        TypeError: If ``base_optimizer`` is neither, needs a closure itself, or ``params`` holds
            something else than tensors.
        ValueError: If ``rho``, here or in a group, is negative or not finite; if the base has an
            option ``rho`` of its own; or if ``params`` is empty, or holds trainable tensors that
            the base does not train, or group dicts beside a built base.

    References:
        Liu et al. (2025), `Balanced Sharpness-Aware Minimization for Imbalanced Regression
        <https://arxiv.org/abs/2508.16973>`_; Foret et al. (2021), `Sharpness-Aware Minimization
        for Efficiently Improving Generalization <https://arxiv.org/abs/2010.01412>`_.

    Example:
        >>> import torch
        >>> from balanced_sam import BalancedSAM
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = BalancedSAM([w], torch.optim.SGD([w], lr=0.1), rho=0.5)
        >>> def closure():
        ...     loss = w.square().sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure), w.data  # the gradient at w + eps is 1.1 w
        (tensor(12.5000), tensor([2.6700, 3.5600]))
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: Optimizer | Callable[..., Optimizer],
        *,
        rho: float = 0.05,
        ascent_context: ContextFactory = nullcontext,
        descent_context: ContextFactory = nullcontext,
    ) -> None:
        rho = check_rho(rho)
        check_callable("ascent_context", ascent_context)
        check_callable("descent_context", descent_context)
        if isinstance(params, Tensor) or not _is_iterable(params):
            raise TypeError(
                "Expected `params` to be an iterable of tensors or group dicts, but got "
                f"{type(params).__name__}."
            )
        is_built = isinstance(base_optimizer, Optimizer)
        if not is_built and not callable(base_optimizer):
            raise TypeError(
                "Expected `base_optimizer` to be a torch.optim.Optimizer or a callable that makes "
                f"one of `params`, but got {type(base_optimizer).__name__}."
            )
        base = base_optimizer if isinstance(base_optimizer, Optimizer) else base_optimizer(params)
        _check_base(base)
        self._ascent_context = ascent_context
        self._descent_context = descent_context
        # Positions, not tensors: they survive pickling, deepcopy, and a trainer that puts sharded
        # parameters in the place of the ones given here.
        self._unperturbed = _positions_left_out(params, base) if is_built else frozenset()
        for group in base.param_groups:
            check_rho(group.get("rho", rho))
        # As one of its defaults the base itself gives every group, also later ones, its rho.
        base.defaults["rho"] = rho
        for group in base.param_groups:
            group.setdefault("rho", rho)
        self._adopt(base)

    def _adopt(self, base_optimizer: Optimizer) -> None:
        """Share the base optimizer's hooks: registered on either, they fire once, in its calls."""
        self.base_optimizer = base_optimizer
        self._cycle = _Cycle()
        self._room = Room()
        self._remember_gradient()
        for name in _HOOKS:
            setattr(self, name, getattr(base_optimizer, name))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's parameter groups, ``rho`` beside ``lr``."""
        return self.base_optimizer.param_groups

    @param_groups.setter
    def param_groups(self, param_groups: list[dict[str, Any]]) -> None:
        self.base_optimizer.param_groups = param_groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The base optimizer's state; nothing of the perturbation is in it."""
        return self.base_optimizer.state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        self.base_optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The base optimizer's defaults and ``rho``."""
        return self.base_optimizer.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.base_optimizer.defaults = defaults

    @property
    def is_perturbed(self) -> bool:
        """Whether the parameters are at w + eps right now (inside the second call)."""
        return self._cycle.is_perturbed

    @property
    def sharpness(self) -> Tensor | None:
        """Loss of the last ``step``'s second call minus that of its first, without host sync.

        A detached 0-dim tensor, in loss units: 0 after a step of one pass, NaN after a step whose
        second pass was skipped for an overflow, None before the first ``step(closure)``.
        """
        if self._cycle.losses is None:
            return None
        first, second = map(_as_scalar, self._cycle.losses)
        return second - first

    # Dynamo cannot trace the contexts of a step; what is compiled inside it stays compiled.
    @_disable_dynamo
    @torch.enable_grad()
    def step(  # type: ignore[override]  # more options, all keyword-only
        self,
        closure: Closure | None = None,
        *,
        ascent_closure: Closure | None = None,
        scaler: GradScaler | None = None,
    ) -> Loss | None:
        """Take one step: ascend along the gradient at w, descend from w along that at w + eps.

        Without a closure it ends a manual cycle, see :meth:`perturbed`; a call outside such a cycle
        is an error unless every ``lr`` is 0 (checkpointing libraries set up the state that way).

        Args:
            closure: Computes the loss, calls ``backward`` and returns the loss.
            ascent_closure: Another closure for the first call of a step of two passes, such as a
                loss with other weights or on a part of the batch.
            scaler: The ``GradScaler`` that scales the loss in the closure. The step then ends in
                ``scaler.step``; calling ``scaler.update()`` afterwards is left to the caller. If
                the first gradient overflowed the second pass is skipped, unless there is an
                ``ascent_context``, under which other processes may need it.

        Returns:
            The loss of the first call, detached, at w; None without a closure.

        Raises:
            TypeError: If a closure returns no loss.
            ValueError: If no parameter has a gradient after a closure.
            RuntimeError: If there is no closure and no manual cycle to end, or a closure where one
                is to end, or the parameters are perturbed already.
        """
        if closure is not None:
            check_callable("closure", closure)
        if ascent_closure is not None:
            check_callable("ascent_closure", ascent_closure)
        if scaler is not None:
            check_type("scaler", scaler, GradScaler)
        if closure is None or self._cycle.awaits_step:
            self._end_manual_cycle(closure, scaler)
            return None
        self._check_start()
        has_other_gradient, clearings = self._has_other_gradient(), self._cycle.clearings
        try:
            loss = self._evaluate_twice(closure, ascent_closure, scaler)
            if scaler is not None:
                # A fused base would unscale only after the step hooks, which may clip.
                scaler.unscale_(self.base_optimizer)
            self._descend(scaler)
        finally:
            self._remember_gradient()
        # A closure that clears the gradients itself expects none from before to count.
        if has_other_gradient and self._cycle.clearings == clearings:
            self._warn_once(
                "BalancedSAM.step(closure) clears the gradients that were computed before it. To "
                "accumulate over micro-batches, loop over them inside the closure."
            )
        return loss

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Hold the parameters at w + eps, with eps from the gradients at hand.

        For loops that call ``backward`` themselves::

            loss(model).backward()
            with optimizer.perturbed():
                loss(model).backward()
            optimizer.step()

        On entry the gradients are used up and cleared. Afterwards, also after an exception, the
        parameters are restored bit for bit. :meth:`step` without a closure then ends the cycle;
        with one it is an error. A step of the base optimizer inside the block would be undone.

        Yields:
            Nothing.

        Raises:
            RuntimeError: If the parameters are perturbed already.
            ValueError: If no parameter has a gradient.
        """
        self._check_start()
        self._check_gradients()
        perturbation = self._perturbation()
        try:
            self._apply(perturbation)
            self._clear_gradients()
            yield
        finally:
            self._restore(perturbation)
        self._cycle.awaits_step = True

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters of the base optimizer.

        Args:
            set_to_none: Set the gradients to None rather than to zeros.
        """
        self.base_optimizer.zero_grad(set_to_none=set_to_none)
        self._cycle.clearings += 1
        self._remember_gradient()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; it is perturbed with its own or the default ``rho``.

        Args:
            param_group: ``params`` and the options of the group.

        Raises:
            ValueError: If its ``rho`` is negative or not finite.
        """
        if isinstance(param_group, dict) and "rho" in param_group:
            check_rho(param_group["rho"])
        self.base_optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's ``state_dict``, which has each group's ``rho``."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this optimizer or of its bare base.

        Args:
            state_dict: What ``state_dict()`` returned; groups without ``rho`` keep the present one.
        """
        rhos = self._rhos()
        self.base_optimizer.load_state_dict(state_dict)
        for group, rho in zip(self.param_groups, rhos, strict=True):
            group.setdefault("rho", rho)

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and deepcopy keep: all but hooks and the present cycle."""
        names = ("base_optimizer", "_unperturbed", "_ascent_context", "_descent_context")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`__getstate__` returned."""
        self.__dict__.update(state)
        self._adopt(state["base_optimizer"])

    def _evaluate_twice(
        self, closure: Closure, ascent_closure: Closure | None, scaler: GradScaler | None
    ) -> Loss:
        """Return the loss at w, with the gradients at w + eps in place; once where rho is 0."""
        if not any(self._rhos()):
            loss = self._evaluate(closure, nullcontext)
            zero = torch.zeros_like(_as_scalar(loss))
            self._cycle.losses = zero, zero
            return loss
        if ascent_closure is None:
            ascent_closure = closure
        loss = self._evaluate_ascent(ascent_closure)
        perturbation = self._perturbation()
        if scaler is not None and self._overflowed(perturbation, scaler):
            # The scaler finds the broken gradients and backs off. A forward pass would only carry
            # the overflow into the batch-norm statistics.
            self._cycle.losses = loss, torch.nan
            return loss
        try:
            self._apply(perturbation)
            self._cycle.losses = loss, self._evaluate(closure, self._descent_context)
        finally:
            self._restore(perturbation)
        return loss

    def _evaluate(self, closure: Closure, context: ContextFactory) -> Loss:
        """Call the closure on cleared gradients; return its loss, detached."""
        self._clear_gradients()
        loss: Loss | None = None  # what is left where the context swallows an exception
        with context():
            loss = closure()
        loss = _check_loss(loss)
        self._check_gradients()
        # A copy: a captured graph writes the next loss over this one.
        return loss.detach().clone() if isinstance(loss, Tensor) else loss

    def _evaluate_ascent(self, closure: Closure) -> Loss:
        """Return the loss at w; gradients that the perturbation does not need are not computed."""
        spared = self._spared()
        try:
            for parameter in spared:
                parameter.requires_grad = False
            return self._evaluate(closure, self._ascent_context)
        except RuntimeError as error:
            if not spared or "does not require grad" not in str(error):
                raise
            # A loss, or a part of it, depends on nothing that is perturbed.
            self._cycle.can_spare = False
        finally:
            for parameter in spared:
                parameter.requires_grad = True
        return self._evaluate(closure, self._ascent_context)

    def _spared(self) -> list[Tensor]:
        """Return the parameters whose gradients the first call can do without."""
        is_whole = not self._unperturbed and all(self._rhos())
        # In a process group DDP may wait for the gradient of every parameter.
        in_group = torch.distributed.is_available() and torch.distributed.is_initialized()
        if is_whole or in_group or not self._cycle.can_spare:
            return []
        needed = {id(parameter) for parameter, _ in self._parameters_and_rhos()}
        parameters = (p for group in self.param_groups for p in group["params"])
        return [p for p in parameters if p.requires_grad and id(p) not in needed]

    def _has_other_gradient(self) -> bool:
        """Return whether a gradient is at hand that is not from the last step."""
        gradient, known = self._first_gradient(), self._cycle.known_gradient
        if gradient is None or known is None:
            return gradient is not None
        reference, version = known
        return reference() is not gradient or gradient._version != version

    def _remember_gradient(self) -> None:
        """Remember the first gradient at hand, to tell later whether others have come."""
        gradient = self._first_gradient()
        known = None if gradient is None else (weakref.ref(gradient), gradient._version)
        self._cycle.known_gradient = known

    def _overflowed(self, perturbation: Perturbation, scaler: GradScaler) -> bool:
        """Return whether the gradients at hand have overflowed, on this and every other process."""
        # With a context such as `model.no_sync` each process has a gradient of its own. One that
        # skipped the second pass would let the others wait for ever, so none does: where it
        # overflowed the weights stay, and its second gradient tells the others.
        is_own = self._ascent_context is not nullcontext
        return scaler.is_enabled() and not is_own and not torch.isfinite(perturbation.norm)

    def _descend(self, scaler: GradScaler | None) -> None:
        """Let the base optimizer, or the scaler for it, use the gradients at hand."""
        if scaler is None:
            self.base_optimizer.step()
        else:
            scaler.step(self.base_optimizer)

    def _end_manual_cycle(self, closure: Closure | None, scaler: GradScaler | None) -> None:
        """Take the base step after :meth:`perturbed`; raise if that did not come before."""
        if self.is_perturbed:
            raise RuntimeError("Expected `step` after the `perturbed()` block, but got it inside.")
        had_perturbed_block, self._cycle.awaits_step = self._cycle.awaits_step, False
        # Lightning hands a closure that returns None to a step called without one.
        if closure is not None and closure() is not None:
            raise RuntimeError(
                "Expected `step()` without a closure after a `perturbed()` block, but got one."
            )
        if not had_perturbed_block and any(g.get("lr", 1) != 0 for g in self.param_groups):
            raise RuntimeError(
                "Expected `step(closure)`, or `step()` after a `with optimizer.perturbed():` "
                "block, but got `step()` alone: BalancedSAM evaluates the loss twice a step. Pass "
                "a closure that computes the loss, calls backward and returns the loss."
            )
        self._descend(scaler)
        self._remember_gradient()

    def _perturbation(self) -> Perturbation:
        """Return the perturbation that the gradients at hand define."""
        perturbation = Perturbation(self._parameters_and_rhos(), self._room)
        if perturbation.has_half_precision:
            self._warn_once(
                "BalancedSAM perturbs weights stored in 16 bits: most coordinates round back to "
                "where they were and the perturbation points elsewhere. Keep the weights in "
                "float32 and use autocast."
            )
        return perturbation

    def _apply(self, perturbation: Perturbation) -> None:
        """Move the parameters to w + eps."""
        perturbation.apply()
        self._cycle.is_perturbed = True

    def _restore(self, perturbation: Perturbation) -> None:
        """Put w back bit for bit, however far :meth:`_apply` came."""
        self._cycle.is_perturbed = False
        perturbation.restore()

    def _parameters_and_rhos(self) -> Iterator[tuple[Tensor, float]]:
        """Yield every parameter to perturb with its radius."""
        for i, (group, rho) in enumerate(zip(self.param_groups, self._rhos(), strict=True)):
            if not rho:
                continue
            # What is maximized is worst where it is smallest.
            radius = -rho if group.get("maximize") else rho
            for j, parameter in enumerate(group["params"]):
                if (i, j) not in self._unperturbed:
                    yield parameter, radius

    def _rhos(self) -> list[float]:
        """Return the rho of each group; the default where a checkpoint of the bare base cut it."""
        return [
            check_rho(group.setdefault("rho", self.defaults["rho"])) for group in self.param_groups
        ]

    def _clear_gradients(self) -> None:
        """Drop the gradients as ``zero_grad`` does, without its marks for the profiler."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _first_gradient(self) -> Tensor | None:
        """Return the first gradient at hand."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    gradient: Tensor = parameter.grad
                    return gradient
        return None

    def _check_start(self) -> None:
        """Raise if the parameters are perturbed; forget a manual cycle that was not ended."""
        if self.is_perturbed:
            raise RuntimeError(
                "Expected the parameters at w, but got a call inside a `perturbed()` block or a "
                "closure."
            )
        self._cycle.awaits_step = False

    def _check_gradients(self) -> None:
        """Raise if no parameter has a gradient."""
        if self._first_gradient() is None:
            raise ValueError(
                "Expected gradients after the closure, but no parameter has one: the closure must "
                "call `loss.backward()` on a loss of this optimizer's parameters."
            )

    def _warn_once(self, message: str) -> None:
        """Warn the first time this optimizer has something to say."""
        if message not in self._cycle.warned:
            self._cycle.warned |= {message}
            warnings.warn(message, UserWarning, stacklevel=1 + _levels_to_caller())


def _levels_to_caller() -> int:
    """Return how far up the stack the line is that called this class, torch's decorators passed."""
    passed = ("balanced_sam", "torch", "contextlib")
    frame: FrameType | None = sys._getframe(1)
    levels = 0
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in passed:
        frame = frame.f_back
        levels += 1
    return levels


def _is_iterable(values: object) -> bool:
    """Return whether the values can be gone through; an array without dimensions cannot."""
    try:
        iter(values)  # type: ignore[call-overload]  # what is no iterable is caught
    except TypeError:
        return False
    return True


def _check_base(base: object) -> None:
    """Raise if ``base`` cannot descend for us."""
    if not isinstance(base, Optimizer) or isinstance(base, BalancedSAM):
        raise TypeError(
            "Expected `base_optimizer` to be, or to return, a plain torch.optim.Optimizer, but got "
            f"{type(base).__name__}."
        )
    if "rho" in base.defaults:
        raise ValueError(
            "Expected `base_optimizer` to have no option `rho` yet, but got "
            f"{type(base).__name__} with rho={base.defaults['rho']}: there it means something "
            "else, or a BalancedSAM holds this optimizer already."
        )
    closure = inspect.signature(base.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            "Expected `base_optimizer` to step without a closure, but "
            f"{type(base).__name__}.step requires one."
        )


def _positions_left_out(params: Iterable[Any], base: Optimizer) -> frozenset[tuple[int, int]]:
    """Return the (group, index) of each tensor that the base trains and ``params`` leaves out."""
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
    if not tensors:
        raise ValueError("Expected `params` to hold at least one tensor, but got none.")
    trained = {id(p) for group in base.param_groups for p in group["params"]}
    missing = [t for t in tensors if t.requires_grad and id(t) not in trained]
    if missing:
        shapes = ", ".join(str(tuple(t.shape)) for t in missing[:5])
        raise ValueError(
            "Expected every trainable tensor in `params` to be one that the base optimizer trains, "
            f"but got {len(missing)} that it does not, of shapes {shapes}"
            f"{', ...' if len(missing) > 5 else ''}."
        )
    given = {id(t) for t in tensors}
    if not given & trained:
        raise ValueError(
            "Expected `params` to hold tensors that the base optimizer trains, but got "
            f"{len(tensors)} frozen ones that it does not."
        )
    return frozenset(
        (i, j)
        for i, group in enumerate(base.param_groups)
        for j, p in enumerate(group["params"])
        if id(p) not in given
    )


def _check_loss(loss: Loss | None) -> Loss:
    """Return ``loss``; raise if it is not one number."""
    if isinstance(loss, (int, float)) and not isinstance(loss, bool):
        return loss
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss
    came = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    raise TypeError(
        "Expected a closure that computes the loss, calls backward and returns the loss, one "
        f"number, but it returned {came}."
    )


def _as_scalar(loss: Loss) -> Tensor:
    """Return the loss as a 0-dim tensor, wide enough for small differences."""
    scalar = torch.as_tensor(loss).reshape(())
    return scalar.float() if scalar.dtype in HALF_PRECISION else scalar
