"""Which parameters belong to normalisation layers."""

import re

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from balanced_sam._checks import check_type

_TORCHS_OWN = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
# LlamaRMSNorm, LayerNorm2d, ActNorm, LayerNormalization; not NormalHead.
_NAME = re.compile(r"norm(?!al)|normali[sz]ation", re.IGNORECASE)


def normalization_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the affine parameters (scale and shift) of all normalisation layers.

    To perturb these alone, give them to a built base optimizer that trains all parameters::

        base = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = BalancedSAM(normalization_parameters(model), base, rho=1.0)

    The first pass then computes no other gradient. A useful ``rho`` is larger than that of all
    parameters.

    Args:
        module: A module, such as the whole model. Torch's own normalisation layers count, with
            their subclasses; of others those whose class is named after a norm and whose own
            parameters are vectors, such as ``(C,)`` or ``(1, C, 1, 1)``.

    Returns:
        The parameters, each once, in the order of ``module.modules()``, frozen ones included.

    Raises:
        TypeError: If ``module`` is not a module.
        ValueError: If it has no such parameter.

    References:
        Mueller et al. (2023), `Normalization Layers Are All That Sharpness-Aware Minimization
        Needs <https://arxiv.org/abs/2306.04226>`_.

    Example:
        >>> import torch
        >>> from balanced_sam import normalization_parameters
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
        >>> [tuple(parameter.shape) for parameter in normalization_parameters(model)]
        [(4,), (4,)]
    """
    check_type("module", module, nn.Module)
    found = {
        id(parameter): parameter
        for layer in module.modules()
        if _is_normalization(layer)
        for parameter in layer.parameters(recurse=False)
    }
    if not found:
        raise ValueError(
            "Expected `module` to have normalisation layers with parameters, but got "
            f"{type(module).__name__}, which has none."
        )
    return list(found.values())


def _is_normalization(layer: nn.Module) -> bool:
    """Return whether the layer is torch's, or another so called that holds vectors alone."""
    if isinstance(layer, _TORCHS_OWN):
        return True
    has_name = _NAME.search(type(layer).__name__) is not None
    return has_name and all(_is_vector(p) for p in layer.parameters(recurse=False))


def _is_vector(parameter: nn.Parameter) -> bool:
    """Return whether at most one dimension is larger than 1."""
    return sum(size > 1 for size in parameter.shape) <= 1
