"""BalancedSAM: ascend within rho, descend with the base optimizer."""

import numbers
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from operator import attrgetter
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from balanced_sam import _guards
from balanced_sam._base import LeftOut, check_base, complete
from balanced_sam._checks import check_callable, check_rho, check_type
from balanced_sam._guards import HOOKS, not_traced
from balanced_sam._lost_gradients import LastGradient, last_with_gradient
from balanced_sam._perturbation import HALF_PRECISION, Buckets, Perturbation

Loss = Tensor | float
Closure = Callable[[], Loss | None]
ContextFactory = Callable[[], AbstractContextManager[Any]]


class _Phase(Enum):
    """How far a cycle of two passes and a base step has come; outside of one there is none."""

    AT_W = "at w"
    PERTURBED = "perturbed"
    STEP_DUE = "a step is due"


@dataclass
class _Cycle:
    """Where the optimizer is between two base steps.

    One mutable object, never replaced: wrappers such as Lightning's forward what is read from the
    optimizer but not what is assigned to it.
    """

    phase: _Phase | None = None
    losses: list[Loss] = field(default_factory=list)
    returned: weakref.ref[Tensor] | None = None
    last_gradient: LastGradient = field(default_factory=LastGradient)
    clearings: int = 0
    buckets: Buckets = field(default_factory=Buckets)
    warned: set[str] = field(default_factory=set)

    def check_outside(self, call: str) -> None:
        """Raise if a pass is under way."""
        if self.phase in (_Phase.AT_W, _Phase.PERTURBED):
            raise RuntimeError(
                f"Expected {call} after both passes, but got it inside a closure or a "
                "`perturbed()` block."
            )


def _of_the_base(name: str, doc: str) -> Any:
    """Return a property that is the base optimizer's attribute."""

    def assign(self: Any, value: Any) -> None:
        setattr(self.base_optimizer, name, value)

    return property(attrgetter(f"base_optimizer.{name}"), assign, doc=doc)


