"""Sub-batches in which rare targets are as likely as their weights say."""

import torch
from torch import Generator, Tensor

from balanced_sam._checks import check_real, check_type


def draw_balanced(weights: Tensor, size: int, *, generator: Generator | None = None) -> Tensor:
    r"""Draw samples without replacement, each time with probability proportional to weight.

    .. math:: P(i \mid \text{drawn before}) = \frac{q_i}{\sum_{j \text{ not drawn}} q_j}

    For an ascent step on a part of the batch, whose loss then needs no weights: where a sample is
    drawn as often as its weight says, the mean over the drawn is the balanced loss, up to what is
    lost by drawing none twice. On an accelerator the host does not wait.

    Args:
        weights: Weights of the samples, shape ``(N,)``, unit-free, non-negative; on a CPU their
            values are checked, elsewhere that would be a host sync.
        size: How many to draw, from 1 to N. Samples of weight 0 come last.
        generator: Where the randomness comes from, on the device of ``weights``; torch's default
            one if None.

    Returns:
        Indices of the drawn samples, shape ``(size,)``, int64, on the device of ``weights``, in the
        order in which they were drawn.

    Raises:
        TypeError: If ``weights`` is not a dense tensor of real numbers, or ``size`` no integer.
        ValueError: If ``weights`` is no vector, or holds NaN, infinite or negative values, or
            ``size`` is not from 1 to N.

    References:
        Efraimidis and Spirakis (2006), `Weighted random sampling with a reservoir
        <https://doi.org/10.1016/j.ipl.2005.11.003>`_.

    Example:
        >>> import torch
        >>> from balanced_sam import draw_balanced
        >>> weights = torch.tensor([1.0, 0.0, 5.0])
        >>> draw_balanced(weights, 2).sort().values
        tensor([0, 2])
    """
    check_real("weights", weights)
    if weights.dim() != 1:
        raise ValueError(f"Expected `weights` to have shape (N,), but got {tuple(weights.shape)}.")
    if isinstance(size, bool):
        raise TypeError("Expected `size` to be int, but got bool.")
    check_type("size", size, int)
    if not 1 <= size <= len(weights):
        raise ValueError(f"Expected `size` to be from 1 to {len(weights)}, but got {size}.")
    rates = weights.detach().to(torch.promote_types(weights.dtype, torch.float32))
    if rates.device.type == "cpu" and not ((rates >= 0) & torch.isfinite(rates)).all():
        raise ValueError(
            "Expected `weights` to be non-negative and finite, but got values from "
            f"{rates.min().item()} to {rates.max().item()}."
        )
    if generator is not None:
        check_type("generator", generator, Generator)
        if generator.device.type != weights.device.type:
            raise ValueError(
                f"Expected `generator` on the device of `weights`, {weights.device}, but got "
                f"{generator.device}."
            )
    # Of clocks that each ring at a rate of their own, the first `size`; logarithms keep small ones.
    times = torch.empty_like(rates).exponential_(generator=generator).log() - rates.log()
    return times.topk(size, largest=False).indices
