"""The measurement of what SAM costs: who takes part, what is counted, and the arithmetic."""

import copy
import itertools
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from transformers import ResNetBackbone, ResNetConfig, ViTConfig

from benchmarks.__main__ import main
from benchmarks.costs.ledger import Ledger
from benchmarks.costs.overhead import contenders, figures, gpu, report, timing, workloads
from benchmarks.costs.overhead import record as measurement
from benchmarks.costs.overhead.contenders import CONTENDERS, PEERS, RHO, available
from benchmarks.costs.overhead.figures import MANY
from benchmarks.costs.overhead.measuring import (
    all_counts,
    calls_by_groups,
    counts,
    whole_step,
)
from benchmarks.costs.overhead.workloads import WORKLOADS, Case, VisionTransformer, Workload
from benchmarks.networks.resnet import STAGES, AgeNetwork, Encoder
from support import reference

CPU, META = torch.device("cpu"), torch.device("meta")


# Who takes part


@pytest.mark.parametrize("name", available())
def test_contender_takes_the_step_of_the_reference(name: str) -> None:
    samples, start = reference.regression()
    rhos = [0.0 if name == "two_passes" else RHO] * 4
    rules = [reference.SGD(lr=0.05, momentum=0.9) for _ in start]
    run = reference.train(samples, start, rules, rhos, steps=20)
    W, b, v, c = parameters = [nn.Parameter(torch.tensor(w)) for w in start]
    x, y, q = map(torch.tensor, (samples.x, samples.y, samples.q))
    seen: list[list[Tensor]] = []

    def closure() -> Tensor:
        seen.append([p.detach().clone() for p in parameters])
        loss = (q * (torch.tanh(x @ W.T + b) @ v + c - y).square()).mean()
        loss.backward()
        return loss

    step = CONTENDERS[name](parameters, partial(torch.optim.SGD, lr=0.05, momentum=0.9))
    for _ in range(20):
        step(closure)
    assert len(seen) == 40
    # Some take the norm in 32 bits.
    torch.testing.assert_close(
        parameters, [torch.tensor(w) for w in run.weights], rtol=1e-5, atol=1e-6
    )
    moved = torch.cat([(p - w).flatten() for w, p in zip(*seen[:2], strict=True)]).norm().item()
    assert moved == pytest.approx(rhos[0], rel=1e-5)


@pytest.mark.parametrize("name", ["two_passes", "balanced_sam"])
def test_contender_with_a_scaler_takes_the_step_without_one(name: str) -> None:
    ends = []
    for scaled in (True, False):
        torch.manual_seed(0)
        network, x = nn.Linear(3, 1), torch.randn(5, 3)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if scaled else None
        closure = workloads.training_closure(nn.Sequential(network), x, "float32", scaler)
        make = CONTENDERS[name]
        step = make(list(network.parameters()), partial(torch.optim.SGD, lr=0.1), scaler=scaler)
        for _ in range(3):
            step(closure)
        ends.append(network.weight.detach())
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("installed", [True, False])
def test_peers_take_part_where_they_are_installed(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contenders, "find_spec", lambda name: object() if installed else None)
    assert set(CONTENDERS) - set(available()) == (set() if installed else set(PEERS))
    left_out = [name for name in PEERS if any(name in s for s in measurement.not_run(CPU))]
    assert left_out == ([] if installed else list(PEERS))


def test_where_there_is_no_gpu_the_record_says_what_was_not_run() -> None:
    assert set(gpu.NOT_RUN) <= {
        s.removesuffix(", for want of a GPU") for s in measurement.not_run(CPU)
    }
    assert not set(gpu.NOT_RUN) & {
        s.removesuffix(", for want of a GPU") for s in measurement.not_run(torch.device("cuda"))
    }


# What is trained

SIZES = {
    "mlp": (18_817, 6),
    "500 tensors": (4_680_000, 500),
    "resnet18": (11_177_025, 62),
    "resnet50": (23_510_081, 161),
    "vit_b": (85_799_425, 200),
}


@pytest.mark.parametrize("name", WORKLOADS)
def test_workload_has_its_size_and_gives_one_number_a_sample(name: str) -> None:
    workload = WORKLOADS[name]
    # Autocast, which the ResNets' head leaves, knows no meta device.
    device = META if name == "vit_b" else CPU
    with device:
        network = workload.network()
        assert network(workload.inputs(device)[:2]).shape == (2,)
    shapes = [p.shape for p in network.parameters()]
    assert (sum(s.numel() for s in shapes), len(shapes)) == SIZES[name]


