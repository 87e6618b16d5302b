"""Move parameters along their gradients and back, exactly, wherever they live."""

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import parametrize

HALF_PRECISION = (torch.float16, torch.bfloat16)
_INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass
class _Bucket:
    """Parameters of one kind and their gradients, so that one foreach call serves them all."""

    rho: float
    parameters: list[Tensor]
    gradients: list[Tensor]


class Room:
    """Memory for the copies of parameters, kept from step to step on the CPU.

    There memory that is given back goes to the operating system, which clears each page of it
    before the next step gets it: that takes longer than the copy. Elsewhere torch's allocator keeps
    it, and the copies of a captured graph must be its own.
    """

    def __init__(self) -> None:
        self._kept: dict[int, list[Tensor]] = {}

    def copies(self, bucket: int, tensors: list[Tensor]) -> list[Tensor]:
        """Return exact copies of a bucket's tensors, all of one dtype and device."""
        kept = self._kept.get(bucket)
        if kept is not None and _are_alike(tensors, kept):
            torch._foreach_copy_(kept, tensors)
            return kept
        copies = _clone(tensors)
        if tensors[0].is_cpu:
            self._kept[bucket] = copies
        return copies


class Perturbation:
    r"""The ascent step :math:`\hat\epsilon = \rho \, g / \lVert g \rVert_2`, there and back.

    Args:
        parameters: Parameters and the radius of each; those without a gradient are left alone, one
            that comes twice counts once.
        room: Where the copies of them are kept.

    Attributes:
        norm: :math:`\lVert g \rVert_2` over all these parameters, a 0-dim tensor, at least float32.
        has_half_precision: Whether a parameter is stored in 16 bits.
    """

    def __init__(self, parameters: Iterable[tuple[Tensor, float]], room: Room) -> None:
        self._buckets = _group(parameters)
        self._room = room
        self._saved: list[tuple[list[Tensor], list[Tensor]]] = []
        # Gradients have a graph of their own after `backward(create_graph=True)`.
        self.norm = _total_norm(self._buckets).detach()
        self.has_half_precision = any(
            bucket.parameters[0].dtype in HALF_PRECISION for bucket in self._buckets
        )

    def apply(self) -> None:
        """Move the parameters to w + eps, once.

        The gradients are used up: their values are undefined afterwards.
        """
        _check_no_parametrization_cache()
        _check_resharded(self._buckets)
        with torch.no_grad():
            for i, bucket in enumerate(self._buckets):
                tensors = _local(bucket.parameters)
                self._saved.append((tensors, self._room.copies(i, tensors)))
            # Autocast keeps half-precision copies of the weights: each pass must make its own.
            torch.clear_autocast_cache()
            for bucket, (tensors, _) in zip(self._buckets, self._saved, strict=True):
                _ascend(tensors, _local(bucket.gradients), self.norm, bucket.rho)
                # Else they would take up memory during the second pass.
                bucket.gradients.clear()

    def restore(self) -> None:
        """Put w back bit for bit, also where :meth:`apply` failed halfway."""
        with torch.no_grad():
            for tensors, copies in self._saved:
                torch._foreach_copy_(tensors, copies)
        torch.clear_autocast_cache()


def _group(parameters: Iterable[tuple[Tensor, float]]) -> list[_Bucket]:
    """Group the parameters that have a gradient by all that a foreach call wants alike."""
    buckets: dict[object, _Bucket] = {}
    seen: set[int] = set()
    for parameter, rho in parameters:
        gradient = parameter.grad
        if gradient is None or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        if getattr(parameter, "_fsdp_flattened", False):
            raise TypeError(
                "Expected parameters sharded by FSDP2 (`fully_shard`), but got some that "
                "`FullyShardedDataParallel` flattened: each process would perturb along its own "
                "shard's norm."
            )
        key: tuple[object, ...] = (
            rho,
            parameter.device,
            parameter.dtype,
            gradient.dtype,
            gradient.layout,
        )
        placements = getattr(parameter, "placements", None)
        if placements is not None:
            gradient = _placed(gradient, placements)
            key += (placements, gradient.device_mesh)  # type: ignore[attr-defined]
        bucket = buckets.get(key)
        if bucket is None:
            bucket = buckets[key] = _Bucket(rho, [], [])
        bucket.parameters.append(parameter)
        bucket.gradients.append(gradient.coalesce() if gradient.is_sparse else gradient)
    return list(buckets.values())


def _placed(gradient: Tensor, placements: object) -> Tensor:
    """Return the gradient of a DTensor with the placements of its parameter.

    Under tensor parallelism the gradient of a replicated parameter is a partial sum on each rank.
    """
    if gradient.placements == placements:  # type: ignore[attr-defined]
        return gradient
    placed: Tensor = gradient.redistribute(placements=placements)  # type: ignore[attr-defined]
    return placed


def _total_norm(buckets: list[_Bucket]) -> Tensor:
    """Return the L2 norm of all gradients, on the first one's device; 0 if there are none."""
    norms = [_norm(_values(bucket.gradients)) for bucket in buckets]
    if len(norms) < 2:
        return norms[0] if norms else torch.zeros(())
    dtype = torch.float64 if any(n.dtype is torch.float64 for n in norms) else torch.float32
    alike = [_send(norm.to(dtype), norms[0].device) for norm in norms]
    total: Tensor = torch.linalg.vector_norm(torch.stack(alike))
    return total


