"""The optimizer under any sequence of calls: a state machine, with an oracle kept beside it."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim.lr_scheduler import ExponentialLR

from balanced_sam import BalancedSAM, LambdaRho
from support import reference
from support.reference import Array, Arrays

SETTINGS = settings(
    max_examples=30, stateful_step_count=30, deadline=None, derandomize=True, print_blob=False
)
RHO, GAMMA, SCALE = 0.3, 0.9, 256.0
# Two tensors in the first group, of which the second is never perturbed, and one in the second.
GROUPS, LEFT_OUT = [[0, 1], [2]], 1
ADDED = 2  # groups of one tensor each that may come later

MOMENTUM = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.02}
DECOUPLED = {"lr": 0.02, "weight_decay": 0.1}
BASES = {
    "momentum": (partial(torch.optim.SGD, **MOMENTUM), partial(reference.SGD, **MOMENTUM)),
    "adamw": (
        partial(torch.optim.AdamW, **DECOUPLED),
        partial(reference.Adam, decoupled=True, **DECOUPLED),
    ),
}


@dataclass(frozen=True)
class Call:
    r"""One call of a closure on :math:`\sum_i q_i \lVert w_i - i \rVert^2 / 2`.

    A tensor whose factor q is None is not in the loss: it gets no gradient. With an ``error`` the
    call fails, before or after its backward.
    """

    factors: tuple[float | None, ...]
    error: type[BaseException] | None = None
    fails_after_backward: bool = False

    def fail(self, *, after_backward: bool) -> None:
        if self.error is not None and self.fails_after_backward == after_backward:
            raise self.error


def factor_at(step: int) -> float:
    """Return the factor of rho, zero at every third step."""
    return (1.0, 0.5, 0.0)[step % 3]


@dataclass
class Oracle:
    """The contract in numpy: what each call does to weights, gradients and options."""

    rules: list[reference.SGD | reference.Adam]
    weights: Arrays
    gradients: list[Array | None]
    group_of: list[int]
    members: list[list[int]]
    lrs: list[float]
    rhos: list[float]
    initial_rhos: list[float | None]
    rho_steps: int = 0
    scale: float = SCALE
    awaits_step: bool = False
    block_left_gradient: bool = False

    def add(self, rule: reference.SGD | reference.Adam, weight: Array, group: int) -> None:
        self.members[group].append(len(self.weights))
        self.group_of.append(group)
        self.rules.append(rule)
        self.weights.append(weight)
        self.gradients.append(None)

    def present(self) -> list[int]:
        """Return the tensors that are in a group of the base optimizer."""
        return [i for members in self.members for i in members]

    def call(self, closure: Call, weights: Arrays, scale: float = 1.0) -> float:
        """Return the loss at ``weights``; the gradients add up."""
        closure.fail(after_backward=False)
        loss = 0.0
        for i, w in enumerate(weights):
            q, held = closure.factors[i], self.gradients[i]
            if q is not None:
                loss += float(q * ((w - i) ** 2).sum() / 2)
                gradient = scale * q * (w - i)
                self.gradients[i] = gradient if held is None else held + gradient
        closure.fail(after_backward=True)
        return loss

    def evaluate(self, closure: Call, weights: Arrays, scale: float) -> float:
        """Return the loss at ``weights``; the gradients are this call's alone."""
        self.clear_gradients()
        return self.call(closure, weights, scale)

    def step(self, ascent: Call, descent: Call, only: Call, *, scaled: bool) -> list[float]:
        """Return loss and sharpness; ``only`` is called where the closure is called once."""
        scale = self.scale if scaled else 1.0
        if self.awaits_step:
            self.awaits_step = False
            self.call(only, self.weights, scale)
            raise RuntimeError
        first = ascent if any(self.rhos) else only
        loss, sharpness = self.evaluate(first, self.weights, scale), 0.0
        if any(self.rhos) and self.has_gradients():
            sharpness = math.nan
            if not scaled or math.isfinite(self.norm()):
                sharpness = self.evaluate(descent, self.perturbed(), scale) - loss
        if self.has_gradients():
            for i in self.present():
                self.gradients[i] = None if self.gradients[i] is None else self.gradients[i] / scale
            if not scaled or self.is_finite():
                self.descend()
            else:
                self.scale /= 2
        return [loss, sharpness]

    def hold(self, closure: Call) -> None:
        """Call the closure at w + eps, eps from the gradients at hand: the manual cycle."""
        if self.awaits_step and self.block_left_gradient:
            raise RuntimeError
        if not self.has_gradients():
            raise ValueError
        self.awaits_step = False
        weights = self.perturbed()
        self.clear_gradients()
        self.call(closure, weights)
        self.awaits_step, self.block_left_gradient = True, self.has_gradients()

    def end(self) -> None:
        had_block, self.awaits_step = self.awaits_step, False
        if not had_block and any(self.lrs):
            raise RuntimeError
        self.descend()

    def descend(self) -> None:
        for group, members in enumerate(self.members):
            for i in members:
                gradient = self.gradients[i]
                if gradient is not None:
                    self.rules[i].lr = self.lrs[group]
                    self.weights[i] = self.rules[i].update(self.weights[i], gradient)

    def moving(self) -> dict[int, float]:
        """Return the rho of each tensor that the gradients at hand move."""
        pairs = zip(self.members, self.rhos, strict=True)
        rhos = {i: rho for members, rho in pairs for i in members if i != LEFT_OUT}
        return {i: rho for i, rho in rhos.items() if rho and self.gradients[i] is not None}

    def norm(self) -> float:
        return math.sqrt(sum(float((self.gradients[i] ** 2).sum()) for i in self.moving()))

    def perturbed(self) -> Arrays:
        """Return w + eps; w where the gradients are zero or broken."""
        moving, weights = self.moving(), list(self.weights)
        if 0 < self.norm() < math.inf:
            moved = reference.ascend(
                [weights[i] for i in moving],
                [self.gradients[i] for i in moving],
                list(moving.values()),
            )
            for i, w in zip(moving, moved, strict=True):
                weights[i] = w
        return weights

    def follow_schedule(self) -> None:
        """Set the rho of each group from its initial one; without one the present becomes it."""
        self.rho_steps += 1
        for i, (initial, rho) in enumerate(zip(self.initial_rhos, self.rhos, strict=True)):
            self.initial_rhos[i] = start = rho if initial is None else initial
            self.rhos[i] = start * factor_at(self.rho_steps)

    def has_gradients(self) -> bool:
        return any(self.gradients[i] is not None for i in self.present())

    def is_finite(self) -> bool:
        gradients = [self.gradients[i] for i in self.present()]
        return all(g is None or bool(np.isfinite(g).all()) for g in gradients)

    def clear_gradients(self) -> None:
        """Clear what the optimizer knows of."""
        for i in self.present():
            self.gradients[i] = None

    def forget_gradients(self) -> None:
        """Forget all, as a copy does."""
        self.gradients = [None] * len(self.gradients)


