"""Balanced SAM in float64, from the equations in plain loops: the oracle.

Neither autograd nor ``torch.optim`` is in here; the gradients are written by hand.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Arrays = list[Array]


@dataclass(frozen=True)
class Regression:
    r"""The loss :math:`\frac{1}{N} \sum_i q_i (v \cdot \tanh(W x_i + b) + c - y_i)^2`."""

    x: Array
    y: Array
    q: Array

    def loss(self, weights: Arrays) -> float:
        """Return the loss of ``weights``, which are W, b, v and c."""
        W, b, v, c = weights
        total = 0.0
        for x, y, q in zip(self.x, self.y, self.q, strict=True):
            total += q * (v @ np.tanh(W @ x + b) + c - y) ** 2
        return float(total) / len(self.y)

    def gradient(self, weights: Arrays) -> Arrays:
        """Return the gradient of the loss, an array for each of ``weights``."""
        W, b, v, c = weights
        gradients = [np.zeros_like(w) for w in weights]
        for x, y, q in zip(self.x, self.y, self.q, strict=True):
            hidden = np.tanh(W @ x + b)
            slope = 2 * q * (v @ hidden + c - y) / len(self.y)
            back = slope * v * (1 - hidden**2)
            for total, part in zip(
                gradients, (np.outer(back, x), back, slope * hidden, slope), strict=True
            ):
                total += part
        return gradients

    def weighted(self, q: Array) -> "Regression":
        """Return the same samples with other weights."""
        return Regression(self.x, self.y, q)


def regression(seed: int = 0, *, samples: int = 12) -> tuple[Regression, Arrays]:
    """Return samples with unequal weights, and weights of the model to start from."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(samples, 3))
    y = generator.normal(size=samples)
    q = generator.uniform(0.2, 3.0, size=samples)
    start = [generator.normal(size=shape) for shape in ((4, 3), (4,), (4,), ())]
    return Regression(x, y, q), [np.asarray(w) for w in start]


@dataclass
class SGD:
    """The update of one tensor by gradient descent, with its momentum."""

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    buffer: Array | None = None

    def update(self, w: Array, gradient: Array) -> Array:
        """Return the tensor after one step."""
        d = gradient + self.weight_decay * w
        if self.momentum == 0:
            return w - self.lr * d
        if self.buffer is None:
            self.buffer = d
        else:
            self.buffer = self.momentum * self.buffer + (1 - self.dampening) * d
        return w - self.lr * (d + self.momentum * self.buffer if self.nesterov else self.buffer)


@dataclass
class Adam:
    """The update of one tensor by Adam; by AdamW where the weight decay is decoupled."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False
    steps: int = 0
    first: Array | float = 0.0
    second: Array | float = 0.0

    def update(self, w: Array, gradient: Array) -> Array:
        """Return the tensor after one step."""
        if self.decoupled:
            w = w - self.lr * self.weight_decay * w
        else:
            gradient = gradient + self.weight_decay * w
        self.steps += 1
        self.first = self.betas[0] * self.first + (1 - self.betas[0]) * gradient
        self.second = self.betas[1] * self.second + (1 - self.betas[1]) * gradient**2
        first = self.first / (1 - self.betas[0] ** self.steps)
        second = self.second / (1 - self.betas[1] ** self.steps)
        return w - self.lr * first / (np.sqrt(second) + self.eps)


@dataclass
class Run:
    """What a training run leaves: the weights, and of each step the loss and the sharpness."""

    weights: Arrays
    losses: list[float] = field(default_factory=list)
    sharpnesses: list[float] = field(default_factory=list)


def ascend(weights: Arrays, gradients: Arrays, rhos: Sequence[float]) -> Arrays:
    """Return w + rho g / ||g||; a tensor whose rho is 0 stays, and is not in the norm."""
    squares = [float((g**2).sum()) for g, rho in zip(gradients, rhos, strict=True) if rho != 0]
    norm = math.sqrt(sum(squares))
    moved = []
    for w, g, rho in zip(weights, gradients, rhos, strict=True):
        moved.append(w + rho * g / norm if rho != 0 else w)
    return moved


def train(
    descent: Regression,
    weights: Arrays,
    rules: Sequence[SGD | Adam],
    rhos: Sequence[float],
    *,
    steps: int,
    ascent: Regression | None = None,
    on_ascent: Callable[[Arrays], object] = lambda perturbed: None,
) -> Run:
    """Return the run of ``steps`` steps of Balanced SAM with one rule and one rho a tensor.

    The first gradient is that of ``ascent``, where it differs from ``descent``. ``on_ascent`` is
    called with the perturbed weights.
    """
    run = Run(weights)
    ascent = ascent or descent
    for _ in range(steps):
        perturbed = ascend(run.weights, ascent.gradient(run.weights), rhos)
        on_ascent(perturbed)
        gradients = descent.gradient(perturbed)
        run.losses.append(ascent.loss(run.weights))
        run.sharpnesses.append(descent.loss(perturbed) - ascent.loss(run.weights))
        run.weights = [
            rule.update(w, h) for rule, w, h in zip(rules, run.weights, gradients, strict=True)
        ]
    return run
