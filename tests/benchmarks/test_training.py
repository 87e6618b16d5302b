"""Training: stages, batches, recipes; what is drawn at random follows from seed and step."""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from balanced_sam import TargetGrid, TargetWeights
from benchmarks.datasets._memory import Samples
from benchmarks.experiment.dataset import Dataset, Splits
from benchmarks.experiment.method import Method
from benchmarks.experiment.plan import Plan, plan
from benchmarks.experiment.recipe import Descent, Recipe, Schedule
from benchmarks.experiment.registry import dataset_names, get_dataset, get_method, method_names
from benchmarks.methods._losses import weighted
from benchmarks.methods._optimizers import BASES, SCHEDULES
from benchmarks.training import callbacks
from benchmarks.training.batches import Draws, evaluation_batches, training_batches
from benchmarks.training.module import Regression
from benchmarks.training.noise import with_label_noise
from benchmarks.training.trainer import train

DIGITS = get_dataset("rotated_digits")


@pytest.fixture
def digits(tmp_path: Path) -> Splits:
    """Return the miniature of rotated digits."""
    DIGITS.write_miniature(tmp_path / "digits")
    return DIGITS.load(tmp_path / "digits")


def quick(method: str, **changes: Any) -> Plan:
    """Return a short plan for the digits."""
    short: dict[str, Any] = {"epochs": 2, "batch_size": 1024, "lr": 0.05}
    for name in {"retrain_epochs", "balanced_mse_epochs"} & get_method(method).constants.keys():
        short[name] = 2
    return plan("rotated_digits", method, short | changes)


def kept(folder: Path, stage: int, selection: str) -> dict[str, Any]:
    """Return the checkpoint of a stage."""
    state: dict[str, Any] = torch.load(
        folder / f"stage-{stage}" / f"{selection}.ckpt", weights_only=True
    )
    return state


TWO_STAGES = ["rrt", "balanced_mse_gai", "balanced_mse_bmc"]


@pytest.mark.parametrize("method", TWO_STAGES)
def test_second_stage_trains_the_head_only_while_all_statistics_move(
    method: str, digits: Splits, tmp_path: Path
) -> None:
    train(quick(method), digits, 0, folder=tmp_path / "run")
    first = kept(tmp_path / "run", 0, "last_epoch")["state_dict"]
    second = kept(tmp_path / "run", 1, "last_epoch")["state_dict"]
    moves = ("running_mean", "running_var", "num_batches_tracked")
    names = [name for name in first if name.startswith("network.")]
    assert any(name.endswith(moves) for name in names)
    for name in names:
        changed = not torch.equal(first[name], second[name])
        assert changed == (name.startswith("network.head.") or name.endswith(moves)), name


@pytest.mark.parametrize("method", TWO_STAGES)
def test_second_stage_starts_a_new_head(method: str, digits: Splits, tmp_path: Path) -> None:
    done = quick(method)
    still = {name: 1e-9 for name in done.constants if name in ("retrain_lr", "balanced_mse_lr")}
    train(quick(method, **still), digits, 0, folder=tmp_path / "run")
    first, second = (
        kept(tmp_path / "run", 0, "last_epoch"),
        kept(tmp_path / "run", 1, "last_epoch"),
    )
    torch.manual_seed(0)
    start = DIGITS.network(DIGITS.recipe).head.weight
    head = second["state_dict"]["network.head.weight"]
    # Neither the trained one nor, of the same seed, the one that it started as.
    assert (head - first["state_dict"]["network.head.weight"]).abs().max() > 1e-2
    assert (head - start).abs().max() > 1e-2


def test_rrt_on_depth_trains_all_that_refines_anew() -> None:
    dataset = get_dataset("nyud2_dir")
    done = plan("nyud2_dir", "rrt", {"pretrained": False})
    splits = Splits(*[None] * 3, torch.ones(1), dataset.counts["train"], "")  # type: ignore[list-item]
    first, second = (
        Regression(dataset, done.recipe, stage, splits, seed=0) for stage in done.stages
    )
    nn.init.constant_(first.network.head[0][1].running_mean, 7.0)
    second.begin({"state_dict": first.state_dict()})
    free = {name: p for name, p in second.network.named_parameters() if p.requires_grad}
    assert all(name.startswith("head.") for name in free)
    assert sum(p.numel() for p in free.values()) == 822_913
    before, after = first.network.state_dict(), second.network.state_dict()
    for name in before:
        if not name.startswith("head."):
            assert torch.equal(before[name], after[name]), name
    for name in ("0.0.weight", "0.1.running_mean", "2.0.weight", "4.weight", "4.bias"):
        assert not torch.equal(before[f"head.{name}"], after[f"head.{name}"]), name


