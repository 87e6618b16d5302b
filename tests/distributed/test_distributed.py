"""BalancedSAM on two processes: DDP, FSDP2, HSDP, tensor parallelism, each against the oracle.

A function named ``on_rank_...`` runs in both processes; the test holds their answers, one a rank,
against a run in a single process.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.algorithms.join import Join
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer

from balanced_sam import (
    BalancedSAM,
    ShotRegions,
    TargetBins,
    TargetGrid,
    region_report,
    weighted_mean,
)
from support import reference
from support.processes import RankError, Ranks

STEPS = 20
RHO = 0.3
LR = 0.02
SAMPLES, START = reference.regression()
Rule = reference.SGD | reference.Adam
BASES: dict[str, tuple[Callable[..., Optimizer], Callable[..., Rule]]] = {
    "momentum": (partial(SGD, momentum=0.9), partial(reference.SGD, momentum=0.9)),
    "adamw": (
        partial(AdamW, weight_decay=0.1),
        partial(reference.Adam, weight_decay=0.1, decoupled=True),
    ),
}
every_base = pytest.mark.parametrize("base", BASES)
both_perturbations = pytest.mark.parametrize("per_rank", [False, True], ids=["global", "per rank"])


def needs_torch(version: str, reason: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(torch.__version__ < version, reason=f"Before {version} {reason}")


# Torch's own faults, on the CPU only; seen in the versions between 2.6 and the one named.
fsdp2 = needs_torch("2.7", "FSDP2 on the CPU calls what `torch.cpu.Stream` lacks")
hsdp = needs_torch("2.10", "FSDP2 on the CPU asserts on the all-reduce of HSDP")
bfloat16 = needs_torch("2.10", "FSDP2 on the CPU trains wrongly in bfloat16, with SGD alone too")
partial_sums = needs_torch(
    "2.10", "DTensor takes wrong steps from partial sums, with SGD alone too"
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    # An operation in place on such a view would be an error; there is none here.
    ignored = [
        "FSDP2-wrapped module .* returned a view tensor",
        "TypedStorage is deprecated",
        "DTensor random operators may not have complete support",  # torch 2.6; none is used
    ]
    with Ranks(tmp_path_factory.mktemp("ranks"), ignored=ignored) as ranks:
        yield ranks


# In one process: the oracle


def part(*samples: int) -> reference.Regression:
    """Return some of the samples."""
    index = list(samples)
    return reference.Regression(SAMPLES.x[index], SAMPLES.y[index], SAMPLES.q[index])


HALVES = [part(*range(6)), part(*range(6, 12))]


def run_alone(
    base: str,
    *,
    batches: Sequence[reference.Regression] = (SAMPLES,) * STEPS,
    frozen: int | None = None,
) -> reference.Run:
    """Return the oracle's run, a step a batch; one of the tensors may be frozen."""
    still = [i == frozen for i in range(len(START))]
    rules = [BASES[base][1](lr=0.0 if is_still else LR) for is_still in still]
    rhos = [0.0 if is_still else RHO for is_still in still]
    run = reference.Run(START)
    for batch in batches:
        step = reference.train(batch, run.weights, rules, rhos, steps=1)
        run.weights = step.weights
        run.losses += step.losses
        run.sharpnesses += step.sharpnesses
    return run


def run_alone_per_rank(
    base: str,
    *,
    steps: Sequence[Sequence[reference.Regression]] = (HALVES,) * STEPS,
    rho_of: Callable[[int, int], float] = lambda step, rank: RHO,
) -> list[reference.Run]:
    """Return the oracle's run of each rank: perturbed by its own gradient, moved by the mean."""
    rules = [BASES[base][1](lr=LR) for _ in START]
    runs = [reference.Run(START) for _ in HALVES]
    for step, parts in enumerate(steps):
        w, gradients = runs[0].weights, []
        for rank, samples in enumerate(parts):
            perturbed = reference.ascend(w, samples.gradient(w), [rho_of(step, rank)] * len(w))
            gradients.append(samples.gradient(perturbed))
            runs[rank].losses.append(samples.loss(w))
            runs[rank].sharpnesses.append(samples.loss(perturbed) - samples.loss(w))
        means = [sum(g) / len(runs) for g in zip(*gradients, strict=True)]
        moved = [rule.update(a, h) for rule, a, h in zip(rules, w, means, strict=True)]
        for run in runs:
            run.weights = moved
    return runs


# In each process