def test_residual_adds_its_input() -> None:
    x = torch.tensor([-1.0, 2.0])
    assert workloads.Residual(nn.ReLU())(x).tolist() == [-1.0, 4.0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_closure_trains_every_weight_in_its_precision(precision: str) -> None:
    torch.manual_seed(0)
    network, seen = workloads.mlp(), []
    network[0].register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    closure = workloads.training_closure(network, WORKLOADS["mlp"].inputs(CPU), precision)
    loss = closure()
    assert loss.item() > 0
    assert seen == [getattr(torch, precision)]
    assert all(p.grad is not None for p in network.parameters())
    assert all(network[k].weight.grad.any() for k in (0, 2, 4))


# What is counted


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (lambda a, b: a + b, 30),
        (lambda a, b: a.add_(b), 30),
        (lambda a, b: a.mul_(2), 20),
        (lambda a, b: a.copy_(b), 20),
        (lambda a, b: a.clone(), 20),
        (lambda a, b: a.sum(), 11),
        (lambda a, b: a.view(2, 5).t(), 0),
        (lambda a, b: a.detach(), 0),
        (lambda a, b: torch._foreach_add_([a, b], [b, b]), 60),
        (lambda a, b: torch._foreach_copy_([a, a], [b, b]), 40),
        (lambda a, b: torch._foreach_norm([a, b]), 22),
    ],
    ids=[
        *("add", "add_", "mul_", "copy_", "clone", "sum", "view", "detach"),
        *("foreach_add_", "foreach_copy_", "foreach_norm"),
    ],
)
def test_ledger_counts_the_words_read_and_written(
    work: Callable[[Tensor, Tensor], Any], words: int
) -> None:
    a, b = torch.ones(10), torch.ones(10)
    with Ledger() as ledger:
        work(a, b)
    assert ledger.words == words
    assert ledger.launches == (words > 0)
    assert ledger.host_reads == 0


def test_ledger_counts_what_the_host_reads() -> None:
    with Ledger() as ledger:
        assert torch.ones(3).sum().item() == 3
        assert bool(torch.ones(()) > 0)
    assert ledger.host_reads == 2


def test_ledger_tells_the_peak_from_what_lives() -> None:
    before = torch.ones(1000)
    with Ledger() as ledger:
        kept = [before + k for k in range(5)]
        del kept[1:]
        for _ in range(3):
            kept[0] = kept[0] * 2
    assert kept[0].view(10, 100)[0, 0] == 8
    assert ledger.living_bytes == 4_000
    assert 20_000 <= ledger.peak_bytes < 20_100


SHAPES = [torch.Size([20, 30]), torch.Size([30]), torch.Size([4_000])]
WORDS = {
    "two_passes": (0, 0),
    "balanced_sam": (8, 12),
    "bare": (8, 10),
    "published": (11, 11),
    "temperon": (9, 9),
    "pytorch_optimizer": (12, 12),
}
KEPT = {"balanced_sam": (1, 0), "bare": (1, 1), "published": (1, 1)}


@pytest.mark.parametrize("name", available())
def test_counts_are_those_of_the_arithmetic(name: str) -> None:
    by_path = all_counts(SHAPES, {name: CONTENDERS[name]})
    for path, words, kept in zip(by_path, WORDS[name], KEPT.get(name, (0, 0)), strict=True):
        counted = by_path[path][name]
        assert counted["words"] == pytest.approx(words, abs=0.02)
        assert counted["kept_copies"] == kept
        assert counted["peak_copies"] >= (name != "two_passes")
    assert by_path["accelerator"][name]["host_reads"] == 0


def test_counts_of_ours_do_not_grow_with_the_tensors_but_those_of_the_published_class_do() -> None:
    calls = {
        name: [
            counts([torch.Size([3])] * tensors, CONTENDERS[name], device=CPU)["calls"]
            for tensors in (2, 5, 50)
        ]
        for name in ("balanced_sam", "published")
    }
    ours, published = calls.values()
    assert ours[0] == ours[1] == ours[2] > 0
    # A norm, a copy, a quotient (of two calls), a product, a sum and a difference.
    assert [later - published[0] for later in published[1:]] == [7 * 3, 7 * 48]


def test_calls_of_ours_do_not_grow_with_the_groups() -> None:
    assert calls_by_groups(1) <= calls_by_groups(200) <= 1.3 * calls_by_groups(1)


def test_peak_of_ours_is_one_copy() -> None:
    for device in (CPU, META):
        assert counts(SHAPES, CONTENDERS["balanced_sam"], device=device)["peak_copies"] == 1


# How it is measured


