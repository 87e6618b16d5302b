"""Move parameters along their gradients and back, exactly, wherever they live."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor

from balanced_sam import _guards

HALF_PRECISION = (torch.float16, torch.bfloat16)
_INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass
class Bucket:
    """Parameters of one kind, so that one foreach call serves them all."""

    parameters: list[Tensor] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # among all that are perturbed
    room: list[Tensor] | None = None

    def copies(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return exact copies of the tensors."""
        # The same objects may be on another device by now.
        if self.room is not None and self.room[0].device == tensors[0].device:
            _guards.foreach_copy_(self.room, tensors)
            return self.room
        copies = _guards.foreach_clone(tensors)
        # On the CPU memory that is given back goes to the operating system, which clears each page
        # of it before the next step gets it: that takes longer than the copy. Elsewhere torch's
        # allocator keeps it, and the copies of a captured graph must be its own.
        if tensors[0].is_cpu:
            self.room = copies
        return copies


class Buckets:
    """All parameters by kind: kept from step to step while they are the same."""

    def __init__(self) -> None:
        self._parameters: list[Tensor] = []
        self._sizes: list[object] = []
        self._buckets: list[Bucket] = []

    def of(self, parameters: list[Tensor], gradients: list[Tensor]) -> list[Bucket]:
        """Return the parameters in buckets, without duplicates."""
        # The object may be the same and what it holds another: `module.double()` does that.
        sizes: list[object] = list(map(attrgetter("shape", "dtype"), parameters))
        is_plain = bool(parameters) and True not in set(map(attrgetter("is_sparse"), gradients))
        if not (is_plain and sizes == self._sizes and all(map(is_, parameters, self._parameters))):
            self._buckets = _by_kind(parameters, gradients)
            # The kind of a sparse or a sharded gradient is looked at each time.
            is_plain = is_plain and not any(hasattr(p, "placements") for p in parameters)
            self._parameters, self._sizes = parameters, sizes if is_plain else []
        return self._buckets


class Perturbation:
    r"""The ascent step :math:`\hat\epsilon = \rho \, g / \lVert g \rVert_2`, there and back.

    The gradients are read here and not needed afterwards, so that they may be cleared before
    :meth:`apply` takes up memory.

    Args:
        parameters: Parameters to move; those without a gradient are left alone.
        radii: The radius of each; negative for a move against the gradient.
        buckets: The buckets of earlier steps.

    Attributes:
        norm: :math:`\lVert g \rVert_2` over all these parameters, a 0-dim tensor, at least float32.
        has_half_precision: Whether a parameter is stored in 16 bits.
    """

    def __init__(self, parameters: list[Tensor], radii: list[float], buckets: Buckets) -> None:
        gradients: list[Any] = [parameter.grad for parameter in parameters]
        if type(None) in set(map(type, gradients)):
            kept = [i for i, gradient in enumerate(gradients) if gradient is not None]
            parameters, radii = [parameters[i] for i in kept], [radii[i] for i in kept]
            gradients = [gradients[i] for i in kept]
        if True in set(map(attrgetter("requires_grad"), gradients)):
            # They have a graph of their own after `backward(create_graph=True)`.
            gradients = [gradient.detach() for gradient in gradients]
        kinds = buckets.of(parameters, gradients)
        of_kinds = [_gradients(kind, gradients) for kind in kinds]
        self.has_half_precision = any(k.parameters[0].dtype in HALF_PRECISION for k in kinds)
        self.norm = _total_norm(of_kinds)
        self._moves: list[tuple[Bucket, list[Tensor], float]] = []
        for kind, of_kind in zip(kinds, of_kinds, strict=True):
            additions, alpha = _move(kind, of_kind, radii, self.norm)
            if alpha:  # Else the host has seen that it is no finite step.
                self._moves.append((kind, additions, alpha))
        self._saved: list[tuple[list[Tensor], list[Tensor]]] = []

    def apply(self) -> None:
        """Move the parameters to w + eps, once."""
        _guards.check_no_parametrization_cache()
        _guards.check_resharded([kind.parameters for kind, _, _ in self._moves])
        with torch.no_grad():
            for kind, _, _ in self._moves:
                tensors = _local(kind.parameters)
                self._saved.append((tensors, kind.copies(tensors)))
            # Autocast keeps half-precision copies of the weights: each pass must make its own.
            torch.clear_autocast_cache()
            for (tensors, _), (_, additions, alpha) in zip(self._saved, self._moves, strict=True):
                _guards.foreach_add_(tensors, additions, alpha=alpha)
        # Else the gradients would take up memory during the second pass.
        self._moves.clear()

    def restore(self) -> None:
        """Put w back bit for bit, also where :meth:`apply` failed halfway."""
        with torch.no_grad():
            for tensors, copies in self._saved:
                _guards.foreach_copy_(tensors, copies)
        torch.clear_autocast_cache()


