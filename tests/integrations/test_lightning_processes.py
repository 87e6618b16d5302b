"""Lightning's strategies for several processes: two train a network as a plain loop does alone.

Started by ``torchrun``, this file is the script of each process.
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from balanced_sam import BalancedSAM, TargetBins, TargetWeights, weighted_mean

STEPS, SHARE, PROCESSES = 3, 4, 2


def make_data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    size = STEPS * SHARE * PROCESSES
    inputs = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs, 10 * torch.rand(size, generator=generator, dtype=torch.float64))


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)).double()


def make_optimizer(network: nn.Module) -> BalancedSAM:
    base = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return BalancedSAM(network.parameters(), base, rho=0.3)


def balanced_loss(network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    weights = TargetWeights.from_targets(make_data().tensors[1], TargetBins.uniform(0, 10, width=2))
    return weighted_mean((network(inputs) - targets).abs(), weights(targets))


class Regressor(pl.LightningModule):
    """An ordinary module; under ``ModelParallelStrategy`` its network is sharded."""

    def __init__(self) -> None:
        super().__init__()
        self.network = make_network()

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            fully_shard(self.network, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return balanced_loss(self.network, *batch)

    def configure_optimizers(self) -> BalancedSAM:
        return make_optimizer(self.network)


def train_in_each_process(strategy: str, path: str) -> None:
    strategies: dict[str, Any] = {
        "ddp": DDPStrategy,
        "fsdp2": lambda: ModelParallelStrategy(
            data_parallel_size=PROCESSES, tensor_parallel_size=1
        ),
    }
    module = Regressor()
    trainer = pl.Trainer(
        strategy=strategies[strategy](),
        accelerator="cpu",
        devices=PROCESSES,
        max_epochs=1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # Of its own accord Lightning would shuffle.
    data, rank = make_data(), int(os.environ["RANK"])
    sampler = DistributedSampler(data, num_replicas=PROCESSES, rank=rank, shuffle=False)
    trainer.fit(module, DataLoader(data, batch_size=SHARE, sampler=sampler))
    weights = list(module.network.parameters())
    assert isinstance(weights[0], DTensor) == (strategy == "fsdp2")
    whole = [w.full_tensor() if isinstance(w, DTensor) else w for w in weights]
    if trainer.global_rank == 0:
        torch.save([weight.detach() for weight in whole], path)
    # Lightning leaves it to the exit of the process.
    torch.distributed.destroy_process_group()


def train_plainly() -> list[Tensor]:
    """Return the weights after the same steps on whole batches."""
    network = make_network()
    optimizer = make_optimizer(network)
    # The sampler deals out the samples to the processes, one after the other.
    for inputs, targets in DataLoader(make_data(), batch_size=SHARE * PROCESSES):

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            loss = balanced_loss(network, inputs, targets)
            loss.backward()
            return loss

        optimizer.step(closure)
    return [weight.detach() for weight in network.parameters()]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_take_the_steps_of_a_plain_loop(strategy: str, tmp_path: Path) -> None:
    if strategy == "fsdp2" and torch.__version__ < "2.7":
        pytest.skip("Before 2.7 FSDP2 on the CPU calls what `torch.cpu.Stream` lacks")
    path = tmp_path / "weights.pt"
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    done = subprocess.run(
        [sys.executable, "-m", *launch, __file__, strategy, str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(path, weights_only=True), train_plainly())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    train_in_each_process(*sys.argv[1:])