class FakeClock:
    """Says how long each piece of work takes, and keeps what was asked."""

    def __init__(self, seconds: dict[Any, float]) -> None:
        self.seconds = seconds
        self.blocks: list[tuple[Any, int]] = []

    def __call__(self, work: Any, calls: int) -> float:
        self.blocks.append((work, calls))
        return self.seconds[work]


def measured_by(
    seconds: dict[str, float], budget: float
) -> tuple[timing.Rounds, list[tuple[str, int]]]:
    works: dict[str, Any] = {name: partial(str, name) for name in seconds}
    clock = FakeClock({works[name]: value for name, value in seconds.items()})
    before: list[int] = []
    rounds = timing.interleaved(
        works, seconds=budget, clock=clock, before=lambda: before.append(len(clock.blocks))
    )
    names = {work: name for name, work in works.items()}
    blocks = [(names[work], calls) for work, calls in clock.blocks]
    # After the two blocks of each warm-up, once before each block.
    assert before[len(works) :] == list(range(2 * len(works), len(blocks)))
    return rounds, blocks[2 * len(works) :]


def test_rounds_take_turns_and_fill_the_time() -> None:
    rounds, blocks = measured_by({"slow": 0.5, "fast": 0.001, "mid": 0.01}, budget=40 * 0.54)
    assert {name: len(values) for name, values in rounds.items()} == dict.fromkeys(rounds, 40)
    assert dict(blocks) == {"slow": 1, "fast": 20, "mid": 2}
    orders = [tuple(name for name, _ in blocks[k : k + 3]) for k in range(0, 120, 3)]
    # Nothing is always first, nor always after the same.
    assert set(orders) == set(itertools.permutations(rounds))


@pytest.mark.parametrize(("budget", "expected"), [(0.0, timing.FEWEST), (1e6, timing.MOST)])
def test_number_of_rounds_has_bounds(budget: float, expected: int) -> None:
    rounds, _ = measured_by({"one": 0.1, "two": 0.2}, budget)
    assert {len(values) for values in rounds.values()} == {expected}


def test_host_clock_gives_the_median_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.accumulate([0.0, 1.0, 5.0, 2.0, 5.0, 900.0])  # Three calls: 1, 2 and 900 s.
    monkeypatch.setattr(timing.time, "perf_counter", partial(next, now))
    calls: list[None] = []
    assert timing.host_clock(lambda: calls.append(None), 3) == 2.0
    assert len(calls) == 3


def test_spread_is_the_median_and_the_quartiles() -> None:
    assert timing.spread([5.0, 1.0, 2.0, 4.0, 3.0]) == [3.0, 2.0, 4.0]
    assert timing.spread([1 / 3] * 5) == [0.3333] * 3


# What it comes to


def test_sam_part_is_a_step_without_the_passes() -> None:
    rounds = {
        "two_passes": [1.0, 2.0, 3.0],
        "balanced_sam": [3.0, 4.0, 6.0],
        "pytorch_optimizer": [5.0, 6.0, 15.0],
    }
    found = figures.of_sam_part(rounds)
    assert found["ms"]["balanced_sam"] == [2000.0, 2000.0, 2500.0]
    assert found["ms"]["pytorch_optimizer"] == [4000.0, 4000.0, 8000.0]
    # Within each round: 2/4, 2/4 and 3/12 of the peer's.
    assert found["ours_over"] == {"pytorch_optimizer": [0.5, 0.375, 0.5]}


def test_whole_step_is_compared_within_each_round() -> None:
    rounds = {"two_passes": [1.0, 2.0, 4.0], "balanced_sam": [1.1, 2.4, 8.0]}
    found = figures.of_whole_step(rounds)
    assert found["two_passes_ms"] == [2000.0, 1500.0, 3000.0]
    assert found["over_two_passes"] == {"balanced_sam": [1.2, 1.15, 1.6]}


def good_record() -> dict[str, Any]:
    ours = {"calls": 9, "words": 8.0, "host_reads": 0, "peak_copies": 1.0, "kept_copies": 0.0}
    count = {path: {"balanced_sam": dict(ours)} for path in ("cpu", "accelerator")}
    part = {"ours_over": {"pytorch_optimizer": [0.5, 0, 1], "bare": [1.05, 1, 2]}}
    step = {"over_two_passes": {"balanced_sam": [1.1, 1, 2]}}
    names = ("mlp", "resnet18")
    return {
        "sam_part": {name: copy.deepcopy(part) for name in (*names, MANY)},
        "calls_by_groups": {1: 10, 200: 13},
        "whole_step": {"mlp, float32": step},
        "counts": {name: copy.deepcopy(count) for name in names},
    }


def test_goals_are_met_up_to_their_bounds() -> None:
    goals = figures.goals(good_record())
    assert all(goal["met"] for goal in goals)
    assert len(goals) == 3 + 1 + 1 + 1 + 2 + 2 + 1