def _norm(tensors: list[Tensor]) -> Tensor:
    """Return the L2 norm of tensors that share device and dtype, over every shard of them."""
    # Summed in 16 bits, a norm above 65504 would be infinite and the perturbation would vanish.
    dtype = torch.float32 if tensors[0].dtype in HALF_PRECISION else None
    norms = torch._foreach_norm(tensors, 2, dtype=dtype)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    # A DTensor, told by its method: importing its class would double this package's import time.
    full_tensor: Callable[[], Tensor] | None = getattr(norm, "full_tensor", None)
    return norm if full_tensor is None else full_tensor()


def _ascend(parameters: list[Tensor], gradients: list[Tensor], norm: Tensor, rho: float) -> None:
    """Add rho * g / norm to the parameters; nothing where that is not a finite step."""
    is_float16 = gradients[0].dtype is torch.float16
    if parameters[0].device.type == "cpu" and norm.device.type == "cpu" and not is_float16:
        # Nothing to wait for on the CPU, and a plain number saves two passes over the gradients.
        # It is 0 where the norm is infinite, infinite where that is 0.
        scale = (rho / norm).item()
        if scale and math.isfinite(scale):
            torch._foreach_add_(parameters, gradients, alpha=scale)
        return
    norm = _send(norm, parameters[0].device)
    is_valid = torch.isfinite(norm) & torch.isfinite(rho / norm)
    if is_float16:
        # A scale below 6e-8 is 0 in float16, and float16 gradients of a scaled loss need one.
        gradients = [gradient.to(torch.float32) for gradient in gradients]
    values = _values(gradients)
    torch._foreach_mul_(values, torch.where(is_valid, rho / norm, 0))
    # 0 times NaN is NaN. As integers the same bits become 0, so that a broken gradient moves
    # nothing without the host having to ask whether it is broken.
    bits = [_as_integers(value) for value in values]
    torch._foreach_mul_(bits, is_valid.to(bits[0].dtype))
    torch._foreach_add_(parameters, gradients)


def _send(value: Tensor, device: torch.device) -> Tensor:
    """Return the value on a device, without waiting unless the CPU is to work with it."""
    return value.to(device, non_blocking=device.type != "cpu")


def _as_integers(values: Tensor) -> Tensor:
    """Return the same memory seen as integers of the same size."""
    real = torch.view_as_real(values) if values.is_complex() else values
    return real.view(_INTEGER_OF_SIZE[real.element_size()])


def _values(tensors: list[Tensor]) -> list[Tensor]:
    """Return the stored values: of a sparse tensor those that are not zero."""
    return [tensor.values() for tensor in tensors] if tensors[0].is_sparse else tensors


def _local(tensors: list[Tensor]) -> list[Tensor]:
    """Return this process's shards of DTensors; element-wise work needs no more."""
    to_local: Callable[[Tensor], Tensor] | None = getattr(type(tensors[0]), "to_local", None)
    return tensors if to_local is None else [to_local(tensor) for tensor in tensors]


def _are_alike(tensors: list[Tensor], others: list[Tensor]) -> bool:
    """Return whether the others, all of one dtype and device too, can take the tensors' values."""
    return (
        [t.shape for t in tensors] == [t.shape for t in others]
        and tensors[0].dtype is others[0].dtype
        and tensors[0].device == others[0].device
    )


def _clone(tensors: list[Tensor]) -> list[Tensor]:
    """Return exact copies, written in one call."""
    if hasattr(torch, "_foreach_clone"):
        return list(torch._foreach_clone(tensors))
    copies = [torch.empty_like(tensor) for tensor in tensors]
    torch._foreach_copy_(copies, tensors)
    return copies


def _check_no_parametrization_cache() -> None:
    """Raise inside ``parametrize.cached()``: the second pass would see the first one's weights."""
    if parametrize._cache_enabled:
        raise RuntimeError(
            "Expected the step to run outside `torch.nn.utils.parametrize.cached()`, whose cached "
            "weights hide the perturbation. Open it inside the closure instead."
        )


def _check_resharded(buckets: list[_Bucket]) -> None:
    """Raise where FSDP2 holds gathered weights, which the second pass would take for its own."""
    # Read, not imported: it is there if something is sharded. Nothing public leads from a sharded
    # parameter to its module.
    states = sys.modules.get("torch.distributed._composable_state")
    sharded = [bucket for bucket in buckets if hasattr(bucket.parameters[0], "placements")]
    if states is None or not sharded:
        return
    ours = {id(parameter) for bucket in sharded for parameter in bucket.parameters}
    for reference in getattr(states, "_module_state_mapping", {}).values():
        state = reference()
        # Before torch 2.13 a module has one group or none.
        one = getattr(state, "_fsdp_param_group", None)
        for group in getattr(state, "_fsdp_param_groups", [one] if one else []):
            if group.is_unsharded and any(id(p.sharded_param) in ours for p in group.fsdp_params):
                raise RuntimeError(
                    "Expected FSDP2 to have resharded the weights after the first pass, but some "
                    "are still gathered and would hide the perturbation: leave "
                    "`set_reshard_after_backward` on in the last backward pass, and call "
                    "`model.reshard()` after a forward pass that no backward pass follows."
                )