def _by_kind(parameters: list[Tensor], gradients: list[Tensor]) -> list[Bucket]:
    """Group the parameters by all that a foreach call wants alike."""
    buckets: dict[object, Bucket] = {}
    seen: set[int] = set()
    for place, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        _guards.check_not_flattened(parameter)
        sharding = [getattr(parameter, name, None) for name in ("placements", "device_mesh")]
        kind = (parameter.device, parameter.dtype, gradient.dtype, gradient.layout, *sharding)
        bucket = buckets.setdefault(kind, Bucket())
        bucket.parameters.append(parameter)
        bucket.places.append(place)
    return list(buckets.values())


def _gradients(kind: Bucket, gradients: list[Tensor]) -> list[Tensor]:
    """Return the gradients of a bucket's parameters, fit for arithmetic."""
    gradients = [gradients[place] for place in kind.places]
    if gradients[0].is_sparse:
        return [gradient.coalesce() for gradient in gradients]
    placements = getattr(kind.parameters[0], "placements", None)
    if placements is None:
        return gradients
    # Under tensor parallelism the gradient of a replicated parameter is a partial sum per rank.
    return [
        g if g.placements == placements else g.redistribute(placements=placements)  # type: ignore[attr-defined]
        for g in gradients
    ]


def _total_norm(gradients: list[list[Tensor]]) -> Tensor:
    """Return the L2 norm of all gradients, on the first one's device; 0 if there are none."""
    norms = [_norm(tensors) for tensors in gradients]
    if len(norms) < 2:
        return norms[0] if norms else torch.zeros(())
    dtype = torch.float64 if any(n.dtype is torch.float64 for n in norms) else torch.float32
    alike = [_send(norm.to(dtype), norms[0].device) for norm in norms]
    return torch.linalg.vector_norm(torch.stack(alike))  # type: ignore[no-any-return]


def _norm(tensors: list[Tensor]) -> Tensor:
    """Return the L2 norm of tensors that share device and dtype, over every shard of them."""
    # Summed in 16 bits, a norm above 65504 would be infinite and the perturbation would vanish.
    dtype = torch.float32 if tensors[0].dtype in HALF_PRECISION else None
    norms = _guards.foreach_norm(_values(tensors), 2, dtype=dtype)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    # A DTensor, told by its method: importing its class would double this package's import time.
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def _move(
    kind: Bucket, gradients: list[Tensor], radii: list[float], norm: Tensor
) -> tuple[list[Tensor], float]:
    """Return radius * g / norm: what to add, and how many times; 0 times if that is not finite."""
    gradients = _local(gradients)
    device, radius = kind.parameters[0].device, radii[kind.places[0]]
    # One bucket for all radii: each gradient has its own, relative to the first.
    shares = [radii[i] / radius for i in kind.places] if len(set(radii)) > 1 else None
    if gradients[0].dtype is torch.float16:
        # A scale below 6e-8 is 0 in float16, and float16 gradients of a scaled loss need one.
        gradients = [gradient.to(torch.float32) for gradient in gradients]
    if device.type == norm.device.type == "cpu":
        # Nothing to wait for on the CPU, and a plain number saves two passes over the gradients.
        length = norm.item()
        scale = radius / length if length else math.inf
        if not abs(scale) <= torch.finfo(norm.dtype).max:  # inf or NaN
            scale = 0.0
        return gradients if shares is None else _times(gradients, shares), scale
    norm = _send(norm, device)
    is_valid = torch.isfinite(norm) & torch.isfinite(radius / norm)
    # In memory of their own: gradients may share theirs, with each other and with the user's.
    additions = _times(gradients, torch.where(is_valid, radius / norm, 0))
    values = _values(additions)
    if shares is not None:
        _guards.foreach_mul_(values, shares)
    # 0 times NaN is NaN. As integers the same bits become 0, so that a broken gradient moves
    # nothing without the host having to ask whether it is broken.
    bits = [_as_integers(value) for value in values]
    _guards.foreach_mul_(bits, is_valid.to(bits[0].dtype))
    return additions, 1.0


def _times(tensors: list[Tensor], factors: Tensor | list[float]) -> list[Tensor]:
    """Return the tensors times one factor or one each, in memory of their own."""
    if not tensors[0].is_sparse:
        return list(_guards.foreach_mul(tensors, factors))
    products = [tensor.clone() for tensor in tensors]
    _guards.foreach_mul_(_values(products), factors)
    return products


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