@pytest.mark.parametrize(
    ("where", "value", "goal"),
    [
        ("sam_part/mlp/ours_over/pytorch_optimizer", [0.51, 0, 1], "pytorch_optimizer's"),
        (f"sam_part/{MANY}/ours_over/bare", [1.06, 1, 2], "bare operators"),
        ("whole_step/mlp, float32/over_two_passes/balanced_sam", [1.11, 1, 2], "two passes"),
        ("counts/mlp/cpu/balanced_sam/calls", 10, "operator calls"),
        ("counts/mlp/accelerator/balanced_sam/calls", 10, "operator calls"),
        ("counts/resnet18/accelerator/balanced_sam/host_reads", 1, "host reads"),
        ("counts/resnet18/cpu/balanced_sam/peak_copies", 1.02, "peak copies"),
    ],
)
def test_goal_beyond_its_bound_is_not_met(where: str, value: Any, goal: str) -> None:
    record = entry = good_record()
    *path, last = where.split("/")
    for name in path:
        entry = entry[name]
    entry[last] = value
    (missed,) = [found for found in figures.goals(record) if not found["met"]]
    assert goal in missed["goal"]


def test_bare_operators_are_no_goal_elsewhere_and_a_cpu_may_read() -> None:
    record = good_record()
    record["sam_part"]["mlp"]["ours_over"]["bare"] = [9.0, 8, 10]
    record["counts"]["mlp"]["cpu"]["balanced_sam"]["host_reads"] = 2
    assert all(goal["met"] for goal in figures.goals(record))


# The whole command


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure each block over one call, and train on small images."""
    monkeypatch.setattr(timing, "BLOCK", 0.0)
    for name in ("500 tensors", "resnet18"):
        monkeypatch.setitem(WORKLOADS, name, Workload(SmallNet, (2, 3, 8, 8), (2, 3, 8, 8)))
    # Where peers are not installed, as in CI, the record says so.
    monkeypatch.setattr(contenders, "find_spec", lambda name: None)


class SmallNet(nn.Sequential):
    """A network for images."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 1))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).squeeze(1)


@pytest.mark.usefixtures("quick")
def test_command_measures_prints_and_keeps_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measurement, "CPU_PARTS", ("mlp", "500 tensors", "resnet18"))
    monkeypatch.setattr(measurement, "CPU_CASES", (Case("mlp"), Case("mlp", "bfloat16")))
    path = tmp_path / "record.json"
    arguments = ["overhead", "--seconds", "0", "--threads", "3", "--out", str(path)]
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    main(arguments)
    record = json.loads(path.read_text())
    printed = capsys.readouterr().out
    assert threads == [3]
    assert record["threads"] == torch.get_num_threads()
    assert len(record["load_average"]) == 2
    assert list(record["whole_step"]) == ["mlp, float32", "mlp, bfloat16"]
    for part in record["sam_part"].values():
        assert {len(values) for values in part["seconds"].values()} == {timing.FEWEST}
        assert set(part["ms"]) == {"balanced_sam", "bare", "published"}
    for name in PEERS:
        assert f"Not run: {name}" in printed
    for goal in record["goals"]:
        assert goal["goal"] in printed
        assert math.isfinite(goal["measured"])
    assert "| mlp, bfloat16 |" in printed
    counted = {"mlp": {"balanced_sam": {"launches": 41, "peak_copies": 1.0}}}
    tables = report.tables(record | {"launches": counted, "checks": {"captured": "passed"}})
    assert [row[0] for row in tables["Counts on 500 tensors, SAM part alone"]] == [
        *("", "balanced_sam", "bare", "published")
    ]
    assert ["mlp", "balanced_sam", "41", "1"] in tables[
        "Launches and memory on the GPU, SAM part alone"
    ]
    assert ["captured", "passed"] in tables["Checks on the GPU"]


@pytest.mark.usefixtures("quick")
def test_command_without_a_gpu_rejects_the_device_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch finds none"):
        main(["overhead", "--device", "cuda", "--out", str(path)])
    assert not path.exists()


class Measured(Exception):  # noqa: N818  # no error
    """Ends the command once it is known how it measures."""