class BalancedSAM(Optimizer):
    r"""Balanced Sharpness-Aware Minimization: SAM on a loss balanced over the target range.

    .. math::

        L(w) &= \frac{1}{N} \sum_i q(y_i) \, \ell_i(w) \\
        \hat\epsilon &= \rho \, \nabla L(w) \, / \, \lVert \nabla L(w) \rVert_2 \\
        w &\leftarrow \text{base optimizer}\bigl(w, \nabla L(w + \hat\epsilon)\bigr)

    The closure is as in torch: it computes the loss, calls ``backward`` and returns the loss. It is
    called twice per step, at :math:`w` and at :math:`w + \hat\epsilon`, or once if every group's
    ``rho`` is 0. The weights :math:`q` are part of the loss (see :func:`weighted_mean`); without
    them this is plain SAM. Gradients are cleared before each call, so gradients computed before
    ``step`` do not count: loop over micro-batches inside the closure. The parameters are restored
    bit for bit before the base optimizer moves them. They are also restored if a closure raises an
    exception.

    ``param_groups``, ``state``, ``defaults`` and hooks are the base optimizer's own. Learning-rate
    schedulers, ``state_dict`` and step hooks work on this optimizer and on the base. Step hooks see
    the descent gradient: clip it there. ``rho`` is a group option like ``lr``. A group whose
    ``rho`` is 0 is not perturbed and stays out of the norm.

    Args:
        params: If ``base_optimizer`` is a callable: parameters or group dicts, in the form that it
            accepts. A group dict may have its own ``rho``. If ``base_optimizer`` is built: a flat
            iterable of the tensors to perturb. Other tensors of the base are trained but never
            perturbed.
        base_optimizer: A ``torch.optim.Optimizer``, or a callable that builds one from ``params``,
            such as a class or a ``functools.partial``.
        rho: Radius of the perturbation, L2 norm in parameter space; the default of all groups.
            Start with 0.05; 0 means the base optimizer's own step, with one pass.
        ascent_context: Factory of a context manager around the first call, such as
            ``model.no_sync`` for a perturbation per rank (m-sharpness). Not entered if the step has
            one pass.
        descent_context: Factory of a context manager around the second call, such as
            ``partial(frozen_running_stats, model)``. Not entered if the step has one pass.
        options: Not accepted: pass ``lr`` and the like to the base optimizer.

    Raises:
        TypeError: If ``base_optimizer`` is neither an optimizer nor a callable, or needs a closure
            itself; if ``params`` holds anything but tensors; or if an option of the base is passed
            here.
        ValueError: If ``rho``, here or in a group, is negative or not finite; if the base has an
            option ``rho`` of its own; or if ``params`` is empty, has trainable tensors that the
            base does not train, or has group dicts although the base is already built.

    References:
        Liu et al. (2025), `Balanced Sharpness-Aware Minimization for Imbalanced Regression
        <https://arxiv.org/abs/2508.16973>`_; Foret et al. (2021), `Sharpness-Aware Minimization
        for Efficiently Improving Generalization <https://arxiv.org/abs/2010.01412>`_.

    Example:
        >>> import torch
        >>> from balanced_sam import BalancedSAM
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = BalancedSAM([w], torch.optim.SGD([w], lr=0.1), rho=0.05)
        >>> def closure():
        ...     loss = w.square().sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure), w.data  # the gradient at w + eps is 1.01 w
        (tensor(12.5000), tensor([2.6970, 3.5960]))
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: Optimizer | Callable[..., Optimizer],
        *,
        rho: float = 0.05,
        ascent_context: ContextFactory = nullcontext,
        descent_context: ContextFactory = nullcontext,
        **options: NoReturn,
    ) -> None:
        _check_options(options)
        rho = check_rho(rho)
        _check_context("ascent_context", ascent_context)
        _check_context("descent_context", descent_context)
        is_built = isinstance(base_optimizer, Optimizer) or not callable(base_optimizer)
        base: Any = base_optimizer if is_built else base_optimizer(params)  # type: ignore[operator]
        check_base(base, rho)
        self._left_out = LeftOut.of(params, base) if is_built else LeftOut([], [])
        self._ascent_context = ascent_context
        self._descent_context = descent_context
        self._adopt(base)
        # As one of its defaults the base itself gives every group, also later ones, its rho.
        base.defaults["rho"] = rho
        self._rhos()

    def _adopt(self, base: Optimizer) -> None:
        """Share the base optimizer's hooks: registered on either, they fire once, in its calls."""
        complete(base)
        self.base_optimizer = base
        self._cycle = cycle = _Cycle()
        cycle.last_gradient.remember(base.param_groups)
        base.register_step_pre_hook(lambda *_: cycle.check_outside("the base optimizer's step"))
        # Trainers look for train and eval: schedule-free optimizers evaluate other weights.
        for name in (*HOOKS, "train", "eval"):
            if hasattr(base, name):
                setattr(self, name, getattr(base, name))

    param_groups: list[dict[str, Any]] = _of_the_base(
        "param_groups", "The base optimizer's parameter groups, ``rho`` beside ``lr``."
    )
    state: Any = _of_the_base(
        "state", "The base optimizer's state; nothing of the perturbation is in it."
    )
    defaults: dict[str, Any] = _of_the_base("defaults", "The base's defaults and ``rho``.")

    @property
    def is_perturbed(self) -> bool:
        """Whether the parameters are at w + eps right now (inside the second call)."""
        return self._cycle.phase is _Phase.PERTURBED

    @property
    def sharpness(self) -> Tensor | None:
        """Loss of the second call minus loss of the first, in the last ``step``; no host sync.

        A detached 0-dim tensor, in loss units. It is 0 after a step of one pass, and NaN if an
        overflow made the step skip its second pass. It is None before the first step, and after a
        step that skipped its batch, raised an exception or ended a manual cycle.
        """
        losses = [_as_scalar(loss) for loss in self._cycle.losses]
        if len(losses) == 2:
            return losses[1] - losses[0]
        return torch.zeros_like(losses[0]) if losses else None

    # Dynamo cannot trace the contexts of a step; what is compiled inside it stays compiled.
    @not_traced
    def step(  # type: ignore[override]  # more options, all keyword-only
        self,
        closure: Closure | None = None,
        *,
        ascent_closure: Closure | None = None,
        scaler: GradScaler | None = None,
    ) -> Loss | None:
        """Take one step: ascend along the gradient at w, descend from w along the one at w + eps.

        If a closure leaves no gradient on any parameter, the step does nothing. Without a closure,
        the step ends a manual cycle (see :meth:`perturbed`). Outside such a cycle, a call without a
        closure is an error unless every ``lr`` is 0 (checkpointing libraries set up the state that
        way).

        Args:
            closure: Computes the loss, calls ``backward`` and returns the loss; to skip a batch,
                return None and leave no gradient.
            ascent_closure: Another closure for the first call of a step of two passes, such as a
                loss with other weights or on a part of the batch.
            scaler: The ``GradScaler`` that scales the loss in the closure. The step then ends in
                ``scaler.step``; calling ``scaler.update()`` afterwards is left to the caller. If
                the first gradient has overflowed, the step skips the second pass, unless there is
                an ``ascent_context``: then other processes may need it.

        Returns:
            The loss of the first call, detached, at w; None without a closure.

        Raises:
            TypeError: If a closure returns no loss but leaves gradients.
            RuntimeError: If a closure is missing and there is no manual cycle to end; if a closure
                is given and there is a manual cycle to end; or if the call is made inside a pass.
        """
        _check_arguments(closure, ascent_closure, scaler)
        self._cycle.check_outside("`step`")
        if closure is None or self._cycle.phase is _Phase.STEP_DUE:
            self._end_manual_cycle(closure, scaler)
            return None
        rhos = self._rhos()
        if ascent_closure is None or not any(rhos):
            ascent_closure = closure
        ascent_context = self._ascent_context if any(rhos) else nullcontext
        with self._whole_cycle():
            loss = self._evaluate(ascent_closure, ascent_context)  # g = grad L(w)
            perturbation = self._perturbation(scaler) if any(rhos) else None  # rho * g / ||g||
            if perturbation is not None:
                with self._moved(perturbation):
                    self._evaluate(closure, self._descent_context)  # h = grad L(w + rho g / ||g||)
            self._descend(scaler)  # w <- base_optimizer(w, h)
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
        with one it is an error. Call ``backward`` on all micro-batches before the block, and on all
        of them again inside it. The block enters the ``descent_context``; what an
        ``ascent_context`` would do is for the loop to do. Unscale gradients after the block.

        Yields:
            Nothing.

        Raises:
            RuntimeError: If the call is made inside a pass, or if the gradients of an earlier block
                are still there because no step has used them.
            ValueError: If no parameter has a gradient.

        Example:
            >>> import torch
            >>> from balanced_sam import BalancedSAM
            >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
            >>> optimizer = BalancedSAM([w], torch.optim.SGD([w], lr=0.1), rho=0.5)
            >>> w.norm().backward()
            >>> with optimizer.perturbed():
            ...     w.data
            tensor([3.3000, 4.4000])
        """
        cycle = self._cycle
        cycle.check_outside("`perturbed()`")
        if cycle.phase is _Phase.STEP_DUE and cycle.last_gradient.is_there():
            raise RuntimeError(
                "Expected `step()` after a `perturbed()` block, but got a second block. Call "
                "`backward` on every micro-batch before the block, and again inside it. Call "
                "`zero_grad()` if the step between was skipped."
            )
        if last_with_gradient(self.param_groups) is None:
            raise ValueError(
                "Expected gradients before a `perturbed()` block, but no parameter has one: call "
                "`backward` on a loss of this optimizer's parameters first."
            )
        self._rhos()
        with self._moved(self._along_gradients()), self._descent_context():
            yield
        cycle.last_gradient.remember(self.param_groups)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters of the base optimizer.

        Args:
            set_to_none: Set the gradients to None rather than to zeros.
        """
        self.base_optimizer.zero_grad(set_to_none=set_to_none)
        self._cycle.clearings += 1
        if self._cycle.phase is _Phase.STEP_DUE:
            self._cycle.phase = None
        self._cycle.last_gradient.remember(self.param_groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; it is perturbed with its own or the default ``rho``.

        Args:
            param_group: ``params`` and the options of the group.

        Raises:
            TypeError: If it is no dictionary.
            ValueError: If its ``rho`` is negative or not finite.
        """
        check_type("param_group", param_group, dict)
        check_rho(param_group.get("rho", 0.0))
        self._left_out.tensors(self.param_groups)  # the new group replaces none that was removed
        self.base_optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's ``state_dict``, which has each group's ``rho``."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this optimizer or of its bare base.

        Args:
            state_dict: What ``state_dict()`` returned; groups without ``rho`` keep the present one.
        """
        before = self.param_groups
        self.base_optimizer.load_state_dict(state_dict)
        for group, old in zip(self.param_groups, before, strict=True):
            if "rho" not in group:
                group |= {key: old[key] for key in ("rho", "initial_rho") if key in old}

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and deepcopy keep: all but hooks and the present cycle."""
        names = ("base_optimizer", "_left_out", "_ascent_context", "_descent_context")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`__getstate__` returned."""
        self.__dict__.update(state)
        self._adopt(self.base_optimizer)

    @contextmanager
    def _whole_cycle(self) -> Iterator[None]:
        """Begin on cleared gradients, and leave no cycle open, however the block ends."""
        cycle = self._cycle
        has_lost, clearings = cycle.last_gradient.others_came(self.param_groups), cycle.clearings
        self._left_out.tensors(self.param_groups)  # what was replaced is not kept alive longer
        self._clear_gradients()
        cycle.phase, cycle.losses, cycle.returned = _Phase.AT_W, [], None
        try:
            with torch.enable_grad():
                yield
        except BaseException:
            cycle.losses = []
            raise
        finally:
            cycle.phase = None
            cycle.last_gradient.remember(self.param_groups)
        if has_lost and not cycle.losses:
            # Lightning hands a closure that does nothing to a step called without one.
            raise RuntimeError(
                "Expected the closure to compute the gradients, but got gradients computed before "
                "a closure that returned None. If the trainer called `step()` without a closure, "
                "pass one that computes the loss, calls backward and returns the loss, or run the "
                "second backward in a `with optimizer.perturbed():` block. To skip a batch, first "
                "call `optimizer.zero_grad()`."
            )
        # A closure that clears the gradients itself expects none from before to count.
        if has_lost and cycle.clearings == clearings:
            self._warn_once(
                "BalancedSAM.step(closure) clears the gradients that were computed before it. To "
                "accumulate over micro-batches, loop over them inside the closure."
            )

    def _evaluate(self, closure: Closure, context: ContextFactory) -> Loss | None:
        """Call the closure; return its loss, detached, and leave its gradients."""
        loss: Loss | None = None  # what is left where the context swallows an exception
        with context():
            loss = closure()
        has_gradient = last_with_gradient(self.param_groups) is not None
        if loss is None and not has_gradient:
            return None
        loss = _check_loss(loss)
        if not has_gradient:
            self._warn_once(
                "BalancedSAM.step(closure) does nothing where the closure leaves no gradient: call "
                "`backward` in it on a loss of these parameters, or return None to skip a batch."
            )
        if isinstance(loss, Tensor):
            before, self._cycle.returned = self._cycle.returned, weakref.ref(loss)
            if before is not None and before() is loss and loss.grad_fn is not None:
                self._warn_once(
                    "The closure of BalancedSAM.step returned the same tensor twice: compute the "
                    "loss inside it. A forward pass outside does not see the perturbation."
                )
            loss = loss.detach().clone()  # a captured graph writes the next loss over this one
        self._cycle.losses.append(loss)
        return loss

    def _perturbation(self, scaler: GradScaler | None) -> Perturbation | None:
        """Return rho * g / ||g|| of the gradients at hand; None where there is no second pass."""
        if last_with_gradient(self.param_groups) is None:
            return None
        perturbation = self._along_gradients()
        # With a context such as `model.no_sync` each process has a gradient of its own. One that
        # skipped the second pass would let the others wait for ever, so none does: where it
        # overflowed the weights stay, and its second gradient tells the others.
        is_own = self._ascent_context is not nullcontext
        if scaler is None or not scaler.is_enabled():
            return perturbation
        if is_own or perturbation.norm.isfinite():
            _guards.forget_unscaling(scaler, self.base_optimizer, self)
            return perturbation
        # The scaler finds the broken gradients and backs off. A forward pass would only carry the
        # overflow into the batch-norm statistics.
        self._cycle.losses.append(torch.nan)
        return None

    def _along_gradients(self) -> Perturbation:
        """Return the perturbation of every parameter that is to be perturbed."""
        parameters, radii = list[Tensor](), list[float]()
        out = {id(tensor) for tensor in self._left_out.tensors(self.param_groups)}
        for group in self.param_groups:
            # What is maximized is worst where it is smallest.
            radius = -group["rho"] if group.get("maximize") else group["rho"]
            if radius:
                row = [p for p in group["params"] if id(p) not in out] if out else group["params"]
                parameters += row
                radii += [radius] * len(row)
        return Perturbation(parameters, radii, self._cycle.buckets)

    @contextmanager
    def _moved(self, perturbation: Perturbation) -> Iterator[None]:
        """Hold the parameters at w + eps, on cleared gradients; put w back bit for bit."""
        if perturbation.has_half_precision:
            self._warn_once(
                "BalancedSAM perturbs weights stored in 16 bits: most of them round back, and the "
                "perturbation points elsewhere. Keep the weights in float32 and use autocast."
            )
        self._clear_gradients()
        self._cycle.phase = _Phase.PERTURBED
        try:
            perturbation.apply()
            yield
        finally:
            self._cycle.phase = None
            perturbation.restore()
        self._cycle.phase = _Phase.STEP_DUE

    def _descend(self, scaler: GradScaler | None) -> None:
        """Let the base optimizer, or the scaler for it, use the gradients at hand, if any."""
        self._cycle.phase = None
        if last_with_gradient(self.param_groups) is None:
            return
        try:
            if scaler is not None:
                # A fused base would unscale only after the step hooks, which may clip.
                _guards.unscale(scaler, self.base_optimizer, self)
            self.base_optimizer.step() if scaler is None else scaler.step(self.base_optimizer)
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            raise RuntimeError(
                "Expected a base optimizer that only reads the gradients, but "
                f"{type(self.base_optimizer).__name__} differentiates them, at other weights."
            ) from error

    def _end_manual_cycle(self, closure: Closure | None, scaler: GradScaler | None) -> None:
        """Take the base step after :meth:`perturbed`; raise if that did not come before."""
        is_due, self._cycle.phase = self._cycle.phase is _Phase.STEP_DUE, None
        self._cycle.losses = []
        # Lightning hands a closure that returns None to a step called without one.
        if closure is not None and closure() is not None:
            raise RuntimeError(
                "Expected `step()` without a closure after a `perturbed()` block, but got one."
            )
        if not is_due and any(group.get("lr", 1) != 0 for group in self.param_groups):
            raise RuntimeError(_STEP_ALONE)
        if is_due and last_with_gradient(self.param_groups) is None:
            self._warn_once(
                "BalancedSAM.step() does nothing where the `perturbed()` block leaves no gradient: "
                "call `backward` inside it, and clear no gradient before the step."
            )
        self._descend(scaler)
        self._cycle.last_gradient.remember(self.param_groups)

    def _rhos(self) -> list[float]:
        """Return the rho of each group; the default where a checkpoint of the bare base cut it."""
        rho = self.defaults["rho"]
        return [check_rho(group.setdefault("rho", rho)) for group in self.param_groups]

    def _clear_gradients(self) -> None:
        """Drop the gradients as ``zero_grad`` does, without its marks for the profiler."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _warn_once(self, message: str) -> None:
        """Warn the first time this optimizer has something to say."""
        if message not in self._cycle.warned:
            self._cycle.warned.add(message)
            warnings.warn(message, UserWarning, stacklevel=2)


_STEP_ALONE = (
    "Expected `step(closure)`, or `step()` after a `with optimizer.perturbed():` block whose "
    "gradients are still there, but got `step()` alone: a step with a rho above 0 "
    "evaluates the loss twice. Pass a closure that computes the loss, calls backward and returns "
    "the loss. If rho is always 0, the base optimizer can step without one."
)


def _check_options(options: dict[str, NoReturn]) -> None:
    """Raise if there are options, which other implementations of SAM hand on to the base."""
    if options:
        raise TypeError(
            "Expected no options but `rho`, `ascent_context` and `descent_context`, but got "
            f"{', '.join(options)}: give the base optimizer its own, as in "
            "`BalancedSAM(params, partial(AdamW, lr=0.001))` or `BalancedSAM(params, base)` with "
            "`base = AdamW(params, lr=0.001)`."
        )


def _check_context(name: str, value: object) -> None:
    """Raise if ``value`` does not make context managers; one that is made is used up by a step."""
    is_made = hasattr(value, "__enter__") and not isinstance(value, type)
    if is_made or not callable(value):
        came = "a context manager" if is_made else type(value).__name__
        raise TypeError(
            f"Expected `{name}` to be a function that makes a context manager, such as "
            f"`partial(frozen_running_stats, model)`, but got {came}."
        )


def _check_arguments(closure: object, ascent_closure: object, scaler: object) -> None:
    """Raise if an argument of ``step`` is of the wrong type."""
    for name, value in (("closure", closure), ("ascent_closure", ascent_closure)):
        if value is not None:
            check_callable(name, value)
    if scaler is not None:
        check_type("scaler", scaler, GradScaler)


def _check_loss(loss: Loss | None) -> Loss:
    """Return ``loss``; raise if it is not one number."""
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss
    if isinstance(loss, numbers.Real) and not isinstance(loss, bool):
        return float(loss)
    came = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    raise TypeError(
        "Expected a closure that computes the loss, calls backward and returns the loss, one "
        f"number, but it returned {came}."
    )


def _as_scalar(loss: Loss) -> Tensor:
    """Return the loss as a 0-dim tensor, wide enough for small differences."""
    if isinstance(loss, float):
        return torch.tensor(loss, dtype=torch.float64, device="cpu")
    scalar = loss.reshape(())
    return scalar.float() if scalar.dtype in HALF_PRECISION else scalar
