"""Which parameters are those of normalisation layers, whatever their class."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from balanced_sam import BalancedSAM, normalization_parameters


class LlamaRMSNorm(nn.Module):
    """As written in many repositories: a class of its own with a vector."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.weight * inputs / inputs.square().mean(-1, keepdim=True).sqrt()


class LayerNormalization(nn.Module):
    """Scale and shift that broadcast over a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, 4, 1, 1))


class SpatialBatchNorm(nn.BatchNorm2d):
    """A subclass under another name."""


class NormalHead(nn.Module):
    """Named after a distribution, not after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))


class NormedLinear(nn.Linear):
    """A matrix under a name that speaks of a norm."""


class PreNorm(nn.Module):
    """A wrapper with a layer and what comes after it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LayerNorm(4)
        self.after = nn.Linear(4, 4)


LAYERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4), 2),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), 2),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(4), 2),
    "SyncBatchNorm": (lambda: nn.SyncBatchNorm(4), 2),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(4, affine=True), 2),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), 2),
    "LayerNorm": (lambda: nn.LayerNorm(4), 2),
    "LayerNorm of a matrix": (lambda: nn.LayerNorm((4, 4)), 2),
    "LayerNorm without shift": (lambda: nn.LayerNorm(4, bias=False), 1),
    "RMSNorm": (lambda: nn.RMSNorm(4), 1),
    "RMSNorm of one's own": (lambda: LlamaRMSNorm(4), 1),
    "vectors that broadcast": (LayerNormalization, 2),
    "subclass": (lambda: SpatialBatchNorm(4), 2),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(4, 4),
    "Conv2d": lambda: nn.Conv2d(4, 4, 1),
    "PReLU": lambda: nn.PReLU(4),
    "Embedding": lambda: nn.Embedding(4, 4),
    "not affine": lambda: nn.BatchNorm2d(4, affine=False),
    "weight norm": lambda: weight_norm(nn.Linear(4, 4)),
    "NormalHead": NormalHead,
    "NormedLinear": lambda: NormedLinear(4, 4),
}


@pytest.mark.parametrize(("make", "count"), LAYERS.values(), ids=LAYERS.keys())
def test_layer_gives_all_its_own_parameters(make: Callable[[], nn.Module], count: int) -> None:
    layer = make()
    assert len(list(layer.parameters())) == count
    found = normalization_parameters(layer)
    assert [id(p) for p in found] == [id(p) for p in layer.parameters()]


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS.keys())
def test_other_layer_gives_none(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match="Expected `module` to have normalisation layers"):
        normalization_parameters(make())


@given(st.lists(st.sampled_from([*LAYERS, *OTHERS]), min_size=1).filter(lambda n: {*n} & {*LAYERS}))
def test_parameters_of_a_network_are_those_of_its_layers_in_order(names: list[str]) -> None:
    layers = [(LAYERS[name][0] if name in LAYERS else OTHERS[name])() for name in names]
    expected = [
        id(parameter)
        for name, layer in zip(names, layers, strict=True)
        if name in LAYERS
        for parameter in layer.parameters()
    ]
    nested = nn.Sequential(nn.ModuleDict({str(i): layer for i, layer in enumerate(layers)}))
    assert [id(p) for p in normalization_parameters(nested)] == expected


def test_wrapper_gives_the_layer_and_not_what_comes_after() -> None:
    wrapper = PreNorm()
    assert [id(p) for p in normalization_parameters(wrapper)] == [
        id(wrapper.layer.weight),
        id(wrapper.layer.bias),
    ]


def test_shared_parameter_comes_once_and_a_frozen_one_too() -> None:
    first, second = nn.LayerNorm(4), nn.LayerNorm(4)
    second.weight = first.weight
    first.bias.requires_grad_(False)
    found = normalization_parameters(nn.Sequential(first, second, first))
    assert [id(p) for p in found] == [id(first.weight), id(first.bias), id(second.bias)]


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match="Expected `module` to be Module, but got list"):
        normalization_parameters([nn.LayerNorm(4)])  # type: ignore[arg-type]


def test_only_they_are_perturbed_and_all_are_trained() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    inputs = torch.randn(8, 3)
    before = [p.detach().clone() for p in model.parameters()]
    moved = []

    def closure() -> Tensor:
        moved.append(
            [not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
        )
        loss = model(inputs).square().mean()
        loss.backward()
        return loss

    base = torch.optim.SGD(model.parameters(), lr=0.1)
    BalancedSAM(normalization_parameters(model), base, rho=0.5).step(closure)
    assert moved == [[False] * 6, [False, False, True, True, False, False]]
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