@pytest.mark.parametrize("outcome", ["passed", "failed: the replays moved nothing"])
def test_replays_are_measured_only_where_they_are_steps(
    outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    captures: list[Any] = []

    def whole_step(*args: object, capture: Any, **options: object) -> None:
        captures.append(capture)
        raise Measured

    monkeypatch.setattr(gpu, "checks", lambda: {gpu.CAPTURE_CHECK: outcome})
    monkeypatch.setattr(measurement, "CUDA_PARTS", ())
    monkeypatch.setattr(measurement, "CUDA_CASES", (Case("mlp"),))
    monkeypatch.setattr(measurement, "whole_step", whole_step)
    with pytest.raises(Measured):
        measurement.measure(torch.device("cuda"), seconds=0.0)
    assert captures == [gpu.captured if outcome == "passed" else None]


def test_record_is_named_by_the_device_and_the_threads_of_a_cpu() -> None:
    record = {"device": "NVIDIA H200", "threads": 16, "checks": {gpu.CAPTURE_CHECK: "passed"}}
    path = measurement.default_path(record)
    assert path.parts[-3:] == ("records", "overhead", "nvidia_h200.json")
    for threads, name in ((1, "x86_64_cpu_avx2_1_thread"), (2, "x86_64_cpu_avx2_2_threads")):
        record = {"device": "x86_64 CPU (AVX2)", "threads": threads, "checks": {}}
        assert measurement.default_path(record).stem == name


def tiny_resnet() -> nn.Module:
    """Return what is a ResNet-50 but for its size."""
    sizes = [16, 16, 16, 16]
    config = ResNetConfig(embedding_size=8, hidden_sizes=sizes, depths=[1] * 4, out_features=STAGES)
    return AgeNetwork(Encoder(ResNetBackbone(config)))


def tiny_vit() -> nn.Module:
    """Return what is a ViT-B/16 but for its size."""
    return VisionTransformer(
        ViTConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
        )
    )


TINY = {"resnet50": tiny_resnet, "vit_b": tiny_vit}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "case", [case for case in measurement.CUDA_CASES if case.workload in TINY], ids=str
)
def test_cases_of_a_gpu_run_on_a_cpu_too(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Workload(TINY[case.workload], (2, 3, 32, 32), (2, 3, 32, 32))
    monkeypatch.setitem(WORKLOADS, case.workload, tiny)
    makes = {name: CONTENDERS[name] for name in ("two_passes", "balanced_sam", "published")}
    # Only some know what to do with a scaler, and a captured step reads nothing back.
    measured = [*makes, "captured"] if case.precision != "float16" else list(makes)[:2]
    replayed: list[timing.Work] = []

    def capture(step: timing.Work) -> timing.Work:
        replayed.append(step)
        return step

    rounds = whole_step(case, makes, device=CPU, seconds=0.0, capture=capture)
    assert list(rounds) == measured
    assert len(replayed) == ("captured" in measured)
    ratio, low, high = figures.of_whole_step(rounds)["over_two_passes"]["balanced_sam"]
    assert 0 < low <= ratio <= high


def test_every_case_is_of_a_workload_and_named_once() -> None:
    for cases, parts in (
        (measurement.CPU_CASES, measurement.CPU_PARTS),
        (measurement.CUDA_CASES, measurement.CUDA_PARTS),
    ):
        assert {case.workload for case in cases} <= set(parts) <= {*WORKLOADS, MANY}
        assert len({str(case) for case in cases}) == len(cases)


# What only a GPU can tell, as far as a CPU can


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch, quick: None) -> list[str]:
    """Let the checks run on the CPU; return the modes that they set."""
    modes: list[str] = []
    monkeypatch.setattr(gpu, "DEVICE", CPU)
    monkeypatch.setattr(gpu, "captured", lambda step: step)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    return modes


def test_checks_pass_where_all_is_well(no_gpu: list[str]) -> None:
    found = gpu.checks()
    assert len(found) == 5
    assert set(found.values()) == {"passed"}
    assert no_gpu == ["error", "default"] * 4


@pytest.mark.parametrize(
    "replay",
    [lambda step: lambda: None, lambda step: lambda: (step(), step())],
    ids=["does nothing", "does too much"],
)
def test_failed_check_gives_its_reason(
    replay: Callable[[timing.Work], timing.Work],
    no_gpu: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbid(mode: str) -> None:
        if mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation\nand more")

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", forbid)
    monkeypatch.setattr(gpu, "captured", replay)
    found = list(gpu.checks().values())
    assert found[:4] == ["failed: called a synchronizing CUDA operation"] * 4
    assert found[4].startswith("failed: ")


def test_launches_are_what_ran_on_the_gpu() -> None:
    kinds = [(DeviceType.CUDA, False), (DeviceType.CUDA, True), (DeviceType.CPU, False)]
    events = [SimpleNamespace(device_type=d, is_user_annotation=a) for d, a in kinds]
    assert gpu.count_launches(events) == 1
    assert gpu.count_launches([]) == 0