def pickled(value: Any) -> Any:
    """Return what pickle reads of what it writes."""
    return pickle.loads(pickle.dumps(value))


def each_tensor(factors: list[float | None]) -> st.SearchStrategy[tuple[float | None, ...]]:
    """Return a strategy of one factor for each tensor that there may be."""
    return st.tuples(*[st.sampled_from(factors)] * (3 + ADDED))


calls = each_tensor([1.0, None, 0.5, 3.0, 0.0]).map(Call)
broken_calls = each_tensor([1.0, math.nan, math.inf, None, 1.0]).map(Call)
failing_calls = st.builds(
    replace,
    calls,
    error=st.sampled_from([torch.OutOfMemoryError, KeyboardInterrupt]),
    fails_after_backward=st.booleans(),
)
rhos = st.sampled_from([0.0, 0.1, 0.7])
groups = st.integers(0, len(GROUPS) + ADDED - 1)


class Training(RuleBasedStateMachine):
    """A training run in which the rules are what a user may do, in any order."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.make_base, self.make_rule = BASES[base]
        self.scaler = GradScaler("cpu", init_scale=SCALE)
        self.saved: tuple[bytes, Oracle] | None = None
        self.left_behind: list[tuple[Tensor, Tensor]] = []
        lr = self.make_rule().lr
        self.oracle = Oracle([], [], [], [], [[], []], [lr, lr], [RHO, 0.1], [RHO, 0.1])
        generator = np.random.default_rng(0)
        for group, members in enumerate(GROUPS):
            for i in members:
                weight = generator.normal(size=((3,), (2, 2), ())[i])
                self.oracle.add(self.make_rule(), np.asarray(weight), group)
        self.build()

    def build(self) -> None:
        """Make parameters with the oracle's weights, and all that acts on them."""
        self.parameters = [nn.Parameter(torch.tensor(w)) for w in self.oracle.weights]
        groups: list[dict[str, Any]] = [
            {"params": [self.parameters[i] for i in members]} for members in self.oracle.members
        ]
        groups[1]["rho"] = 0.1
        perturbed = [self.parameters[i] for i in self.oracle.present() if i != LEFT_OUT]
        self.optimizer = BalancedSAM(perturbed, self.make_base(groups), rho=RHO)
        self.lr_schedule = ExponentialLR(self.optimizer, GAMMA)
        self.rho_schedule = LambdaRho(self.optimizer, factor_at)
        self.addresses = [p.data_ptr() for p in self.parameters]

    def agree(self, ours: Callable[[], object], expected: Callable[[], object]) -> None:
        """Assert that both calls return the same numbers or raise the same error."""
        numbers, failure = None, None
        try:
            with np.errstate(invalid="ignore"):
                numbers = expected()
        except (Exception, KeyboardInterrupt) as error:
            failure = type(error)
        if failure is None:
            self.assert_close(ours(), numbers)
        else:
            with pytest.raises(failure) as raised:
                ours()
            assert raised.type is failure

    def assert_close(self, ours: Any, expected: Any) -> None:
        if expected is not None:
            ours = [np.nan if x is None else x.detach().numpy() for x in ours]
            expected = [np.nan if x is None else x for x in expected]
            for left, right in zip(ours, expected, strict=True):
                np.testing.assert_allclose(left, right, rtol=1e-12, atol=1e-12)

    def call(self, closure: Call, *, scaled: bool = False) -> Tensor:
        """Call the closure on the parameters as they are now."""
        closure.fail(after_backward=False)
        terms = [
            q * (p - i).square().sum() / 2
            for i, (p, q) in enumerate(zip(self.parameters, closure.factors, strict=False))
            if q is not None
        ]
        loss = sum(terms, torch.zeros((), dtype=torch.float64))
        if terms:
            (self.scaler.scale(loss) if scaled else loss).backward()
        closure.fail(after_backward=True)
        return loss

    def members_at_hand(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def take_step(
        self, ascent: Call, descent: Call, *, apart: bool = False, scaled: bool = False
    ) -> None:
        """Take a step whose two calls are these, of one closure or, if ``apart``, of two."""
        first = descent if apart else ascent

        def ours() -> list[Tensor | None]:
            loss = self.optimizer.step(
                lambda: self.call(descent if self.optimizer.is_perturbed else first, scaled=scaled),
                ascent_closure=(lambda: self.call(ascent, scaled=scaled)) if apart else None,
                scaler=self.scaler if scaled else None,
            )
            # As with any optimizer, a scaler that was given no gradient has nothing to go by.
            if scaled and any(p.grad is not None for p in self.members_at_hand()):
                self.scaler.update()
            assert isinstance(loss, Tensor)
            return [loss, self.optimizer.sharpness]

        self.agree(ours, lambda: self.oracle.step(ascent, descent, first, scaled=scaled))

    @rule(closure=calls)
    def step(self, closure: Call) -> None:
        self.take_step(closure, closure)

    @rule(ascent=calls, descent=calls, apart=st.booleans())
    def step_on_two_losses(self, ascent: Call, descent: Call, apart: bool) -> None:
        self.take_step(ascent, descent, apart=apart)

    @rule(ascent=failing_calls, descent=calls, apart=st.booleans())
    def step_that_fails_in_pass_1(self, ascent: Call, descent: Call, apart: bool) -> None:
        self.take_step(ascent, descent, apart=apart)

    @rule(ascent=calls, descent=failing_calls, apart=st.booleans())
    def step_that_fails_in_pass_2(self, ascent: Call, descent: Call, apart: bool) -> None:
        self.take_step(ascent, descent, apart=apart)

    # A broken gradient that reaches the base optimizer breaks the weights, as it does without us.
    @precondition(lambda self: any(self.oracle.rhos))
    @rule(ascent=broken_calls, descent=calls, apart=st.booleans())
    def step_with_a_broken_first_gradient(self, ascent: Call, descent: Call, apart: bool) -> None:
        self.take_step(ascent, descent, apart=apart)

    @rule(ascent=calls | broken_calls, descent=calls | broken_calls | failing_calls)
    def step_under_a_scaler(self, ascent: Call, descent: Call) -> None:
        self.take_step(ascent, descent, scaled=True)
        assert self.scaler.get_scale() == self.oracle.scale

    @rule(closure=calls | broken_calls)
    def call_by_hand(self, closure: Call) -> None:
        self.agree(
            lambda: [self.call(closure)],
            lambda: [self.oracle.call(closure, self.oracle.weights)],
        )

    def call_inside_perturbed(self, closure: Call) -> None:
        with self.optimizer.perturbed():
            assert self.optimizer.is_perturbed
            self.call(closure)

    @rule(closures=st.lists(calls | failing_calls, min_size=1, max_size=2), ends=st.booleans())
    def manual_cycle(self, closures: list[Call], ends: bool) -> None:
        """Hold w + eps once or anew; without an end the cycle stays open for other rules."""
        for closure in closures:
            self.agree(
                partial(self.call_inside_perturbed, closure), partial(self.oracle.hold, closure)
            )
        if ends:
            self.step_without_a_closure()

    @precondition(lambda self: self.oracle.is_finite())
    @rule()
    def step_without_a_closure(self) -> None:
        self.agree(self.optimizer.step, self.oracle.end)

    @rule(set_to_none=st.booleans())
    def zero_grad(self, set_to_none: bool) -> None:
        """Clear the gradients: a block that was held before is dropped."""
        self.optimizer.zero_grad(set_to_none=set_to_none)
        self.oracle.awaits_step = False
        for i in self.oracle.present():
            g = self.oracle.gradients[i]
            self.oracle.gradients[i] = None if set_to_none or g is None else np.zeros_like(g)

    @rule()
    def skip_a_batch(self) -> None:
        self.zero_grad(set_to_none=True)
        assert self.optimizer.step(lambda: None) is None

    @rule(closure=calls)
    def skip_in_pass_2(self, closure: Call) -> None:
        """A batch whose second call leaves no gradient moves nothing."""
        self.zero_grad(set_to_none=True)
        empty = replace(closure, factors=(None,) * len(closure.factors))
        if any(self.oracle.rhos):
            self.take_step(closure, empty)

    @rule(i=st.integers(0, 2 + ADDED))
    def take_a_tensor_out_of_its_group(self, i: int) -> None:
        """Freeze it for a while: the base optimizer does not train it and loses its state."""
        for group, members in enumerate(self.oracle.members):
            if i in members and len(members) > 1:
                params = self.optimizer.base_optimizer.param_groups[group]["params"]
                params[:] = [p for p in params if p is not self.parameters[i]]
                self.optimizer.base_optimizer.state.pop(self.parameters[i], None)
                members.remove(i)
                self.oracle.rules[i] = self.make_rule()

    @rule(first=st.booleans())
    def put_back_a_tensor(self, first: bool) -> None:
        for i, group in enumerate(self.oracle.group_of):
            if i not in self.oracle.present():
                members = self.oracle.members[group]
                params = self.optimizer.base_optimizer.param_groups[group]["params"]
                place = 0 if first else len(members)
                params.insert(place, self.parameters[i])
                members.insert(place, i)
                return

    @precondition(lambda self: len(self.oracle.rhos) < len(GROUPS) + ADDED)
    @rule(on_base=st.booleans(), rho=st.none() | rhos)
    def add_param_group(self, on_base: bool, rho: float | None) -> None:
        weight, group = np.array([-0.5, 1.5]), len(self.oracle.rhos)
        self.parameters.append(nn.Parameter(torch.tensor(weight)))
        self.addresses.append(self.parameters[-1].data_ptr())
        options = {"params": self.parameters[-1]} | ({} if rho is None else {"rho": rho})
        (self.optimizer.base_optimizer if on_base else self.optimizer).add_param_group(options)
        self.oracle.members.append([])
        self.oracle.add(self.make_rule(), weight, group)
        self.oracle.lrs.append(self.make_rule().lr)
        self.oracle.rhos.append(RHO if rho is None else rho)
        self.oracle.initial_rhos.append(None)

    @rule(group=groups, rho=rhos)
    def set_rho(self, group: int, rho: float) -> None:
        group %= len(self.oracle.rhos)
        self.optimizer.param_groups[group]["rho"] = self.oracle.rhos[group] = rho

    @rule(group=groups | st.none(), lr=st.sampled_from([0.0, 0.02, 0.1]))
    def set_lr(self, group: int | None, lr: float) -> None:
        count = len(self.oracle.lrs)
        for i in range(count) if group is None else [group % count]:
            self.optimizer.param_groups[i]["lr"] = self.oracle.lrs[i] = lr

    @rule()
    def step_lr_schedule(self) -> None:
        self.lr_schedule.step()
        self.oracle.lrs = [lr * GAMMA for lr in self.oracle.lrs]

    @rule()
    def step_rho_schedule(self) -> None:
        self.rho_schedule.step()
        self.oracle.follow_schedule()

    @rule(copied=st.sampled_from([copy.deepcopy, pickled]))
    def go_on_with_a_copy(self, copied: Callable[[Any], Any]) -> None:
        """A copy has neither gradients nor an open cycle, and leaves the original alone."""
        self.left_behind = [(p, p.detach().clone()) for p in self.parameters]
        self.parameters, self.optimizer, self.lr_schedule, self.rho_schedule = copied(
            (self.parameters, self.optimizer, self.lr_schedule, self.rho_schedule)
        )
        self.addresses = [p.data_ptr() for p in self.parameters]
        self.oracle.forget_gradients()
        self.oracle.awaits_step = False

    def parts(self) -> list[Any]:
        return [self.optimizer, self.lr_schedule, self.rho_schedule, self.scaler]

    @rule()
    def save(self) -> None:
        file = io.BytesIO()
        weights = [p.detach() for p in self.parameters]
        torch.save([weights, *(part.state_dict() for part in self.parts())], file)
        self.saved = file.getvalue(), copy.deepcopy(self.oracle)

    def load(self, *, schedule_last: bool) -> Oracle:
        """Load what was saved, in either order; return what the oracle was then."""
        assert self.saved is not None
        weights, *states = torch.load(io.BytesIO(self.saved[0]), weights_only=True)
        for parameter, weight in zip(self.parameters, weights, strict=True):
            parameter.data.copy_(weight)
        loads = list(zip(self.parts(), states, strict=True))
        for part, state in loads if schedule_last else reversed(loads):
            part.load_state_dict(state)
        return copy.deepcopy(self.saved[1])

    @rule(saves_first=st.booleans(), schedule_last=st.booleans())
    def resume_in_a_new_optimizer(self, saves_first: bool, schedule_last: bool) -> None:
        if saves_first or self.saved is None:
            self.save()
        assert self.saved is not None
        self.oracle = self.saved[1]
        self.build()
        self.oracle = self.load(schedule_last=schedule_last)
        self.oracle.forget_gradients()
        self.oracle.awaits_step = False

    @rule(saves_first=st.booleans(), schedule_last=st.booleans())
    def load_into_the_same_optimizer(self, saves_first: bool, schedule_last: bool) -> None:
        """Gradients and an open cycle are no part of a checkpoint: they stay as they are."""
        present = self.oracle
        if saves_first or self.saved is None or self.saved[1].members != present.members:
            self.save()
        self.oracle = self.load(schedule_last=schedule_last)
        self.oracle.gradients, self.oracle.awaits_step = present.gradients, present.awaits_step
        self.oracle.block_left_gradient = present.block_left_gradient

    @invariant()
    def weights_are_the_oracles(self) -> None:
        self.assert_close(self.parameters, self.oracle.weights)

    @invariant()
    def gradients_are_the_oracles(self) -> None:
        self.assert_close([p.grad for p in self.parameters], self.oracle.gradients)

    @invariant()
    def options_are_the_oracles(self) -> None:
        assert [group["rho"] for group in self.optimizer.param_groups] == self.oracle.rhos
        assert [group["lr"] for group in self.optimizer.param_groups] == self.oracle.lrs

    @invariant()
    def parameters_are_unperturbed_and_where_they_were(self) -> None:
        assert not self.optimizer.is_perturbed
        assert [p.data_ptr() for p in self.parameters] == self.addresses

    @invariant()
    def what_was_copied_stays(self) -> None:
        assert all(torch.equal(original, value) for original, value in self.left_behind)


# All are about calls that are made here on purpose.
@pytest.mark.filterwarnings(
    "ignore:BalancedSAM.step.*(clears the gradients|does nothing)",
    r"ignore:.*`lr_scheduler.step\(\)`",
)
@pytest.mark.parametrize("base", BASES)
def test_weights_equal_the_oracles_after_any_sequence_of_calls(base: str) -> None:
    run_state_machine_as_test(partial(Training, base), settings=SETTINGS)
