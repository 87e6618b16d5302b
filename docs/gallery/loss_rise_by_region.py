r"""
Rise of the loss by region
==========================

How much the loss of many-, medium- and few-shot samples rises when the parameters are perturbed,
after training with SQINV and with BSAM.
"""

# %%
# A skewed regression
# -------------------
# The target is the product of three uniform numbers, times 10, and the network sees the three with
# noise. Products near 0 are frequent, those near 10 are rare.

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from balanced_sam import BalancedSAM, ShotRegions, TargetWeights, weighted_mean

torch.manual_seed(0)
factors = torch.rand(1500, 3)
inputs = factors + 0.03 * torch.randn(1500, 3)
targets = 10 * factors.prod(dim=1)

weights = TargetWeights.from_targets(targets)
sample_weights = weights(targets)
regions = ShotRegions.from_weights(weights)
masks = {region: regions.mask(targets, region) for region in ("many", "medium", "few")}
print({region: int(mask.sum()) for region, mask in masks.items()})

# %%
# Training
# --------
# Both methods minimize the same weighted absolute error. With a ``rho`` of 0
# :class:`~balanced_sam.BalancedSAM` takes one pass a step and is the base optimizer: this is SQINV.
# Both get the same number of steps, so BSAM gets twice the passes.


def losses_of(model: nn.Module) -> Tensor:
    """Return the absolute error of each training sample, shape ``(N,)``, in target units."""
    return (model(inputs) - targets).abs()


def train(rho: float, seed: int) -> nn.Module:
    """Return a network after 250 steps on all training samples."""
    torch.manual_seed(seed)
    layers = (nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    model = nn.Sequential(*layers, nn.Flatten(0))
    base = Adam(model.parameters(), lr=0.01)
    optimizer = BalancedSAM(model.parameters(), base, rho=rho)
    scheduler = CosineAnnealingLR(optimizer, 250)

    def closure() -> Tensor:
        loss = weighted_mean(losses_of(model), sample_weights)
        loss.backward()
        return loss

    for _ in range(250):
        optimizer.step(closure)
        scheduler.step()
    return model


# %%
# Perturbing
# ----------
# :math:`\hat\epsilon` is that of the balanced loss over all training samples. It is the same
# direction for the three regions; :meth:`BalancedSAM.perturbed
# <balanced_sam.BalancedSAM.perturbed>` goes there and back.

RADII = torch.linspace(0, 0.2, 6).tolist()


def losses_by_region(model: nn.Module, rho: float) -> list[float]:
    """Return the mean loss of each region at ``w + eps``, in target units."""
    optimizer = BalancedSAM(model.parameters(), SGD(model.parameters()), rho=rho)
    weighted_mean(losses_of(model), sample_weights).backward()
    with optimizer.perturbed(), torch.no_grad():
        losses = losses_of(model)
    optimizer.zero_grad()
    return [losses[mask].mean().item() for mask in masks.values()]


METHODS = {"SQINV": (0.0, "#E69F00", "--"), "BSAM": (0.1, "#D55E00", "-")}
SEEDS = range(4)
losses = {}
for method, (rho, _, _) in METHODS.items():
    models = [train(rho, seed) for seed in SEEDS]
    losses[method] = torch.tensor([[losses_by_region(m, r) for r in RADII] for m in models])

# %%
# The picture
# -----------
# Thick lines are means over four seeds, thin lines are single seeds.

figure, panels = plt.subplots(1, 3, figsize=(5, 3.3), dpi=150, sharey=True, layout="constrained")
for i, (axes, region) in enumerate(zip(panels, masks, strict=True)):
    for method, (_, color, line) in METHODS.items():
        rise = losses[method][:, :, i] - losses[method][:, :1, i]
        axes.plot(RADII, rise.T, line, color=color, linewidth=0.7, alpha=0.6)
        axes.plot(RADII, rise.mean(0), line, color=color, linewidth=2.6, label=method)
    axes.set_title(f"{region.capitalize()}-shot", fontsize=10)
panels[0].set_ylabel("Rise of the loss, target units")
panels[1].set_xlabel("rho of the perturbation (L2 norm, unit-free)")
panels[0].legend(fontsize=9, loc="upper left")
plt.show()

# %%
# For both methods the mean loss of the few-shot samples rises most. After BSAM it rises less than
# after SQINV. But the loss at :math:`w`, before the rise, is higher after BSAM in every region.
# The order of the two methods may be the opposite after fewer steps, or with SGD as base optimizer.
# This is one small task, one ``rho`` and four seeds: it shows what is meant by sharpness per region
# and is no evidence of a gain. Mean and standard deviation over the seeds, in target units:

print(f"{'':6}" + "".join(f"{region:>16}" for region in masks))
for title, at in (("w", 0), (f"w + eps, rho = {RADII[-1]:g}", -1)):
    print(f"Training loss at {title}")
    for method, values in losses.items():
        means, deviations = values[:, at].mean(0), values[:, at].std(0)
        cells = [f"{m:8.3f} ± {d:.3f}" for m, d in zip(means, deviations, strict=True)]
        print(f"{method:6}" + "".join(cells))