def test_learned_sigma_moves_with_its_own_rate(digits: Splits, tmp_path: Path) -> None:
    done = quick("balanced_mse_bmc", balanced_mse_epochs=1, balanced_mse_lr=1e-4)
    train(done, digits, 0, folder=tmp_path / "run")
    lr, sigma, sigma_lr = (
        done.constants[name] for name in ("balanced_mse_lr", "noise_sigma", "noise_sigma_lr")
    )
    checkpoint = kept(tmp_path / "run", 1, "last_epoch")
    rates = [group["lr"] for group in checkpoint["optimizer_states"][0]["param_groups"]]
    assert rates == [lr, sigma_lr]
    steps = math.ceil(len(digits.train) / done.recipe.batch_size)
    distance = abs(checkpoint["state_dict"]["objective.sigma"].item() - sigma)
    # Adam's first steps are as long as the rate.
    assert 0 < distance <= steps * sigma_lr * 1.01
    assert distance > lr * steps * 2


def test_a_normalized_recipe_trains_as_the_raw_one_does(digits: Splits, tmp_path: Path) -> None:
    counts = digits.train_counts
    weights = TargetWeights.from_counts(DIGITS.bins, counts, scheme="sqinv", normalize=False)
    mean = ((weights.bin_weights * counts).sum() / counts.sum()).item()
    done = quick("sqinv", lr=0.2, weight_decay=0.01)
    raw = dataclasses.replace(done.recipe, normalized=False)
    recipes = {"raw": raw, "normalized": raw.normalize(mean), "unconverted": done.recipe}
    assert done.recipe.normalized
    heads = {}
    for name, recipe in recipes.items():
        of_recipe = dataclasses.replace(done, recipe=recipe)
        train(of_recipe, digits, 0, folder=tmp_path / name)
        state = kept(tmp_path / name, 0, "last_epoch")["state_dict"]
        heads[name] = state["network.head.weight"]
    torch.testing.assert_close(heads["normalized"], heads["raw"], atol=1e-4, rtol=0)
    assert (heads["unconverted"] - heads["raw"]).abs().max() > 1e-2


@pytest.mark.parametrize("method", method_names())
def test_constants_are_what_the_method_takes_on_each_data_set_and_no_more(method: str) -> None:
    about = get_method(method)
    assert not about.constants.keys() & {field.name for field in dataclasses.fields(Recipe)}
    assert about.tuned.keys() <= set(dataset_names())
    for name in dataset_names():
        if "noise_sigma" in about.constants and isinstance(get_dataset(name).bins, TargetGrid):
            continue  # It is for one target.
        constants = plan(name, method).constants
        assert constants.keys() == about.constants.keys()
        make_losses(about, name, constants)
        with pytest.raises(TypeError):
            make_losses(about, name, {**constants, "magic": 1})
        for left_out in constants:
            with pytest.raises(TypeError):
                make_losses(about, name, {k: v for k, v in constants.items() if k != left_out})


def test_a_method_trains_by_what_was_tuned_of_the_recipe_unless_it_is_changed() -> None:
    name, method = "rotated_and_scaled_digits", "bsam_weighted"
    tuned = get_method(method).tuned[name]
    assert tuned["epochs"] != get_dataset(name).recipe.epochs
    tuned_plan = plan(name, method)
    assert tuned_plan.recipe == dataclasses.replace(
        get_dataset(name).recipe, epochs=tuned["epochs"]
    )
    assert tuned_plan.stages[0].epochs == tuned["epochs"]
    assert tuned_plan.constants["rho"] == tuned["rho"]
    assert plan(name, method, {"epochs": 3, "rho": 0.2}).description == (
        tuned_plan.description | {"epochs": 3, "rho": 0.2, "stage_epochs": [3]}
    )


