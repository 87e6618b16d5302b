"""Label density: the smoothed counts (LDS) against scipy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import convolve1d, gaussian_filter1d
from scipy.signal.windows import triang

from balanced_sam import smooth_counts
from support import strategies


def scipy_window(kernel: str, size: int, sigma: float) -> np.ndarray:
    """Return the kernel as the benchmark code of LDS asks scipy for it."""
    if kernel == "triangular":
        return triang(size)
    if kernel == "laplace":
        return np.exp(-np.abs(np.arange(size) - size // 2) / sigma)
    impulse = np.zeros(size)
    impulse[size // 2] = 1
    window = gaussian_filter1d(impulse, sigma=sigma)
    return window / window.max()


@pytest.mark.parametrize("kernel", ["gaussian", "triangular", "laplace"])
@pytest.mark.parametrize("size", [1, 3, 5, 9, 15])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0, 7.5])
def test_response_to_one_sample_equals_the_kernel_of_scipy(
    kernel: str, size: int, sigma: float
) -> None:
    counts = torch.zeros(31, dtype=torch.int64)
    counts[15] = 1
    smoothed = smooth_counts(counts, kernel=kernel, size=size, sigma=sigma).numpy()
    window = smoothed[15 - size // 2 : 16 + size // 2]
    np.testing.assert_allclose(window, scipy_window(kernel, size, sigma), rtol=0, atol=1e-6)
    assert smoothed.sum() == pytest.approx(window.sum(), abs=1e-12)


@pytest.mark.parametrize("kernel", ["gaussian", "triangular", "laplace"])
@pytest.mark.parametrize(("boundary", "mode"), [("zeros", "constant"), ("reflect", "reflect")])
@settings(max_examples=40, deadline=None)
@given(counts=strategies.counts(), half=st.integers(0, 7), sigma=st.floats(0.2, 10))
def test_smoothing_equals_convolution_by_scipy(
    kernel: str, boundary: str, mode: str, counts: torch.Tensor, half: int, sigma: float
) -> None:
    size = 2 * half + 1
    smoothed = smooth_counts(counts, kernel=kernel, size=size, sigma=sigma, boundary=boundary)
    window = scipy_window(kernel, size, sigma)
    expected = convolve1d(counts.double().numpy(), window, mode=mode, cval=0.0)
    assert smoothed.dtype is torch.float64
    np.testing.assert_allclose(smoothed.numpy(), expected, rtol=1e-9, atol=1e-6)


def test_defaults_are_the_gaussian_of_size_5_and_sigma_2_with_zeros_outside() -> None:
    counts = torch.arange(1, 12)
    explicit = smooth_counts(counts, kernel="gaussian", size=5, sigma=2.0, boundary="zeros")
    assert torch.equal(smooth_counts(counts), explicit)


@settings(max_examples=30, deadline=None)
@given(counts=strategies.counts(), sigma=st.floats(0.1, 10))
def test_triangular_kernel_ignores_sigma(counts: torch.Tensor, sigma: float) -> None:
    smoothed = smooth_counts(counts, kernel="triangular", sigma=sigma)
    assert torch.equal(smoothed, smooth_counts(counts, kernel="triangular"))


@settings(max_examples=30, deadline=None)
@given(counts=strategies.counts(), kernel=st.sampled_from(["gaussian", "triangular", "laplace"]))
def test_smoothing_never_takes_samples_from_a_bin_and_mirrors_with_the_counts(
    counts: torch.Tensor, kernel: str
) -> None:
    before = counts.clone()
    smoothed = smooth_counts(counts, kernel=kernel)
    mirrored = smooth_counts(counts.flip(0), kernel=kernel).flip(0)
    assert torch.equal(counts, before)
    assert (smoothed >= counts * (1 - 1e-12)).all()
    torch.testing.assert_close(smoothed, mirrored)


def test_smoothing_does_not_depend_on_the_default_device() -> None:
    # As on a machine whose default device is a GPU.
    with torch.device("meta"):
        counts = torch.tensor([0, 9, 0], device="cpu")
        smoothed = smooth_counts(counts, kernel="triangular", size=3, boundary="reflect")
        assert smoothed.tolist() == [4.5, 9.0, 4.5]


ONES = torch.ones(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: smooth_counts([1, 2]), TypeError, "`counts` to be a torch.Tensor, but got list"),
        (lambda: smooth_counts(ONES > 0), TypeError, "`counts` to hold floats .* torch.bool"),
        (lambda: smooth_counts(torch.tensor([])), ValueError, "`counts` to hold at least one val"),
        (lambda: smooth_counts(ONES * float("nan")), ValueError, "`counts` to be finite, .* 3 NaN"),
        (lambda: smooth_counts(ONES * 0), ValueError, "at least one sample, but got all zeros"),
        (
            lambda: smooth_counts(torch.tensor([1, -2])),
            ValueError,
            "`counts` to be non-negative, but got -2 in bin 1",
        ),
        (lambda: smooth_counts(ONES, kernel="box"), ValueError, "`kernel` to be one of .* 'box'"),
        (lambda: smooth_counts(ONES, boundary="wrap"), ValueError, "`boundary` to be .* 'wrap'"),
        (lambda: smooth_counts(ONES, size=4), ValueError, "odd positive integer, .* size=4"),
        (lambda: smooth_counts(ONES, size=-1), ValueError, "odd positive integer, .* size=-1"),
        (lambda: smooth_counts(ONES, size=5.0), ValueError, "odd positive integer, .* size=5.0"),
        (lambda: smooth_counts(ONES, kernel=None), ValueError, "`kernel` to be one of .* None"),
        (lambda: smooth_counts(ONES, sigma=0), ValueError, "`sigma` to be positive .* sigma=0"),
        (lambda: smooth_counts(ONES, sigma=-1), ValueError, "`sigma` to be positive .* sigma=-1"),
        (lambda: smooth_counts(ONES, sigma=float("inf")), ValueError, "finite, but got sigma=inf"),
        (lambda: smooth_counts(ONES, sigma=float("nan")), ValueError, "finite, but got sigma=nan"),
    ],
)
def test_error_names_the_argument(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_size_may_be_an_integer_of_numpy() -> None:
    counts = torch.tensor([1, 0, 4])
    assert torch.equal(smooth_counts(counts, size=np.int64(3)), smooth_counts(counts, size=3))


@pytest.mark.parametrize("boundary", ["zeros", "reflect"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_counts_of_a_grid_are_smoothed_along_each_axis(boundary: Any, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 7), min_size=2, max_size=3))
    size = int(np.prod(shape))
    values = data.draw(st.lists(st.integers(0, 9), min_size=size, max_size=size).filter(any))
    counts = torch.tensor(values).reshape(shape)
    window = smooth_counts(torch.tensor([0, 0, 1, 0, 0])).numpy()
    expected = counts.double().numpy()
    for axis in range(len(shape)):
        mode = {"zeros": "constant", "reflect": "reflect"}[boundary]
        expected = convolve1d(expected, window, axis=axis, mode=mode)
    actual = smooth_counts(counts, boundary=boundary)
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-12)
