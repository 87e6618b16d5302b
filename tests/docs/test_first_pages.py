"""The pages that a reader meets first: what they show trains, and their weights are right."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from balanced_sam import mean_absolute_error, weighted_mean
from tests.support.pages import OpenPage


def error(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    with torch.no_grad():
        return l1_loss(model(inputs), targets).item()


def test_index_loop_lowers_the_error_and_prints_the_report_by_region(
    open_page: OpenPage, capsys: pytest.CaptureFixture[str]
) -> None:
    page = open_page("index")
    before = error(page["model"], page["test_inputs"], page["test_targets"])
    page.run()
    assert mean_absolute_error(page["predictions"], page["test_targets"]) < before
    assert capsys.readouterr().out.startswith("region  count ")


@pytest.mark.parametrize(
    "steps",
    [
        ["l1_loss(model(inputs), targets)\n"],
        ["from balanced_sam import TargetWeights"],
        ["from balanced_sam import TargetWeights", "base = torch.optim.AdamW"],
        ["from balanced_sam import TargetWeights", "optimizer.perturbed()"],
        ["from balanced_sam import TargetWeights", "weighted_mean(l1_loss("],
    ],
    ids=["as it stood", "weighted", "wrapped", "from davda54/sam", "from pytorch_optimizer"],
)
def test_switch_loop_lowers_the_error(steps: list[str], open_page: OpenPage) -> None:
    page = open_page("switch")
    *earlier, last = steps
    data = page["train_inputs"], page["train_targets"]
    loader = page["loader"]
    # The blocks before bring the names only.
    page.names["loader"] = []
    if earlier:
        page.run(*earlier)
    page.names["loader"] = loader
    before = error(page["model"], *data)
    page.run(last)
    assert error(page["model"], *data) < before


def test_switch_lets_every_bin_count_alike_as_oversampling_does(open_page: OpenPage) -> None:
    page = open_page("switch").run("bins = TargetBins.uniform(0, 10, width=2)")
    targets, losses = page["train_targets"], torch.rand(96)
    index = page["bins"].index(targets)
    expected = torch.stack([losses[index == k].mean() for k in index.unique()]).mean()
    torch.testing.assert_close(weighted_mean(losses, page["weights"](targets)), expected)


def test_several_targets_loop_lowers_the_error_with_a_weight_a_sample(
    open_page: OpenPage,
) -> None:
    page = open_page("several_targets")
    targets, seen = page["test_targets"], page["train_targets"]
    mean, spread = seen.mean(dim=0), seen.std(dim=0)
    with torch.no_grad():
        untrained = mean + spread * page["model"](page["test_inputs"])
    before = ((untrained - targets) / spread).abs().mean()
    page.run("TargetGrid.from_targets")
    assert ((page["predictions"] - targets) / spread).abs().mean() < before
    assert page["weights"](targets).shape == (200,)


def test_several_targets_weights_of_each_output_are_those_of_its_own_target(
    open_page: OpenPage,
) -> None:
    page = open_page("several_targets").run("TargetGrid.from_targets", "each = [")
    predictions, targets = page["predictions"], page["test_targets"]
    losses = ((predictions - targets) / page["spread"]).abs()
    own = torch.stack([page["each"][j](targets[:, j]) for j in range(2)], dim=1)
    assert torch.allclose(page["loss_of"](predictions, targets), weighted_mean(losses, own))