@dataclass(frozen=True)
class Trained:
    """What a rank has after training: the whole weights, however sharded, and what it was told."""

    weights: list[Tensor]
    losses: list[float] = field(default_factory=list)
    sharpnesses: list[float] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)


def make_model() -> nn.Sequential:
    """Return the oracle's model in layers; the second one's shard is empty on the second rank."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    for parameter, array in zip(model.parameters(), START, strict=True):
        parameter.data.copy_(torch.tensor(array).reshape(parameter.shape))
    return model


def make_optimizer(model: nn.Module, base: str = "momentum", **options: Any) -> BalancedSAM:
    make_base = partial(BASES[base][0], lr=LR)
    return BalancedSAM(model.parameters(), make_base, **{"rho": RHO} | options)


def squares(model: nn.Module, samples: reference.Regression) -> Tensor:
    """Return the balanced loss."""
    x, y, q = (torch.tensor(array) for array in (samples.x, samples.y, samples.q))
    return weighted_mean((model(x)[:, 0] - y).square(), q)


def backward(model: nn.Module, samples: reference.Regression) -> Tensor:
    """Return the balanced loss, gradients computed: the closure of most tests."""
    loss = squares(model, samples)
    loss.backward()
    return loss


def own() -> reference.Regression:
    """Return this rank's half of the samples."""
    return HALVES[dist.get_rank()]


