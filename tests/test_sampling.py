"""Sub-batches drawn by weight: the right distribution, without replacement, on device."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from balanced_sam import draw_balanced

WEIGHTS = st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=12)


@given(weights=WEIGHTS, data=st.data())
def test_drawn_are_different_samples_of_positive_weight_first(
    weights: list[float], data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, len(weights)))
    drawn = draw_balanced(torch.tensor(weights), size)
    assert drawn.shape == (size,)
    assert drawn.dtype == torch.int64
    assert len(set(drawn.tolist())) == size
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < len(weights)
    positive = sum(weight > 0 for weight in weights)
    assert sum(weights[i] > 0 for i in drawn) == min(size, positive)


def frequency(weights: list[float], size: int, wanted: tuple[int, ...], draws: int) -> float:
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor(weights)
    hits = sum(
        tuple(draw_balanced(values, size, generator=generator).tolist()) == wanted
        for _ in range(draws)
    )
    return hits / draws


@pytest.mark.parametrize("order", [*itertools.permutations(range(3), 2)])
def test_each_draw_is_proportional_to_the_weights_that_are_left(order: tuple[int, int]) -> None:
    weights, draws = [1.0, 2.0, 5.0], 4000
    first, second = order
    expected = weights[first] / 8 * weights[second] / (8 - weights[first])
    # Four standard deviations of a share.
    tolerance = 4 * math.sqrt(expected * (1 - expected) / draws)
    assert frequency(weights, 2, order, draws) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("scale", [1e-38, 1e-44, 1.0, 1e37])
def test_scale_of_the_weights_does_not_matter(scale: float) -> None:
    share = frequency([1.0 * scale, 3.0 * scale], 1, (1,), 4000)
    exact = (torch.tensor([3.0 * scale]) / torch.tensor([4.0 * scale])).item()
    assert share == pytest.approx(exact, abs=0.03)


def test_generator_decides_what_is_drawn() -> None:
    weights = torch.rand(1000)
    draws = [
        draw_balanced(weights, 50, generator=torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_without_a_generator_torchs_seed_decides() -> None:
    weights = torch.rand(1000)
    draws = []
    for _ in range(2):
        torch.manual_seed(5)
        draws.append(draw_balanced(weights, 50))
    assert torch.equal(*draws)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8]
)
def test_any_real_dtype_is_drawn_from(dtype: torch.dtype) -> None:
    weights = torch.tensor([0, 1, 0, 4, 0], dtype=dtype)
    assert set(draw_balanced(weights, 2).tolist()) == {1, 3}


def test_weights_are_left_as_they_are_and_no_gradient_flows() -> None:
    weights = torch.rand(10, requires_grad=True)
    before = weights.detach().clone()
    draw_balanced(weights, 3)
    assert torch.equal(weights, before)
    assert weights.grad is None


class Reads(TorchDispatchMode):
    """Counts what makes the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_host_reads_nothing_on_an_accelerator() -> None:
    weights = torch.rand(8, device="meta")
    with Reads() as reads:
        drawn = draw_balanced(weights, 3)
    assert drawn.device == weights.device
    assert drawn.shape == (3,)
    waits = {"aten::_local_scalar_dense", "aten::nonzero", "aten::multinomial", "aten::is_nonzero"}
    assert reads.calls
    assert not waits & {*reads.calls}


VECTOR = torch.tensor([1.0, 2.0])
BAD: list[tuple[Any, Any, type[Exception], str]] = [
    ([1.0, 2.0], 1, TypeError, "Expected `weights` to be a torch.Tensor, but got list"),
    (torch.ones(2, 1), 1, ValueError, r"Expected `weights` to have shape \(N,\), but got \(2, 1\)"),
    (torch.ones(2, dtype=torch.bool), 1, TypeError, "Expected `weights` to hold floats or int"),
    (torch.tensor([1.0, -1.0]), 1, ValueError, "Expected `weights` to be non-negative and finite"),
    (torch.tensor([1.0, math.nan]), 1, ValueError, "Expected `weights` to be non-negative and fin"),
    (torch.tensor([1.0, math.inf]), 1, ValueError, "Expected `weights` to be non-negative and fin"),
    (VECTOR, 0, ValueError, "Expected `size` to be from 1 to 2, but got 0"),
    (VECTOR, 3, ValueError, "Expected `size` to be from 1 to 2, but got 3"),
    (torch.ones(0), 1, ValueError, "Expected `size` to be from 1 to 0, but got 1"),
    (VECTOR, 1.0, TypeError, "Expected `size` to be int, but got float"),
    (VECTOR, True, TypeError, "Expected `size` to be int, but got bool"),
]


@pytest.mark.parametrize(("weights", "size", "error", "message"), BAD)
def test_bad_input_is_refused(
    weights: Any, size: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        draw_balanced(weights, size)


def test_generator_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="Expected `generator` to be Generator, but got int"):
        draw_balanced(VECTOR, 1, generator=3)  # type: ignore[arg-type]


def test_mean_over_the_drawn_approaches_the_balanced_loss() -> None:
    """With small parts of a large batch, where drawing none twice hardly matters."""
    torch.manual_seed(0)
    losses, weights = torch.rand(2000).double(), torch.rand(2000).double()
    means: list[Tensor] = [losses[draw_balanced(weights, 20)].mean() for _ in range(3000)]
    balanced = (losses * weights).sum() / weights.sum()
    error = torch.stack(means).std() / math.sqrt(len(means))
    assert abs(torch.stack(means).mean() - balanced) < 4 * error + 1e-3