def make_losses(method: Method, name: str, constants: dict[str, Any]) -> None:
    """Make the training loss of each stage, on targets along all bins."""
    dataset = get_dataset(name)
    targets = torch.arange(len(dataset.bins)) * 100.0 / len(dataset.bins)
    if isinstance(dataset.bins, TargetGrid):
        targets = targets[:, None].expand(-1, len(dataset.bins.axes))
    splits = Splits(*[None] * 3, targets, dataset.bins.counts(targets), "")  # type: ignore[list-item]
    for stage in method.stages(dataset.recipe, **constants):
        stage.objective(dataset, dataset.recipe, splits)


def test_a_constant_is_that_of_the_data_set_unless_it_is_changed() -> None:
    assert plan("rotated_digits", "bsam").constants == {"rho": 0.8, "rho_warmup_epochs": 5}
    changed = plan("rotated_digits", "bsam", {"rho": 0.1, "lr": 0.7})
    assert changed.constants == {"rho": 0.1, "rho_warmup_epochs": 5}
    assert changed.recipe == dataclasses.replace(DIGITS.recipe, epochs=32, lr=0.7)
    assert plan("imdb_wiki_dir", "bsam").constants == {"rho": 0.05, "rho_warmup_epochs": 0}


def test_a_run_knows_nothing_of_the_constants_of_other_methods() -> None:
    described = quick("sqinv").description
    entries = {field.name for field in dataclasses.fields(Recipe)} - {"label_noise"}
    assert described.keys() == entries | {"stage_epochs"}
    assert quick("bsam").description.keys() == described.keys() | {"rho", "rho_warmup_epochs"}
    for constant in ("rho", "term_t", "retrain_lr", "noise_sigma"):
        with pytest.raises(ValueError, match=rf"constants of sqinv \[\], but got \['{constant}'\]"):
            quick("sqinv", **{constant: 1.0})


def test_normalize_keeps_a_recipe_of_mean_one() -> None:
    assert DIGITS.recipe.normalize(0.1) is DIGITS.recipe
    recipe = plan("agedb_dir", "sqinv", normalized=True).recipe
    assert recipe.normalized
    # The figures of the plan, rounded there.
    assert recipe.lr == pytest.approx(0.0153, abs=5e-5)
    assert recipe.weight_decay == pytest.approx(1.3e-3, abs=5e-5)
    assert not plan("agedb_dir", "sqinv").recipe.normalized


class Spy(nn.Module):
    """A network that keeps what it saw in training."""

    seen: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 1)
        self.seen = []

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen.append(images.clone())
        output: Tensor = self.head(images.mean((1, 2, 3))[:, None])[:, 0]
        return output


class Noise(nn.Module):
    """An augmentation."""

    def forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return images + torch.rand(images.shape), targets


def spied(
    monkeypatch: pytest.MonkeyPatch, digits: Splits, folder: Path, done: Plan
) -> list[Tensor]:
    """Return the batches that a network saw in training."""
    spy = Spy()
    dataset: Dataset = dataclasses.replace(DIGITS, network=lambda recipe: spy, augmentation=Noise)
    monkeypatch.setattr("benchmarks.training.trainer.get_dataset", lambda name: dataset)
    train(done, digits, 0, folder=folder)
    return spy.seen


def test_both_passes_see_the_same_augmented_batch(
    monkeypatch: pytest.MonkeyPatch, digits: Splits, tmp_path: Path
) -> None:
    seen = spied(monkeypatch, digits, tmp_path / "run", quick("bsam", batch_size=4096))
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0].sort(dim=0).values, seen[2].sort(dim=0).values)


def test_methods_see_the_same_batches_of_the_same_seed(
    monkeypatch: pytest.MonkeyPatch, digits: Splits, tmp_path: Path
) -> None:
    vanilla, sam = (
        spied(monkeypatch, digits, tmp_path / method, quick(method, epochs=1))
        for method in ("inv", "sam")
    )
    assert len(sam) == 2 * len(vanilla)
    for a, b in zip(vanilla, sam[::2], strict=True):
        assert torch.equal(a, b)


def test_a_batch_in_memory_is_its_samples() -> None:
    split = Samples(torch.arange(20.0).view(10, 2), torch.arange(10.0))
    inputs, targets = split.__getitems__([3, 19, 0])
    assert inputs.tolist() == [[6, 7], [18, 19], [0, 1]]
    assert targets.tolist() == [3, 9, 0]
    batches = list(evaluation_batches(split, batch_size=4))
    assert [len(targets) for _, targets in batches] == [4, 4, 2]
    for k, (inputs, targets) in enumerate(batches):
        for row in range(len(targets)):
            sample, target = split[4 * k + row]
            assert torch.equal(inputs[row], sample)
            assert torch.equal(targets[row], target)