def whole(model: nn.Module) -> list[Tensor]:
    """Return copies of the whole weights, gathered from all ranks where they are sharded."""
    return [
        (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for p in model.parameters()
    ]


def local(parameter: Tensor) -> Tensor:
    """Return what this rank has of a parameter."""
    return (parameter.to_local() if isinstance(parameter, DTensor) else parameter).detach()


def train(
    model: nn.Module,
    optimizer: BalancedSAM,
    closures: Sequence[Callable[[], Tensor]],
    scaler: GradScaler | None = None,
) -> Trained:
    """Take a step a closure."""
    trained = Trained([])
    for closure in closures:
        trained.losses.append(float(optimizer.step(closure, scaler=scaler)))
        trained.sharpnesses.append(optimizer.sharpness.item())
        if scaler is not None:
            scaler.update()
            trained.scales.append(scaler.get_scale())
    trained.weights.extend(whole(model))
    return trained


# In the test


def assert_weights(ranks: Sequence[Trained], expected: reference.Arrays) -> None:
    """Assert that the ranks have the same bits, and that these are the oracle's numbers."""
    for weights in zip(*(trained.weights for trained in ranks), strict=True):
        assert torch.equal(*weights)
    for weight, array in zip(ranks[0].weights, expected, strict=True):
        np.testing.assert_allclose(weight.numpy().reshape(array.shape), array, rtol=1e-9, atol=1e-9)


def assert_told(trained: Sequence[Trained], expected: reference.Run) -> None:
    """Assert that the loss and the sharpness are the mean of what the ranks were told."""
    losses = np.mean([rank.losses for rank in trained], axis=0)
    sharpnesses = np.mean([rank.sharpnesses for rank in trained], axis=0)
    np.testing.assert_allclose(losses, expected.losses, rtol=1e-9)
    np.testing.assert_allclose(sharpnesses, expected.sharpnesses, rtol=1e-7, atol=1e-10)


# DDP

DDP = {
    "plain": {},
    "gradients as views of the buckets": {"gradient_as_bucket_view": True},
    "static graph": {"static_graph": True},
    "static graph, gradients as views": {"static_graph": True, "gradient_as_bucket_view": True},
}
every_ddp = pytest.mark.parametrize("options", DDP.values(), ids=DDP)


def on_rank_ddp(base: str, options: dict[str, Any], frozen: int | None = None) -> Trained:
    model = make_model()
    if frozen is not None:
        list(model.parameters())[frozen].requires_grad_(requires_grad=False)
    replica = DistributedDataParallel(model, **options)
    optimizer = make_optimizer(replica, base)
    return train(model, optimizer, [partial(backward, replica, own())] * STEPS)


@pytest.mark.works_with("DistributedDataParallel")
@every_base
@every_ddp
def test_ddp_equals_one_process_on_all_samples(
    ranks: Ranks, base: str, options: dict[str, Any]
) -> None:
    trained = ranks.run(on_rank_ddp, base, options)
    expected = run_alone(base)
    assert_weights(trained, expected.weights)
    assert_told(trained, expected)
    assert trained[0].losses != trained[1].losses


@pytest.mark.works_with("DistributedDataParallel")
@every_base
def test_ddp_leaves_frozen_parameters_alone(ranks: Ranks, base: str) -> None:
    expected = run_alone(base, frozen=1)
    assert_weights(ranks.run(on_rank_ddp, base, {}, 1), expected.weights)


class Gated(nn.Module):
    """A model one of whose parameters is used at times, and another never."""

    def __init__(self, is_open: bool) -> None:
        super().__init__()
        self.body = make_model()
        self.gate = nn.Linear(3, 1, bias=False).double()
        self.gate.weight.data.fill_(0.5)
        self.never = nn.Linear(3, 1).double()
        self.never.weight.data.fill_(0.5)
        self.never.bias.data.fill_(0.5)
        self.is_open = is_open

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.gate(x) if self.is_open else self.body(x)


def train_gated_alone(base: str, are_open: Sequence[bool]) -> list[Tensor]:
    """Return the weights of one model that is open for the one half or the other."""
    model = Gated(is_open=True)
    optimizer = make_optimizer(model, base)

    def closure() -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for samples, is_open in zip(HALVES, are_open, strict=True):
            model.is_open = is_open
            total = total + squares(model, samples) / 2
        total.backward()
        return total

    return train(model, optimizer, [closure] * STEPS).weights


def assert_tensors(trained: Sequence[Trained], expected: list[Tensor]) -> None:
    """Assert that the ranks have the same bits, and numbers close to these."""
    assert_weights(trained, [weight.numpy() for weight in expected])


def on_rank_gated_ddp(base: str) -> Trained:
    model = Gated(is_open=dist.get_rank() == 1)
    replica = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = make_optimizer(replica, base)
    return train(model, optimizer, [partial(backward, replica, own())] * STEPS)


@pytest.mark.works_with("DistributedDataParallel")
@every_base
def test_ddp_with_parameters_unused_on_a_rank_or_on_all_equals_one_process(
    ranks: Ranks, base: str
) -> None:
    trained = ranks.run(on_rank_gated_ddp, base)
    expected = train_gated_alone(base, [False, True])
    assert_tensors(trained, expected)
    # The gate was opened, and what no rank used stayed.
    fresh = Gated(is_open=True)
    assert not torch.equal(trained[0].weights[4], fresh.gate.weight)
    assert torch.equal(trained[0].weights[5], fresh.never.weight)


# Batches of unequal size

UNEVEN = [[part(0, 1, 2, 3), part(4, 5, 6, 7)], [part(8, 9, 10), part(11)]] * (STEPS // 2)


def on_rank_uneven_ddp(base: str) -> Trained:
    model = make_model()
    replica = DistributedDataParallel(model)
    optimizer = make_optimizer(replica, base)

    def closure(samples: reference.Regression) -> Tensor:
        size = len(samples.y)
        sizes = torch.tensor(float(size))
        dist.all_reduce(sizes)
        # DDP takes the mean over the ranks: a sample counts alike on each with this share.
        loss = squares(replica, samples) * (size * dist.get_world_size() / sizes)
        loss.backward()
        return loss

    return train(model, optimizer, [partial(closure, parts[dist.get_rank()]) for parts in UNEVEN])


@pytest.mark.works_with("DistributedDataParallel")
def test_ddp_with_uneven_batches_weighted_by_their_size_equals_one_process(ranks: Ranks) -> None:
    trained = ranks.run(on_rank_uneven_ddp, "momentum")
    batches = [part(*range(8)), part(*range(8, 12))] * (STEPS // 2)
    expected = run_alone("momentum", batches=batches)
    assert_weights(trained, expected.weights)
    assert_told(trained, expected)


def on_rank_join(per_rank: bool) -> Trained:
    model = make_model()
    replica = DistributedDataParallel(model)
    options = {"ascent_context": replica.no_sync} if per_rank else {}
    optimizer = make_optimizer(replica, "momentum", **options)
    # The second rank has three batches more than the first.
    steps = STEPS - 3 + 3 * dist.get_rank()
    with Join([replica]):
        train(model, optimizer, [partial(backward, replica, own())] * steps)
    return Trained(whole(model))


@pytest.mark.works_with("DistributedDataParallel")
@both_perturbations
def test_ddp_join_lets_a_rank_run_out_of_batches(ranks: Ranks, per_rank: bool) -> None:
    trained = ranks.run(on_rank_join, per_rank)
    # It goes on as if its samples weighed nothing.
    nothing = HALVES[0].weighted(np.zeros(6))
    if per_rank:
        expected = run_alone_per_rank(
            "momentum",
            steps=[HALVES] * (STEPS - 3) + [[nothing, HALVES[1]]] * 3,
            rho_of=lambda step, rank: 0.0 if step >= STEPS - 3 and rank == 0 else RHO,
        )[0]
    else:
        rest = SAMPLES.weighted(np.concatenate([nothing.q, HALVES[1].q]))
        expected = run_alone("momentum", batches=[SAMPLES] * (STEPS - 3) + [rest] * 3)
    assert_weights(trained, expected.weights)


# Micro-batches


def on_rank_accumulating(wrap: str) -> Trained:
    model = make_model()
    replica = DistributedDataParallel(model) if wrap == "DDP" else shard(model)
    optimizer = make_optimizer(replica)
    rank = dist.get_rank()
    pieces = [part(*range(6 * rank + i, 6 * rank + i + 2)) for i in (0, 2, 4)]

    def closure() -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i, samples in enumerate(pieces):
            is_last = i == len(pieces) - 1
            if wrap == "DDP":
                context = nullcontext() if is_last else replica.no_sync()
            else:
                context = nullcontext()
                replica.set_requires_gradient_sync(is_last)
                replica.set_reshard_after_backward(is_last)
            with context:
                loss = squares(replica, samples) / len(pieces)
                loss.backward()
            total += loss.detach()
        return total

    return train(model, optimizer, [closure] * STEPS)


@pytest.mark.parametrize("wrap", ["DDP", pytest.param("FSDP2", marks=fsdp2)])
def test_micro_batches_that_synchronise_once_equal_one_process(ranks: Ranks, wrap: str) -> None:
    trained = ranks.run(on_rank_accumulating, wrap)
    expected = run_alone("momentum")
    assert_weights(trained, expected.weights)
    assert_told(trained, expected)


# A perturbation per rank


def on_rank_per_rank(base: str, options: dict[str, Any]) -> Trained:
    model = make_model()
    replica = DistributedDataParallel(model, **options)
    optimizer = make_optimizer(replica, base, ascent_context=replica.no_sync)
    return train(model, optimizer, [partial(backward, replica, own())] * STEPS)


@pytest.mark.works_with("DistributedDataParallel")
@every_base
@pytest.mark.parametrize("options", list(DDP.values())[:2], ids=list(DDP)[:2])
def test_ddp_without_sync_in_the_ascent_perturbs_per_rank(
    ranks: Ranks, base: str, options: dict[str, Any]
) -> None:
    trained = ranks.run(on_rank_per_rank, base, options)
    expected = run_alone_per_rank(base)
    assert_weights(trained, expected[0].weights)
    for rank, run in zip(trained, expected, strict=True):
        assert_told([rank], run)


def on_rank_per_rank_after_one_pass(options: dict[str, Any]) -> Trained:
    model = make_model()
    replica = DistributedDataParallel(model, **options)
    optimizer = make_optimizer(replica, ascent_context=replica.no_sync)
    closure = partial(backward, replica, own())
    (group,) = optimizer.param_groups
    group["rho"] = 0.0
    train(model, optimizer, [closure])
    group["rho"] = RHO
    return train(model, optimizer, [closure] * (STEPS - 1))


@pytest.mark.works_with("DistributedDataParallel")
@every_ddp
def test_ddp_with_a_static_graph_perturbs_per_rank_once_a_pass_was_synchronised(
    ranks: Ranks, options: dict[str, Any]
) -> None:
    trained = ranks.run(on_rank_per_rank_after_one_pass, options)
    expected = run_alone_per_rank("momentum", rho_of=lambda step, rank: RHO if step else 0.0)
    assert_weights(trained, expected[0].weights)


# Loss scaling with an overflow on one rank


def on_rank_scaled(wrap: str, per_rank: bool, passes: Sequence[bool]) -> Trained:
    """Overflow on the first rank, in these passes of the third step of six."""
    model = make_model()
    replica = DistributedDataParallel(model) if wrap == "DDP" else shard(model)
    options = {"ascent_context": replica.no_sync} if per_rank else {}
    optimizer = make_optimizer(replica, **options)
    scaler = GradScaler("cpu", init_scale=8.0, growth_interval=2)

    def closure(step: int) -> Tensor:
        loss = squares(replica, own())
        if step == 2 and dist.get_rank() == 0 and optimizer.is_perturbed in passes:
            loss = loss * torch.inf
        scaler.scale(loss).backward()
        return loss

    return train(model, optimizer, [partial(closure, i) for i in range(6)], scaler)


OVERFLOWS = {"first": [False], "second": [True], "both": [False, True]}


@pytest.mark.parametrize("passes", OVERFLOWS.values(), ids=OVERFLOWS)
@pytest.mark.parametrize(
    ("wrap", "per_rank"),
    [("DDP", False), ("DDP", True), pytest.param("FSDP2", False, marks=fsdp2)],
    ids=["DDP, global", "DDP, per rank", "FSDP2"],
)
def test_overflow_on_one_rank_is_skipped_by_all(
    ranks: Ranks, wrap: str, per_rank: bool, passes: list[bool]
) -> None:
    trained = ranks.run(on_rank_scaled, wrap, per_rank, passes)
    # An overflow of a rank's own first gradient costs that rank its perturbation, nobody the step.
    is_skipped = not (per_rank and passes == [False])
    scales = [8.0, 16.0, 8.0, 8.0, 16.0, 16.0] if is_skipped else [8.0, 16.0, 16.0, 32.0, 32.0, 64]
    assert [rank.scales for rank in trained] == [scales] * 2
    if not per_rank:
        expected = run_alone("momentum", batches=[SAMPLES] * 5)
    elif is_skipped:
        expected = run_alone_per_rank("momentum", steps=[HALVES] * 5)[0]
    else:
        expected = run_alone_per_rank(
            "momentum",
            steps=[HALVES] * 6,
            rho_of=lambda step, rank: 0.0 if (step, rank) == (2, 0) else RHO,
        )[0]
    assert_weights(trained, expected.weights)


# Sharded parameters


def shard(model: nn.Sequential, **options: Any) -> Any:
    """Shard the first layer, and the rest with the whole."""
    fully_shard(model[0], **options)
    return fully_shard(model, **options)


def shard_and_replicate(model: nn.Sequential, *, shape: tuple[int, int]) -> None:
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
    shard(model, mesh=mesh)


def split_layers(model: nn.Sequential) -> None:
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallelize_module(model, init_device_mesh("cpu", (2,)), plan)


def split_one_layer(model: nn.Sequential) -> None:
    """Leave the second layer as it is, its parameters plain tensors."""
    plan = {"0": ColwiseParallel(output_layouts=Replicate())}
    parallelize_module(model, init_device_mesh("cpu", (2,)), plan)


def split_layers_and_shard(model: nn.Sequential) -> None:
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("shard", "split"))
    parallelize_module(model, mesh["split"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    shard(model, mesh=mesh["shard"])


def replicate(model: nn.Sequential) -> None:
    """Replicate the weights and split the samples, so that each gradient is a partial sum."""
    distribute_module(
        model,
        init_device_mesh("cpu", (2,)),
        input_fn=lambda _, inputs, mesh: distribute_tensor(inputs[0], mesh, [Shard(0)]),
        output_fn=lambda _, output, mesh: output.full_tensor(),
    )


# How the model is distributed, and whether each rank computes the loss of its half only.
LAYOUTS: dict[str, tuple[Callable[[nn.Sequential], object], bool]] = {
    "FSDP2": (shard, True),
    "HSDP, one replica": (partial(shard_and_replicate, shape=(1, 2)), True),
    "HSDP, one shard": (partial(shard_and_replicate, shape=(2, 1)), True),
    "tensor parallel": (split_layers, False),
    "tensor parallel, in part": (split_one_layer, False),
    "tensor parallel, FSDP2": (split_layers_and_shard, True),
    "partial gradients": (replicate, False),
}


def on_rank_sharded(layout: str, base: str, frozen: int | None = None) -> Trained:
    model = make_model()
    if frozen is not None:
        list(model.parameters())[frozen].requires_grad_(requires_grad=False)
    distribute, is_half = LAYOUTS[layout]
    distribute(model)
    assert isinstance(model[0].weight, DTensor)
    optimizer = make_optimizer(model, base)
    closure = partial(backward, model, own() if is_half else SAMPLES)
    return train(model, optimizer, [closure] * STEPS)


NEEDS = {
    "FSDP2": fsdp2,
    "HSDP, one replica": hsdp,
    "HSDP, one shard": hsdp,
    "tensor parallel, FSDP2": fsdp2,
    "partial gradients": partial_sums,
}


@pytest.mark.works_with("FSDP2")
@pytest.mark.parametrize(
    ("layout", "base"),
    [
        pytest.param(layout, base, marks=NEEDS.get(layout, ()))
        for layout, base in [*((layout, "momentum") for layout in LAYOUTS), ("FSDP2", "adamw")]
    ],
)
def test_sharded_model_equals_one_process(ranks: Ranks, layout: str, base: str) -> None:
    trained = ranks.run(on_rank_sharded, layout, base)
    expected = run_alone(base)
    assert_weights(trained, expected.weights)
    assert_told(trained, expected)


@fsdp2
@pytest.mark.works_with("FSDP2")
def test_fsdp2_leaves_frozen_parameters_alone(ranks: Ranks) -> None:
    expected = run_alone("momentum", frozen=1)
    assert_weights(ranks.run(on_rank_sharded, "FSDP2", "momentum", 1), expected.weights)


def on_rank_shard_sizes() -> list[int]:
    return [local(p).numel() for p in shard(make_model()).parameters()]


@pytest.mark.works_with("FSDP2")
def test_fsdp2_leaves_a_rank_without_some_parameters(ranks: Ranks) -> None:
    assert ranks.run(on_rank_shard_sizes) == [[6, 2, 4, 1], [6, 2, 0, 0]]


def on_rank_gated_fsdp2() -> Trained:
    model = Gated(is_open=True)
    fully_shard(model.body)
    fully_shard(model)
    optimizer = make_optimizer(model)
    return train(model, optimizer, [partial(backward, model, own())] * STEPS)


@fsdp2
@pytest.mark.works_with("FSDP2")
def test_fsdp2_with_unused_parameters_equals_one_process(ranks: Ranks) -> None:
    trained = ranks.run(on_rank_gated_fsdp2)
    assert_tensors(trained, train_gated_alone("momentum", [True, True]))


def half_squares(model: Callable[[Tensor], Tensor], samples: reference.Regression) -> Tensor:
    """Return the balanced loss, computed in float32 of a model's float16 predictions."""
    x, y, q = (torch.tensor(a, dtype=torch.float32) for a in (samples.x, samples.y, samples.q))
    return weighted_mean((model(x.bfloat16())[:, 0].float() - y).square(), q)


def on_rank_mixed_precision() -> Trained:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = shard(make_model().float(), mp_policy=policy)
    optimizer = make_optimizer(model)

    def closure() -> Tensor:
        loss = half_squares(model, own())
        loss.backward()
        return loss

    return train(model, optimizer, [closure] * STEPS)


def train_mixed_precision_alone(rho: float) -> list[Tensor]:
    model = make_model().float()
    optimizer = make_optimizer(model, rho=rho)

    def predict(x: Tensor) -> Tensor:
        halved = {name: weight.bfloat16() for name, weight in model.named_parameters()}
        return functional_call(model, halved, x)

    def closure() -> Tensor:
        total = torch.zeros(())
        for samples in HALVES:
            loss = half_squares(predict, samples) / 2
            loss.backward()
            total += loss.detach()
        return total

    return train(model, optimizer, [closure] * STEPS).weights


@bfloat16
@pytest.mark.works_with("FSDP2")
def test_fsdp2_in_bfloat16_equals_one_process_in_bfloat16(ranks: Ranks) -> None:
    trained = ranks.run(on_rank_mixed_precision)
    expected = train_mixed_precision_alone(RHO)
    # Another order of summation may round a weight to the next bfloat16, rarely.
    torch.testing.assert_close(trained[0].weights, expected, rtol=1e-3, atol=1e-3)
    assert all(map(torch.equal, trained[0].weights, trained[1].weights))
    plain = train_mixed_precision_alone(0.0)
    assert max((a - b).abs().max().item() for a, b in zip(plain, expected, strict=True)) > 0.02


def on_rank_counting() -> dict[str, int]:
    """Return how often the ranks talk while the perturbation is applied and taken back."""
    from torch.distributed.tensor.debug import CommDebugMode

    model = shard(make_model())
    optimizer = make_optimizer(model)
    backward(model, own())
    with CommDebugMode() as counter, optimizer.perturbed():
        pass
    return {str(name).rpartition(".")[-1]: n for name, n in counter.get_comm_counts().items()}


@fsdp2
@pytest.mark.works_with("FSDP2")
def test_fsdp2_perturbation_costs_one_all_reduce(ranks: Ranks) -> None:
    assert ranks.run(on_rank_counting) == [{"all_reduce": 1}] * 2


def on_rank_fsdp1(use_orig_params: bool) -> str:
    model = make_model()
    device = torch.device("cpu")
    flat = FullyShardedDataParallel(model, device_id=device, use_orig_params=use_orig_params)
    optimizer = make_optimizer(flat)
    before = [p.detach().clone() for p in flat.parameters()]
    with pytest.raises(TypeError) as error:
        optimizer.step(partial(backward, flat, own()))
    assert all(map(torch.equal, flat.parameters(), before))
    return str(error.value)


@pytest.mark.works_with("FSDP2")
@pytest.mark.parametrize("use_orig_params", [True, False])
def test_fsdp1_is_an_error_that_names_fsdp2(ranks: Ranks, use_orig_params: bool) -> None:
    for message in ranks.run(on_rank_fsdp1, use_orig_params):
        assert message.startswith("Expected parameters sharded by FSDP2 (`fully_shard`), but got")


def on_rank_gathered(way: str) -> str:
    model = shard(make_model())
    optimizer = make_optimizer(model)
    if way == "kept after backward":
        model.set_reshard_after_backward(False)
    before = [local(p).clone() for p in optimizer.param_groups[0]["params"]]

    def closure() -> Tensor:
        loss = backward(model, own())
        if way == "forward pass after backward":
            with torch.no_grad():
                model(torch.tensor(own().x))
        return loss

    with pytest.raises(RuntimeError) as error:
        optimizer.step(closure)
    assert all(map(torch.equal, map(local, optimizer.param_groups[0]["params"]), before))
    return str(error.value)


@fsdp2
@pytest.mark.works_with("FSDP2")
@pytest.mark.parametrize("way", ["kept after backward", "forward pass after backward"])
def test_fsdp2_weights_that_are_still_gathered_are_an_error(ranks: Ranks, way: str) -> None:
    for message in ranks.run(on_rank_gathered, way):
        assert message.startswith("Expected FSDP2 to have resharded the weights after the first")


# Checkpoints onto another number of ranks


def wrapped(wrap: str, **options: Any) -> tuple[nn.Module, BalancedSAM, Callable[[], Tensor]]:
    """Return what trains in one process, or on each rank of two."""
    model: nn.Module = make_model()
    samples = SAMPLES if wrap == "one process" else own()
    if wrap == "DDP":
        model = DistributedDataParallel(model)
    elif wrap == "FSDP2":
        shard(model)
    return model, make_optimizer(model, "adamw", **options), partial(backward, model, samples)


def states(model: nn.Module, optimizer: BalancedSAM) -> dict[str, Any]:
    """Return the states as torch's distributed checkpoints want them."""
    return dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))


def on_rank_saving(wrap: str, path: Path) -> None:
    model, optimizer, closure = wrapped(wrap)
    train(model, optimizer, [closure] * (STEPS // 2))
    dcp.save(states(model, optimizer), checkpoint_id=path)


def on_rank_resuming(wrap: str, path: Path) -> tuple[Trained, float]:
    """Return what was trained, and the rho that came out of the checkpoint."""
    model, optimizer, closure = wrapped(wrap, rho=0.01)
    for parameter in model.parameters():
        parameter.data.zero_()
    loaded = states(model, optimizer)
    dcp.load(loaded, checkpoint_id=path)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=loaded["model"],
        optim_state_dict=loaded["optimizer"],
    )
    trained = train(model, optimizer, [closure] * (STEPS // 2))
    return trained, optimizer.param_groups[0]["rho"]


@pytest.mark.works_with("torch.distributed.checkpoint")
@pytest.mark.filterwarnings("ignore:torch.distributed is .*unavailable or uninitialized")
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("DDP", "one process"),
        pytest.param("FSDP2", "one process", marks=fsdp2),
        ("one process", "DDP"),
        pytest.param("one process", "FSDP2", marks=fsdp2),
        pytest.param("DDP", "FSDP2", marks=fsdp2),
    ],
)
def test_checkpoint_resumed_on_other_ranks_equals_the_uninterrupted_run(
    ranks: Ranks, tmp_path: Path, first: str, second: str
) -> None:
    if first == "one process":
        on_rank_saving(first, tmp_path)
    else:
        ranks.run(on_rank_saving, first, tmp_path)
    if second == "one process":
        resumed = [on_rank_resuming(second, tmp_path)] * 2
    else:
        resumed = ranks.run(on_rank_resuming, second, tmp_path)
    assert [rho for _, rho in resumed] == [RHO] * 2
    assert_weights([trained for trained, _ in resumed], run_alone("adamw").weights)


# Metrics

REGIONS = ShotRegions(TargetBins([0, 10, 20, 30]), ["many", "medium", "few"])
PREDICTIONS = torch.tensor([4.0, 9.0, 25.0, 12.0, 3.0])
TARGETS = torch.tensor([5.0, 5.0, 21.0, 14.0, 9.0])
GRID = TargetGrid(REGIONS.bins, TargetBins([0, 10, 30]))
OF_BINS = (REGIONS, PREDICTIONS, TARGETS)
OF_GRID = (
    ShotRegions(GRID, ["many", "few"] * 3),
    torch.stack([PREDICTIONS, TARGETS.flip(0)], dim=1),
    torch.stack([TARGETS, PREDICTIONS], dim=1),
)


def on_rank_metrics(
    regions: ShotRegions, predictions: Tensor, targets: Tensor
) -> tuple[dict[str, float], float]:
    """Return what is computed over both ranks, and this rank's own number of samples."""
    # Not above: its import is half of what a process costs, and this alone needs it.
    from balanced_sam.torchmetrics import RegionMetrics

    metrics = RegionMetrics(regions)
    mine = slice(0, 1) if dist.get_rank() == 0 else slice(1, 5)
    for prediction, target in zip(predictions[mine], targets[mine], strict=True):
        metrics.update(prediction, target)
    computed = {name: value.item() for name, value in metrics.compute().items()}
    return computed, metrics.report().rows["all"]["count"]


@pytest.mark.parametrize("data", [OF_BINS, OF_GRID], ids=["bins", "grid"])
def test_region_metrics_are_those_of_the_samples_of_all_ranks(ranks: Ranks, data: Any) -> None:
    regions, predictions, targets = data
    answers = ranks.run(on_rank_metrics, *data)
    expected = {
        f"{region}/{name}": value
        for region, row in region_report(predictions, targets, regions).rows.items()
        for name, value in row.items()
    }
    for computed, _ in answers:
        assert computed == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert [count for _, count in answers] == [1, 4]


# Failures


def on_rank_going_on() -> Trained:
    """Fail in the second pass on every rank alike, as for want of memory, and go on."""
    model = shard(make_model())
    optimizer = make_optimizer(model)

    def failing() -> Tensor:
        loss = squares(model, own())
        if optimizer.is_perturbed:
            raise MemoryError
        loss.backward()
        return loss

    with pytest.raises(MemoryError):
        optimizer.step(failing)
    # Else the root would keep the weights that it gathered at w + eps.
    model.reset_iter_state()
    return train(model, optimizer, [partial(backward, model, own())] * STEPS)


@pytest.mark.works_with("FSDP2")
@pytest.mark.skipif(not hasattr(FSDPModule, "reset_iter_state"), reason="torch lacks it")
def test_fsdp2_goes_on_after_an_exception_once_its_state_is_reset(ranks: Ranks) -> None:
    trained = ranks.run(on_rank_going_on)
    expected = run_alone("momentum")
    assert_weights(trained, expected.weights)
    assert_told(trained, expected)


def on_rank_failing(wrap: str, folder: Path) -> None:
    """Raise in the second pass on the first rank only; note how the weights were left."""
    model = make_model()
    replica = DistributedDataParallel(model) if wrap == "DDP" else shard(model)
    optimizer = make_optimizer(replica)
    parameters = list(model.parameters())
    before = [local(p).clone() for p in parameters]

    def closure() -> Tensor:
        if optimizer.is_perturbed and dist.get_rank() == 0:
            raise MemoryError("no memory for the second pass")
        return backward(replica, own())

    try:
        optimizer.step(closure)
    finally:
        # Not gathered: the other rank may be gone.
        is_restored = all(map(torch.equal, map(local, parameters), before))
        left = {"is_restored": is_restored, "is_perturbed": optimizer.is_perturbed}
        (folder / f"{dist.get_rank()}.json").write_text(json.dumps(left))


@pytest.mark.parametrize("wrap", ["DDP", pytest.param("FSDP2", marks=fsdp2)])
def test_rank_that_raises_in_the_second_pass_surfaces_and_holds_up_nobody(
    ranks: Ranks, tmp_path: Path, wrap: str
) -> None:
    with pytest.raises(RankError) as failure:
        ranks.run(on_rank_failing, wrap, tmp_path)
    errors = failure.value.errors
    assert "MemoryError: no memory for the second pass" in errors[0]
    assert "Connection closed by peer" in errors[1]
    for rank in range(2):
        left = json.loads((tmp_path / f"{rank}.json").read_text())
        assert left == {"is_restored": True, "is_perturbed": False}
