"""What may be a base optimizer, and which of its parameters are perturbed."""

import copy
import pickle
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from balanced_sam import BalancedSAM

RHO = 0.3


def make(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def loss_of(parameters: list[nn.Parameter]) -> Tensor:
    return sum(((i + 1) * p.sin()).sum() for i, p in enumerate(parameters))


def closure_of(parameters: list[nn.Parameter]) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        loss = loss_of(parameters)
        loss.backward()
        return loss

    return closure


def set_descent_gradients(parameters: list[nn.Parameter]) -> None:
    """Give each parameter the gradient at w + eps, by hand and on copies."""
    gradients = torch.autograd.grad(loss_of(parameters), parameters)
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    moved = [p.detach() + RHO * g / norm for p, g in zip(parameters, gradients, strict=True)]
    moved = [p.requires_grad_() for p in moved]
    for p, h in zip(parameters, torch.autograd.grad(loss_of(moved), moved), strict=True):
        p.grad = h


def is_moved(optimizer: BalancedSAM, parameters: list[nn.Parameter]) -> list[bool]:
    """Return of each parameter whether the second pass sees it elsewhere."""
    before, moved = [p.detach().clone() for p in parameters], []

    def closure() -> Tensor:
        if optimizer.is_perturbed:
            moved.extend(not torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
        return closure_of(parameters)()

    optimizer.step(closure)
    return moved


# Which parameters are perturbed, after the base's groups were edited


def head_only() -> tuple[BalancedSAM, list[nn.Parameter]]:
    """Return an optimizer of four tensors in one group, of which only the last two are moved."""
    parameters = make((3,), (2, 2), (4,), ())
    return BalancedSAM(parameters[2:], SGD(parameters, lr=0.1), rho=RHO), parameters


def remove(optimizer: BalancedSAM, parameter: Tensor) -> None:
    for group in optimizer.base_optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p is not parameter]


def test_tensors_stay_perturbed_when_one_that_is_left_out_is_removed() -> None:
    optimizer, parameters = head_only()
    remove(optimizer, parameters[0])
    assert is_moved(optimizer, parameters) == [False, False, True, True]


def test_tensors_stay_perturbed_when_they_change_places() -> None:
    optimizer, parameters = head_only()
    optimizer.base_optimizer.param_groups[0]["params"].reverse()
    assert is_moved(optimizer, parameters) == [False, False, True, True]


def test_tensors_stay_perturbed_when_a_group_that_is_left_out_is_popped() -> None:
    parameters = make((3,), (2, 2), (4,))
    base = SGD([{"params": [p]} for p in parameters], lr=0.1)
    optimizer = BalancedSAM([parameters[2]], base, rho=RHO)
    base.param_groups.pop(0)
    assert is_moved(optimizer, parameters) == [False, False, True]
    base.add_param_group({"params": [parameters[0]]})
    assert is_moved(optimizer, parameters) == [False, False, True]


def test_tensor_that_is_left_out_is_so_when_it_comes_back() -> None:
    optimizer, parameters = head_only()
    remove(optimizer, parameters[0])
    optimizer.step(closure_of(parameters))
    optimizer.base_optimizer.param_groups[0]["params"].append(parameters[0])
    assert is_moved(optimizer, parameters) == [False, False, True, True]


def test_tensor_that_takes_the_place_of_one_that_is_gone_is_treated_as_it_was() -> None:
    """As a trainer does that shards the parameters of a finished optimizer."""
    optimizer, parameters = head_only()
    shards = [nn.Parameter(p.detach().clone()) for p in parameters]
    for _ in range(2):  # Accelerate first puts other tensors there
        optimizer.base_optimizer.param_groups[0]["params"] = [
            p.detach().clone() for p in parameters
        ]
        optimizer.base_optimizer.param_groups[0]["params"] = shards
    assert is_moved(optimizer, shards) == [False, False, True, True]


def test_tensors_that_are_added_later_are_perturbed() -> None:
    optimizer, parameters = head_only()
    added = make((5,), (6,))
    optimizer.base_optimizer.param_groups[0]["params"].append(added[0])
    optimizer.base_optimizer.add_param_group({"params": [added[1]]})
    assert is_moved(optimizer, [*parameters, *added]) == [False, False, True, True, True, True]


def test_group_that_is_added_after_one_that_was_popped_is_perturbed() -> None:
    parameters = make((3,), (2, 2))
    base = SGD([{"params": [p]} for p in parameters], lr=0.1)
    optimizer = BalancedSAM(parameters[:1], base, rho=RHO)
    alike, other = make((2, 2), (5,))
    base.param_groups.pop()
    optimizer.add_param_group({"params": [alike]})
    assert is_moved(optimizer, [*parameters, alike]) == [True, False, True]
    base.add_param_group({"params": [parameters[1]]})
    assert is_moved(optimizer, [*parameters, alike]) == [True, False, True]
    base.param_groups.pop()
    base.add_param_group({"params": [other]})
    assert is_moved(optimizer, [*parameters, alike, other]) == [True, False, True, True]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copy_after_an_edit_perturbs_the_same_tensors(copied: Callable[[Any], Any]) -> None:
    optimizer, parameters = head_only()
    optimizer.base_optimizer.param_groups[0]["params"].reverse()
    parameters, optimizer = copied((parameters, optimizer))
    assert is_moved(optimizer, parameters) == [False, False, True, True]
    optimizer.base_optimizer.param_groups[0]["params"].reverse()
    assert is_moved(optimizer, parameters) == [False, False, True, True]


def test_checkpoint_loaded_between_edits_changes_nothing() -> None:
    optimizer, parameters = head_only()
    optimizer.load_state_dict(optimizer.state_dict())
    shards = [nn.Parameter(p.detach().clone()) for p in parameters]
    optimizer.base_optimizer.param_groups[0]["params"] = shards
    assert is_moved(optimizer, shards) == [False, False, True, True]


# Bases that never called ``Optimizer.__init__``


class Lookahead(Optimizer):
    """Slow weights that follow the fast ones, as several libraries write it."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups
        self.state = defaultdict(dict)
        self.slow = [p.detach().clone() for g in self.param_groups for p in g["params"]]

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = self.optimizer.step(closure)
        fast = [p for group in self.param_groups for p in group["params"]]
        for slow, p in zip(self.slow, fast, strict=True):
            slow.add_(p.detach() - slow, alpha=0.5)
            p.data.copy_(slow)
        return loss


class WithDefaults(Lookahead):
    """Another that has the defaults of the one inside, and hooks in plain dictionaries."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)
        self._optimizer_step_pre_hooks = {}
        self._optimizer_step_post_hooks = {}

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.optimizer.defaults


@pytest.mark.parametrize("kind", [Lookahead, WithDefaults])
def test_wrapper_without_its_own_init_works_as_a_base(kind: type[Lookahead]) -> None:
    ours, theirs = make((3,), (2, 2)), make((3,), (2, 2))
    optimizer = BalancedSAM(ours, kind(SGD(ours, lr=0.1, momentum=0.9)), rho=RHO)
    seen: list[object] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("hook"))
    base = kind(SGD(theirs, lr=0.1, momentum=0.9))
    for _ in range(5):
        optimizer.step(closure_of(ours))
        set_descent_gradients(theirs)
        base.step()
    torch.testing.assert_close(ours, theirs)
    assert seen == ["hook"] * 5