def test_draws_shuffle_by_seed_and_epoch_and_never_repeat() -> None:
    split = Samples(torch.arange(10.0), torch.arange(10.0))
    orders = [
        list(Draws(split, seed=seed, epoch=epoch)) for seed in (0, 1, 2) for epoch in (0, 1, 2)
    ]
    for order in orders:
        assert sorted(index % 10 for index in order) == list(range(10))
    # Another draw of the same sample in each epoch of each seed.
    assert len({index for order in orders for index in order}) == 90
    assert list(Draws(split, seed=1, epoch=2)) == orders[5]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_of_a_resumed_run_begin_with_its_epoch(workers: int) -> None:
    split = Samples(torch.arange(8.0), torch.arange(8.0))
    arguments: dict[str, Any] = {"batch_size": 3, "seed": 4, "workers": workers}
    whole = training_batches(split, epoch=0, **arguments)
    epochs = []
    for epoch in range(3):
        whole.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]  # as Lightning does
        epochs.append(torch.cat([inputs for inputs, _ in whole]))
    resumed = training_batches(split, epoch=2, **arguments)
    assert torch.equal(torch.cat([inputs for inputs, _ in resumed]), epochs[2])
    assert not torch.equal(epochs[0], epochs[2])


def test_predictions_are_not_rounded_to_16_bits_under_autocast() -> None:
    torch.manual_seed(0)
    network = DIGITS.network(DIGITS.recipe)
    with torch.autocast("cpu", torch.bfloat16):
        predictions = network(torch.rand(64, 1, 20, 20))
    assert predictions.dtype == torch.float32
    assert not torch.equal(predictions, predictions.bfloat16().float())


def test_seconds_are_those_of_all_epochs_through_a_resume(
    digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "monotonic", itertools.count().__next__)
    epochs = itertools.count()

    def fail_in_the_second() -> None:
        if next(epochs) == 1:
            raise InterruptedError

    done, folder = quick("sqinv", epochs=3), tmp_path / "run"
    with pytest.raises(InterruptedError):
        train(done, digits, 0, folder=folder, after_epoch=fail_in_the_second)
    record = train(done, digits, 0, folder=folder)
    assert record.seconds == 3


def test_normalized_is_no_entry_to_set() -> None:
    with pytest.raises(ValueError, match="--normalized, which converts the recipe"):
        plan("rotated_digits", "sqinv", {"normalized": False})


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("bsam", {"epochs": 0}, "epochs to be at least 1, but got 0"),
        ("bsam", {"batch_size": -1}, "batch_size to be at least 1, but got -1"),
        ("rrt", {"retrain_epochs": 0}, "retrain_epochs to be at least 1, but got 0"),
        ("bsam", {"rho": -0.1}, "rho to be at least 0, but got -0.1"),
        ("bsam_quarter", {"rho_quarter": -0.1}, "rho_quarter to be at least 0, but got -0.1"),
        ("bsam", {"epochs": 1.5}, r"epochs to be a whole number, but got 1\.5"),
        ("bsam", {"epochs": True}, "epochs to be a whole number, but got True"),
        ("bsam", {"lr": "a"}, "lr to be a finite number, but got 'a'"),
        ("bsam", {"rho": math.nan}, "rho to be a finite number, but got nan"),
        ("bsam", {"label_noise": math.inf}, "label_noise to be a finite number, but got inf"),
        ("bsam", {"pretrained": 1}, "pretrained to be true or false, but got 1"),
        ("bsam", {"optimizer": "adamw"}, r"optimizer to be one of \['sgd', .*but got 'adamw'"),
        ("bsam", {"schedule": "constnat"}, r"schedule to be one of .*'constant'\], .*'constnat'"),
        ("bsam", {"epoch": 1}, r"entries of the recipe .*epochs.* but got \['epoch'\]"),
        ("bsam", {"term_t": 1}, r"constants of bsam \['rho', .*\], but got \['term_t'\]"),
    ],
)
def test_plan_refuses_what_cannot_be_trained(
    method: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan("rotated_digits", method, changes)


def test_a_whole_number_may_stand_for_a_float() -> None:
    done = plan("rotated_digits", "bsam", {"lr": 1, "rho": 0, "label_noise": 5})
    assert (done.recipe.lr, done.constants["rho"], done.recipe.label_noise) == (1, 0, 5)


@pytest.mark.parametrize("method", ["weighted_balanced_head", "bsam_balanced_head"])
def test_a_new_head_of_no_epochs_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match=r"balanced_mse_epochs to be at least 1 .*but got 0"):
        _ = plan("rotated_digits", method, {"balanced_mse_epochs": 0}).description


