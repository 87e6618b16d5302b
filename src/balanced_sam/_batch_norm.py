"""Batch-norm statistics that stay as they are while a block runs."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.parameter import is_lazy

from balanced_sam._checks import check_type

_RUNNING_STATS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def frozen_running_stats(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of every normalization layer as they are while the block runs.

    Layers still normalize with the statistics of their batch in training mode. In the block they
    update copies; afterwards, also after an exception, the very same buffers are back. Blocks may
    be nested. As ``descent_context``, it lets only the unperturbed pass update the statistics::

        BalancedSAM(..., descent_context=partial(frozen_running_stats, model))

    Args:
        module: A module, such as the whole model; BatchNorm, SyncBatchNorm, InstanceNorm and any
            other submodule with buffers of their names (``running_mean``, ``running_var``,
            ``num_batches_tracked``) are kept.

    Yields:
        Nothing.

    Raises:
        TypeError: If ``module`` is not a module.

    Example:
        >>> import torch
        >>> from balanced_sam import frozen_running_stats
        >>> layer = torch.nn.BatchNorm1d(1)
        >>> with frozen_running_stats(layer):
        ...     _ = layer(torch.tensor([[1.0], [3.0]]))
        >>> layer.running_mean
        tensor([0.])
    """
    check_type("module", module, nn.Module)
    originals = [
        (submodule, name, buffer)
        for submodule in module.modules()
        for name, buffer in submodule.named_buffers(recurse=False)
        if name in _RUNNING_STATS and not is_lazy(buffer)
    ]
    try:
        # Other tensors rather than a copy back: a graph built in the block still finds the
        # statistics it was built with when its backward runs after the block.
        for submodule, name, buffer in originals:
            setattr(submodule, name, buffer.clone())
        yield
    finally:
        for submodule, name, buffer in originals:
            setattr(submodule, name, buffer)
