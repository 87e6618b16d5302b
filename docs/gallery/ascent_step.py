r"""
The ascent step
===============

One step of :class:`~balanced_sam.BalancedSAM` on a loss of two parameters, beside one of SGD, and
where many steps lead.
"""

# %%
# The network :math:`x \mapsto w_2 w_1 x` with one sample, input 1 and target 1, has the loss
# :math:`L(w) = (w_1 w_2 - 1)^2 / 2`. Every point of the curve :math:`w_1 w_2 = 1` is a minimum,
# of loss 0. The valley along it is widest at (1, 1) and gets narrower away from there: its
# curvature is :math:`w_1^2 + w_2^2`.

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.optim import SGD

from balanced_sam import BalancedSAM

ASCENT, BSAM, PLAIN = "#0072B2", "#D55E00", "#000000"
RHO = 0.4


def loss_at(w: Tensor) -> Tensor:
    """Return the loss at points of shape ``(..., 2)``."""
    return (w.prod(-1) - 1).square() / 2


def draw_contours(x: tuple[float, float], y: tuple[float, float], height: float) -> plt.Axes:
    """Return new axes with the contours of the loss, in a figure of a height in inches."""
    _, axes = plt.subplots(figsize=(5, height), dpi=150, layout="constrained")
    columns, rows = torch.linspace(*x, 200), torch.linspace(*y, 200)
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    levels = [0.01, 0.05, 0.15, 0.4, 0.8, 1.5, 2.5, 4, 6, 9]
    lines = axes.contour(columns, rows, loss_at(grid), levels, colors="#999999", linewidths=0.8)
    axes.clabel(lines, fontsize=8)
    valley = columns[columns > 1 / y[1]]
    axes.plot(valley, 1 / valley, color="#009E73", linewidth=1.5, label="minima, loss 0")
    axes.set_aspect("equal")
    axes.set_xlabel("First parameter (unit-free)")
    axes.set_ylabel("Second parameter (unit-free)")
    return axes


# %%
# One step
# --------
# SGD moves against the gradient at :math:`w`. BSAM goes up first, by
# :math:`\hat\epsilon = \rho \, \nabla L(w) / \lVert \nabla L(w) \rVert_2`, and takes the gradient
# there. Inside :meth:`BalancedSAM.perturbed <balanced_sam.BalancedSAM.perturbed>` the parameters
# are at :math:`w + \hat\epsilon`. Afterwards they are back at :math:`w`, bit for bit, and
# :meth:`BalancedSAM.step <balanced_sam.BalancedSAM.step>` moves them from there.

w = nn.Parameter(torch.tensor([1.9, 0.8]))
optimizer = BalancedSAM([w], SGD([w], lr=0.1), rho=RHO)
start = w.detach().clone()

loss_at(w).backward()
after_sgd = start - 0.1 * w.grad
with optimizer.perturbed():
    above = w.detach().clone()
    loss_at(w).backward()
optimizer.step()
after_bsam = w.detach().clone()
print(f"Length of the ascent: {(above - start).norm():.3f}, rho: {RHO}")

# %%
# The arrow back from :math:`w + \hat\epsilon` is the descent that the gradient there asks for. BSAM
# takes it from :math:`w`.

ARROWS = {
    "ascent, from w to w + ε": (start, above, ASCENT),
    "against the gradient at w + ε": (above, above + after_bsam - start, "#E69F00"),
    "BSAM: the same, from w": (start, after_bsam, BSAM),
    "SGD: against the gradient at w": (start, after_sgd, PLAIN),
}
axes = draw_contours((1.4, 2.6), (0.35, 1.3), height=4.8)
for label, (tail, head, color) in ARROWS.items():
    axes.quiver(
        *tail,
        *(head - tail),
        color=color,
        label=label,
        width=0.008,
        scale=1,
        scale_units="xy",
        angles="xy",
        zorder=3,
    )
axes.plot(*start, "o", color=PLAIN, zorder=4)
axes.annotate("w", start, (7, -3), textcoords="offset points")
axes.annotate("w + ε", above, (5, 3), textcoords="offset points", color=ASCENT)
axes.figure.legend(fontsize=9, loc="outside lower center", ncols=1)
plt.show()

# %%
# Many steps
# ----------
# SGD stops at the first minimum that it comes to. BSAM does not stop there: it swings across the
# valley. The gradient at :math:`w + \hat\epsilon` also moves it along the valley, to where that is
# wider. After 150 steps it is near (1, 1). It goes on swinging as long as ``rho`` and the
# learning rate stay as they are. The losses of large networks have many more dimensions and need
# not look like this one.


def follow(rho: float) -> Tensor:
    """Return the points of 150 steps, shape ``(151, 2)``; with a rho of 0 they are those of SGD."""
    w = nn.Parameter(torch.tensor([2.6, 0.9]))
    optimizer = BalancedSAM([w], SGD([w], lr=0.05), rho=rho)

    def closure() -> Tensor:
        loss = loss_at(w)
        loss.backward()
        return loss

    points = [w.detach().clone()]
    for _ in range(150):
        optimizer.step(closure)
        points.append(w.detach().clone())
    return torch.stack(points)


axes = draw_contours((0.4, 3.0), (0.0, 2.0), height=4.2)
for label, rho, color, style in (
    ("SGD", 0.0, PLAIN, "s-"),
    (f"BSAM, rho = {RHO}", RHO, BSAM, "o-"),
):
    points = follow(rho)
    axes.plot(*points.T, style, color=color, ms=2.5, lw=0.8, label=label)
    print(f"{label:16} ends at ({points[-1, 0]:.2f}, {points[-1, 1]:.2f})")
axes.plot(2.6, 0.9, "D", color=ASCENT, label="start")
axes.figure.legend(fontsize=9, loc="outside lower center", ncols=2)
plt.show()