def test_base_that_is_refused_is_left_as_it_was() -> None:
    parameters = make((3,))

    class Bare(Optimizer):
        def __init__(self) -> None:
            self.param_groups = [{"params": parameters}]

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            return None

    base = Bare()
    with pytest.raises(TypeError, match=r"with `param_groups` and `state`, .*, but got Bare"):
        BalancedSAM(parameters, base)
    assert vars(base) == {"param_groups": [{"params": parameters}]}


REFUSALS: dict[str, tuple[Callable[[list[nn.Parameter], Optimizer], object], str]] = {
    "negative rho": (lambda p, base: BalancedSAM(p, base, rho=-1.0), "but got rho=-1.0"),
    "tensor not trained": (lambda p, base: BalancedSAM([*p, *make((7,))], base), r"\(7,\)"),
    "group dict": (lambda p, base: BalancedSAM([{"params": p}], base), "group dict"),
}


@pytest.mark.parametrize(("refused", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_base_can_be_taken_after_a_refusal(refused: Any, message: str) -> None:
    parameters = make((3,))
    base = SGD(parameters, lr=0.1)
    with pytest.raises(ValueError, match=message):
        refused(parameters, base)
    assert "rho" not in base.defaults
    assert "rho" not in base.param_groups[0]
    assert is_moved(BalancedSAM(parameters, base, rho=RHO), parameters) == [True]


def test_base_with_a_broken_rho_in_its_second_group_is_left_as_it_was() -> None:
    parameters = make((3,), (2,))
    base = SGD([{"params": parameters[:1]}, {"params": parameters[1:], "rho": -1.0}], lr=0.1)
    with pytest.raises(ValueError, match=r"but got rho=-1\.0"):
        BalancedSAM(parameters, base)
    assert "rho" not in base.defaults
    assert "rho" not in base.param_groups[0]


# What a base may have


class ScheduleFree(SGD):
    """A base with two modes, as schedule-free optimizers have them."""

    mode = "train"

    def train(self) -> None:
        self.mode = "train"

    def eval(self) -> None:
        self.mode = "eval"


def test_train_and_eval_are_the_bases_where_it_has_them() -> None:
    parameters = make((3,))
    optimizer = BalancedSAM(parameters, partial(ScheduleFree, lr=0.1))
    for wrapper in (optimizer, copy.deepcopy(optimizer)):
        wrapper.eval()
        assert wrapper.base_optimizer.mode == "eval"
        wrapper.train()
        assert wrapper.base_optimizer.mode == "train"
    plain = BalancedSAM(parameters, partial(SGD, lr=0.1))
    assert not hasattr(plain, "train")
    assert not hasattr(plain, "eval")


def test_base_that_differentiates_the_gradients_is_answered_in_a_sentence() -> None:
    parameters = make((3,))

    class Hessian(SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            grads = [p.grad for p in parameters]
            torch.autograd.grad(grads, parameters, [torch.ones_like(g) for g in grads])

    optimizer = BalancedSAM(parameters, Hessian(parameters, lr=0.1))
    before = parameters[0].detach().clone()

    def closure() -> Tensor:
        loss = loss_of(parameters)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g
        return loss

    with pytest.raises(RuntimeError, match="only reads the gradients, but Hessian"):
        optimizer.step(closure)
    assert torch.equal(parameters[0], before)


@pytest.mark.parametrize("bases", [("sgd", "adamw"), ("muon", "adamw")], ids="+".join)
def test_one_perturbation_serves_several_optimizers(bases: tuple[str, str]) -> None:
    """A BalancedSAM that does not descend perturbs for optimizers that do."""
    kinds = {"sgd": partial(SGD, lr=0.1), "adamw": partial(torch.optim.AdamW, lr=0.01)}
    if hasattr(torch.optim, "Muon"):
        kinds["muon"] = partial(torch.optim.Muon, lr=0.1)
    if bases[0] not in kinds:
        pytest.skip("torch before 2.9 has no Muon")
    ours, theirs = make((3, 4), (4, 4), (5,)), make((3, 4), (4, 4), (5,))
    both = []
    for parameters in (ours, theirs):
        both.append([kinds[bases[0]](parameters[:2]), kinds[bases[1]](parameters[2:])])
    sam = BalancedSAM(ours, partial(SGD, lr=0.0), rho=RHO)
    for _ in range(3):
        sam.zero_grad()
        loss_of(ours).backward()
        with sam.perturbed():
            loss_of(ours).backward()
        for optimizer in (*both[0], sam):
            optimizer.step()

        set_descent_gradients(theirs)
        for optimizer in both[1]:
            optimizer.step()
    torch.testing.assert_close(ours, theirs)
