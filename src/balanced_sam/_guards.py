"""Code that uses torch's private names, and checks for what would hide the perturbation.

Every name that torch marks as private is in this file alone, with the versions that have it.
"""

import sys
from collections.abc import Iterable

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.amp import GradScaler
from torch.amp.grad_scaler import OptState
from torch.nn.utils import parametrize
from torch.optim import Optimizer

not_traced = _disable_dynamo  # 2.6 to 2.14; `torch.compiler.disable` would import Dynamo at once

# 2.6 to 2.14. Torch lists them in its documentation as a beta.
foreach_add_ = torch._foreach_add_
foreach_copy_ = torch._foreach_copy_
foreach_mul = torch._foreach_mul
foreach_mul_ = torch._foreach_mul_
foreach_norm = torch._foreach_norm


def foreach_clone(tensors: list[Tensor]) -> list[Tensor]:
    """Return copies of the tensors."""
    if hasattr(torch, "_foreach_clone"):  # 2.13, 2.14; not in 2.6 to 2.10
        return list(torch._foreach_clone(tensors))
    copies = [torch.empty_like(tensor) for tensor in tensors]
    foreach_copy_(copies, tensors)
    return copies


# 2.6 to 2.14: the attributes in which an optimizer keeps its hooks.
HOOKS = tuple(
    f"_optimizer_{event}_{time}_hooks"
    for event in ("step", "state_dict", "load_state_dict")
    for time in ("pre", "post")
)


def version_of(tensor: Tensor) -> int:
    """Return a number that every write to the tensor changes."""
    return tensor._version  # 2.6 to 2.14


def unscale(scaler: GradScaler, base: Optimizer, wrapper: Optimizer) -> None:
    """Unscale the gradients of the base, unless the user has done so in the name of either."""
    if not scaler.is_enabled():
        return
    states = scaler._per_optimizer_states  # 2.6 to 2.14
    if id(wrapper) in states:
        states[id(base)] = states.pop(id(wrapper))
    if states[id(base)]["stage"] is OptState.READY:  # 2.6 to 2.14
        scaler.unscale_(base)


def forget_unscaling(scaler: GradScaler, base: Optimizer, wrapper: Optimizer) -> None:
    """Let the scaler expect scaled gradients again if the user has unscaled those before."""
    states = scaler._per_optimizer_states  # 2.6 to 2.14
    for key in {id(base), id(wrapper)} & states.keys():
        # One that has stepped stays, so that torch misses the `update` between two steps.
        if states[key]["stage"] is OptState.UNSCALED:  # 2.6 to 2.14
            del states[key]


def check_not_flattened(parameter: Tensor) -> None:
    """Raise if the parameter is one that the older FSDP flattened."""
    if getattr(parameter, "_fsdp_flattened", False):  # 2.6 to 2.14
        raise TypeError(
            "Expected parameters sharded by FSDP2 (`fully_shard`), but got some that "
            "`FullyShardedDataParallel` flattened: their norm is not known to each process."
        )


def check_no_parametrization_cache() -> None:
    """Raise inside ``parametrize.cached()``: the second pass would see the first one's weights."""
    if parametrize._cache_enabled:  # 2.6 to 2.14
        raise RuntimeError(
            "Expected the step to run outside `torch.nn.utils.parametrize.cached()`, whose cached "
            "weights hide the perturbation. Open it inside the closure instead."
        )


def check_resharded(buckets: Iterable[list[Tensor]]) -> None:
    """Raise where FSDP2 holds gathered weights, which the second pass would take for its own."""
    # Read, not imported: it is there if something is sharded. Nothing public leads from a sharded
    # parameter to its module.
    states = sys.modules.get("torch.distributed._composable_state")  # 2.6 to 2.14
    ours = {id(p) for bucket in buckets if hasattr(bucket[0], "placements") for p in bucket}
    known = getattr(states, "_module_state_mapping", {}) if ours else {}  # 2.6 to 2.14
    for reference in known.values():
        state = reference()
        one = getattr(state, "_fsdp_param_group", None)  # 2.6 to 2.12: one group or none
        for group in getattr(state, "_fsdp_param_groups", [one] if one else []):  # 2.13, 2.14
            if group.is_unsharded and any(id(p.sharded_param) in ours for p in group.fsdp_params):
                raise RuntimeError(
                    "Expected FSDP2 to have resharded the weights after the first pass, but some "
                    "are still gathered and would hide the perturbation: leave "
                    "`set_reshard_after_backward` on in the last backward pass, and call "
                    "`model.reshard()` after a forward pass that no backward pass follows."
                )