def test_the_names_that_a_recipe_takes_are_those_there_are() -> None:
    assert get_args(Descent) == tuple(BASES)
    assert get_args(Schedule) == tuple(SCHEDULES)


def test_inv_has_the_mean_of_sqinv_on_the_raw_scale() -> None:
    agedb = get_dataset("agedb_dir")
    counts = agedb.counts["train"]
    splits = Splits(*[None] * 3, torch.ones(1), counts, "")  # type: ignore[list-item]
    for objective in (weighted("sqinv"), weighted("inv"), weighted(None, smoothed=True)):
        weights = objective(agedb, agedb.recipe, splits).weights.bin_weights
        assert (weights * counts).sum() / counts.sum() == pytest.approx(0.07647, abs=1e-5)


def test_schedules_are_those_of_the_recipes() -> None:
    factor = SCHEDULES["cosine_from_one"]
    lr, low = 0.2, 0.2e-3
    for epoch in range(400):
        expected = low + (lr - low) * (1 + math.cos(math.pi * (epoch + 1) / 400)) / 2
        assert lr * factor(epoch, 400) == pytest.approx(expected)
    halfway = SCHEDULES["tenth_halfway"]
    assert [halfway(epoch, 10) for epoch in (0, 4, 5, 9)] == [1, 1, 0.1, 0.1]
    assert [halfway(epoch, 20) for epoch in (9, 10)] == [1, 0.1]
    assert SCHEDULES["cosine"](0, 25) == 1
    assert SCHEDULES["constant"](24, 25) == 1
    # Those of DIR's ages: tenths at 60 and 80 of 90.
    late = [SCHEDULES["tenth_twice"](epoch, 90) for epoch in range(90)]
    assert late == pytest.approx([1] * 60 + [0.1] * 20 + [0.01] * 10)


def test_label_noise_is_on_the_training_targets_alone_and_in_their_counts() -> None:
    splits, bins = DIGITS.load(None), DIGITS.bins
    noisy, again, other = (
        with_label_noise(splits, bins, level=5.0, seed=seed) for seed in (3, 3, 4)
    )
    noise = noisy.train.targets - splits.train.targets  # type: ignore[attr-defined]  # in memory
    assert noise.std().item() == pytest.approx(5, rel=0.1)
    assert abs(noise.mean().item()) < 0.5
    assert torch.equal(noisy.train_counts, bins.counts(noisy.train_targets))
    assert not torch.equal(noisy.train_counts, splits.train_counts)
    assert torch.equal(noisy.train_targets, again.train_targets)
    assert not torch.equal(noisy.train_targets, other.train_targets)
    for name in ("validation", "test"):
        assert getattr(noisy, name) is getattr(splits, name)


def test_label_noise_is_said_in_the_record_where_there_is_any(
    digits: Splits, tmp_path: Path
) -> None:
    assert "label_noise" not in plan("rotated_digits", "sqinv").description
    plans = {"noisy": quick("sqinv", label_noise=40.0), "plain": quick("sqinv")}
    assert plans["noisy"].description["label_noise"] == 40
    losses = {
        name: train(of, digits, 0, folder=tmp_path / name).history[0]["loss"]
        for name, of in plans.items()
    }
    assert losses["noisy"] != losses["plain"]


def test_label_noise_wants_samples_in_memory(tmp_path: Path) -> None:
    get_dataset("agedb_dir").write_miniature(tmp_path)
    splits = get_dataset("agedb_dir").load(tmp_path)
    with pytest.raises(ValueError, match="samples in memory for label_noise, but got files"):
        with_label_noise(splits, get_dataset("agedb_dir").bins, level=1.0, seed=0)
