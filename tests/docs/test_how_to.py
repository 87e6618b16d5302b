"""The pages of how to use the optimizer: their code does what they say."""

import copy
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from balanced_sam import BalancedSAM, LambdaRho, TargetWeights, weighted_mean
from tests.support.pages import OpenPage, Page


def weights_of(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def are_equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(first, second, strict=True))


def make_linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))


def make_optimizer(model: nn.Module) -> BalancedSAM:
    return BalancedSAM(model.parameters(), SGD(model.parameters(), lr=0.1), rho=0.2)


def twice(optimizer: BalancedSAM, closure: Callable[[], Tensor | None]) -> None:
    for _ in range(2):
        optimizer.step(closure)


def loss_on_batch(page: Page, model: nn.Module) -> Tensor:
    errors = (model(page["inputs"]) - page["targets"]).abs()
    return weighted_mean(errors, page["weights"](page["targets"]))


@pytest.fixture
def training_loop(open_page: OpenPage) -> Page:
    return open_page("how_to/training_loop").run()


def test_training_loop_calls_the_closure_at_w_and_perturbed_and_returns_the_loss_at_w(
    training_loop: Page,
) -> None:
    optimizer, calls = training_loop["optimizer"], []
    at_w = loss_on_batch(training_loop, copy.deepcopy(training_loop["model"]))

    def counted() -> Tensor:
        calls.append(optimizer.is_perturbed)
        return training_loop["closure"]()

    assert torch.equal(optimizer.step(counted), at_w.detach())
    assert calls == [False, True]
    assert optimizer.sharpness.shape == ()


def test_training_loop_skips_a_batch_for_which_the_closure_returns_none(
    training_loop: Page,
) -> None:
    before = weights_of(training_loop["model"])
    training_loop["optimizer"].zero_grad()
    twice(training_loop["optimizer"], lambda: None)
    assert are_equal(weights_of(training_loop["model"]), before)


def test_training_loop_without_backward_does_nothing_and_warns_once(training_loop: Page) -> None:
    model = training_loop["model"]
    before = weights_of(model)
    with pytest.warns(UserWarning, match="call `backward` in it") as warned:
        twice(training_loop["optimizer"], lambda: loss_on_batch(training_loop, model))
    assert len(warned) == 1
    assert are_equal(weights_of(model), before)


def reuse(loss: Tensor) -> Callable[[], Tensor]:
    """Return a closure whose forward pass is outside of it."""

    def closure() -> Tensor:
        loss.backward(retain_graph=True)
        return loss

    return closure


def test_training_loop_with_a_forward_pass_outside_warns_where_backward_needs_no_weights(
    training_loop: Page,
) -> None:
    model = make_linear()
    optimizer, closure = make_optimizer(model), reuse(loss_on_batch(training_loop, model))
    with pytest.warns(UserWarning, match="forward pass outside") as warned:
        twice(optimizer, closure)
    assert len(warned) == 1


def test_training_loop_with_a_forward_pass_outside_raises_where_backward_needs_weights(
    training_loop: Page,
) -> None:
    model = training_loop["model"]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        make_optimizer(model).step(reuse(loss_on_batch(training_loop, model)))


def test_training_loop_without_a_closure_takes_the_steps_of_that_with_one(
    open_page: OpenPage,
) -> None:
    with_closure = open_page("how_to/training_loop").run("def closure")
    manual = open_page("how_to/training_loop")
    before, loader = weights_of(manual["model"]), manual["loader"]
    manual.names["loader"] = []
    manual.run("def closure")
    assert are_equal(weights_of(manual["model"]), before)
    manual.names["loader"] = loader
    manual.run("optimizer.perturbed()")
    assert not are_equal(weights_of(manual["model"]), before)
    assert are_equal(weights_of(manual["model"]), weights_of(with_closure["model"]))


def test_table_becomes_vectors_scaled_by_the_training_rows(open_page: OpenPage) -> None:
    page = open_page("how_to/tables").run()
    assert page["inputs"].dtype == page["targets"].dtype == torch.float32
    assert page["inputs"].shape == (200, 4)  # two numbers, and a column for each of two cities
    of_training = page["inputs"][page["train"]]
    assert torch.allclose(of_training.mean(dim=0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(of_training.std(dim=0), torch.ones(4), atol=1e-5)
    assert page["weights"].counts.sum() == 120
    inputs, targets = next(iter(page["loader"]))
    assert (inputs.shape, targets.shape) == ((32, 4), (32,))


def test_table_with_a_column_for_target_or_a_missing_one_is_an_error(open_page: OpenPage) -> None:
    page = open_page("how_to/tables").run()
    column = torch.tensor(page["frame"][["price"]].to_numpy("float32"))
    assert column.shape == (200, 1)
    with pytest.raises(ValueError, match="shape of `losses`"):
        weighted_mean(torch.ones(200), page["weights"](column))
    missing = torch.tensor([1.0, torch.nan, 3.0])
    with pytest.raises(ValueError, match="finite"):
        TargetWeights.from_targets(missing)


def test_validation_set_is_balanced_and_leaves_the_rest_for_training(open_page: OpenPage) -> None:
    page = open_page("how_to/validation").run()
    bins, targets = page["bins"], page["targets"]
    drawn, counts = (bins.counts(targets[page[name]]) for name in ("validation", "others"))
    assert torch.equal(drawn, (counts // 3).clamp(max=10))
    parts = torch.cat([page[name] for name in ("train", "validation", "test")])
    assert torch.equal(parts.sort().values, torch.arange(2000))
    assert len(page["test"]) == 400
    assert torch.equal(page["weights"].counts, counts - drawn)
    assert page["regions"].mask(targets[page["validation"]], "few").sum() > 0


def test_interval_of_a_difference_holds_zero_unless_there_is_one(open_page: OpenPage) -> None:
    page = open_page("how_to/differences")
    targets = page["test_targets"]
    found = []
    for seed in range(20):
        torch.manual_seed(seed)
        first, second = (targets + torch.randn(8, 1) + torch.randn(8, 1000) for _ in range(2))
        for worse in (0.0, 20.0):
            page.names.update(predictions=first + worse, other_predictions=second)
            page.run()
            found.append(page["low"] < 0 < page["high"])
    assert sum(found[::2]) >= 16
    assert not any(found[1::2])


def test_interval_of_a_difference_is_paired(open_page: OpenPage) -> None:
    page = open_page("how_to/differences")
    # The error of both varies by 100 from seed to seed, and by 1 between them.
    shared = 1000 + 100 * torch.randn(5, 1)
    targets = page["test_targets"]
    page.names.update(predictions=targets + shared + 1, other_predictions=targets + shared)
    page.run()
    assert page["low"] == pytest.approx(1, abs=1e-3)
    assert page["high"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", ["closure", "huber_closure"])
def test_loss_of_another_kind_is_weighted_and_perturbs_by_rho_at_any_scale(
    name: str, open_page: OpenPage
) -> None:
    page = open_page("how_to/losses").run()
    model, optimizer = page["model"], page["optimizer"]
    errors = (model(page["inputs"]) - page["targets"]).detach().abs()
    huber = torch.where(errors < 2, errors**2 / 2, 2 * (errors - 1))
    losses = errors**2 if name == "closure" else huber
    expected = (losses * page["weights"](page["targets"])).mean()
    assert torch.allclose(page[name]().detach(), expected)
    start = weights_of(model)
    for scale in (1, 100):
        optimizer.zero_grad()
        page[name]()
        for parameter in model.parameters():
            parameter.grad *= scale
        with optimizer.perturbed():
            moved = [p - q for p, q in zip(weights_of(model), start, strict=True)]
        assert abs(nn.utils.get_total_norm(moved).item() - 0.05) < 1e-5


def test_schedules_table_has_functions_that_do_as_it_says(open_page: OpenPage) -> None:
    page = open_page("how_to/schedules")
    table = re.findall(r"^\| (.+) \| `(lambda .+)` \|$", page.text, re.MULTILINE)
    functions = {name: eval(function) for name, function in table}
    assert [functions["warm-up"](step) for step in (0, 249, 499, 500)] == [0.002, 0.5, 1, 1]
    assert [functions["late start"](step) for step in (0, 4999, 5000)] == [0, 0, 1]
    model, passes = page["model"], []
    optimizer = make_optimizer(model)
    schedule = LambdaRho(optimizer, functions["every third step"])
    for _ in range(6):
        calls = []
        handle = model.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        optimizer.step(page["closure"])
        handle.remove()
        schedule.step()
        passes.append(len(calls))
    assert passes == [2, 1, 1, 2, 1, 1]


def test_mixed_precision_trains_in_both_precisions(open_page: OpenPage) -> None:
    page = open_page("how_to/mixed_precision")
    for block in ("torch.bfloat16", "scaler.scale"):
        before = weights_of(page["model"])
        page.run(block)
        assert not any(map(torch.equal, weights_of(page["model"]), before))


def norms_in_the_step(optimizer: BalancedSAM, model: nn.Module) -> list[float]:
    """Return the list of norms of the gradient, which grows by one a step."""
    norms: list[float] = []

    def record(*_: object) -> None:
        norms.append(nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())

    optimizer.register_step_pre_hook(record)
    return norms


def test_gradient_clipping_hook_sees_unscaled_gradients(open_page: OpenPage) -> None:
    page = open_page("how_to/gradient_clipping")
    optimizer = make_optimizer(page["model"])
    norms = norms_in_the_step(optimizer, page["model"])
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)

    def closure() -> Tensor:
        loss = loss_on_batch(page, page["model"])
        scaler.scale(loss).backward()
        return loss

    optimizer.step(closure, scaler=scaler)
    (norm,) = norms
    assert 0 < norm < 100


def test_gradient_clipping_clips_once_a_step(open_page: OpenPage) -> None:
    page = open_page("how_to/gradient_clipping").run()
    norms = norms_in_the_step(page["optimizer"], page["model"])
    raw: list[float] = []

    def steep() -> Tensor:
        loss = 1000 * loss_on_batch(page, page["model"])
        loss.backward()
        raw.append(nn.utils.get_total_norm([p.grad for p in page["model"].parameters()]).item())
        return loss

    page["optimizer"].step(steep)
    assert min(raw) > 100
    (norm,) = norms
    assert norm <= 1.001


def means_of_passes(layer: nn.BatchNorm1d) -> list[Tensor]:
    """Return the list of what the running mean is after each pass alone, from its start."""
    means: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _, given: means.append(0.1 * given[0].detach().mean(0)))
    return means


def test_batch_norm_takes_its_statistics_from_one_pass_and_without_the_context_from_both(
    open_page: OpenPage,
) -> None:
    page = open_page("how_to/batch_norm")
    model = page["model"]
    means = means_of_passes(model[1])
    page.run("frozen_running_stats")
    assert model[1].num_batches_tracked == 1
    at_w, perturbed = means
    assert torch.allclose(model[1].running_mean, at_w, atol=1e-6)
    assert not torch.allclose(at_w, perturbed, atol=1e-4)
    make_optimizer(model).step(page["closure"])
    assert model[1].num_batches_tracked == 3


def test_kept_buffers_are_those_of_the_pass_at_w(open_page: OpenPage) -> None:
    page = open_page("how_to/batch_norm")
    model = page["model"]
    model[3] = nn.utils.parametrizations.spectral_norm(model[3])
    assert any("parametrizations" in name for name, _ in model.named_buffers())
    page.run("frozen_running_stats")
    once = copy.deepcopy(model)
    once(page["inputs"])
    page.run("def kept_buffers")
    assert are_equal([*model.buffers()], [*once.buffers()])
    twice = copy.deepcopy(once)
    twice(page["inputs"])
    assert not are_equal([*twice.buffers()], [*once.buffers()])


def test_dropout_masks_are_the_same_in_both_passes_only_with_the_contexts(
    open_page: OpenPage,
) -> None:
    page = open_page("how_to/dropout").run()
    model, masks = page["model"], []
    model[1].register_forward_hook(lambda module, given, result: masks.append(result == 0))
    for optimizer, is_one in ((make_optimizer(model), False), (page["optimizer"], True)):
        masks.clear()
        optimizer.zero_grad()
        torch.manual_seed(0)
        optimizer.step(page["closure"])
        first, second = masks
        assert torch.equal(first, second) == is_one
    # The generator goes on as after one pass.
    drawn = torch.rand(4)
    torch.manual_seed(0)
    model(page["inputs"])
    assert torch.equal(torch.rand(4), drawn)


@pytest.fixture
def micro_batches(open_page: OpenPage) -> Page:
    page = open_page("how_to/micro_batches").run()
    page.names["model"] = make_linear()
    return page


def weight_after_a_step_on_the_batch(page: Page) -> Tensor:
    model = make_linear()

    def closure() -> Tensor:
        loss = loss_on_batch(page, model)
        loss.backward()
        return loss

    make_optimizer(model).step(closure)
    return model[0].weight


def test_micro_batches_in_the_closure_take_the_step_of_the_batch(micro_batches: Page) -> None:
    sizes: list[int] = []
    model = micro_batches["model"]
    model.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    make_optimizer(model).step(micro_batches["closure"])
    assert sizes == [8] * 8
    expected = weight_after_a_step_on_the_batch(micro_batches)
    assert torch.allclose(model[0].weight, expected, atol=1e-6)


def assert_parts_take_the_step_of_the_batch(page: Page, optimizer: BalancedSAM) -> None:
    batch = page["inputs"], page["targets"]
    page["backward_in_parts"](*batch)
    with optimizer.perturbed():
        page["backward_in_parts"](*batch)
    optimizer.step()
    expected = weight_after_a_step_on_the_batch(page)
    assert torch.allclose(page["model"][0].weight, expected, atol=1e-6)


def test_micro_batches_without_a_closure_take_the_step_of_the_batch(micro_batches: Page) -> None:
    assert_parts_take_the_step_of_the_batch(micro_batches, make_optimizer(micro_batches["model"]))


def test_micro_batches_with_a_second_block_are_an_error_and_may_begin_anew(
    micro_batches: Page,
) -> None:
    optimizer = make_optimizer(micro_batches["model"])
    batch = micro_batches["inputs"], micro_batches["targets"]
    micro_batches["backward_in_parts"](*batch)
    with optimizer.perturbed():
        micro_batches["backward_in_parts"](*batch)
    micro_batches["backward_in_parts"](*batch)
    with pytest.raises(RuntimeError, match="second block"), optimizer.perturbed():
        pass
    optimizer.zero_grad()
    assert_parts_take_the_step_of_the_batch(micro_batches, optimizer)


def test_first_pass_on_a_part_leaves_the_running_statistics_to_the_second(
    open_page: OpenPage,
) -> None:
    page = open_page("how_to/part_of_the_batch")
    layer = page["model"][1]
    means = means_of_passes(layer)
    page.run()
    assert layer.num_batches_tracked == 1
    on_a_part, on_all = means
    assert torch.allclose(layer.running_mean, on_all, atol=1e-6)
    assert not torch.allclose(on_a_part, on_all, atol=1e-4)


@pytest.mark.parametrize("size", [*range(1, 6), 32])
def test_first_pass_on_a_part_takes_any_last_batch(size: int, open_page: OpenPage) -> None:
    page = open_page("how_to/part_of_the_batch")
    inputs, targets = torch.rand(size, 3), 10 * torch.rand(size)
    # BatchNorm itself refuses a single sample.
    normalization = nn.BatchNorm1d(8) if size > 1 else nn.Identity()
    model = nn.Sequential(nn.Linear(3, 8), normalization, nn.Linear(8, 1), nn.Flatten(0))
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    page.names |= {"model": model, "inputs": inputs, "targets": targets}
    page.names["weights"] = TargetWeights.from_targets(targets, scheme="none")
    page.run("def ascent_closure")
    assert sizes == [max(size // 4, min(size, 2)), size]


def test_checkpoint_loads_into_the_base_and_one_of_the_base_loads_here(
    open_page: OpenPage,
) -> None:
    page = open_page("how_to/checkpoints").run("LambdaRho(", "torch.load")
    optimizer = page["optimizer"]
    base = AdamW(page["model"].parameters())
    bare = base.state_dict()
    base.load_state_dict(page["checkpoint"]["optimizer"])
    assert len(base.state) == len([*page["model"].parameters()])
    assert "rho" not in bare["param_groups"][0]
    rho = optimizer.param_groups[0]["rho"]
    assert rho == 0.05 / 4
    optimizer.load_state_dict(bare)
    assert optimizer.param_groups[0]["rho"] == rho


def test_checkpoint_brings_its_rho_and_a_run_resumed_with_another_goes_on_from_that(
    open_page: OpenPage,
) -> None:
    page = open_page("how_to/checkpoints").run("LambdaRho(")
    (group,) = page["optimizer"].param_groups
    group["rho"] = group["initial_rho"] = 0.8
    page.run("torch.load")
    (group,) = page["optimizer"].param_groups
    assert (group["rho"], group["initial_rho"]) == (0.05 / 4, 0.05)
    page.run('group["rho"] =')
    page["optimizer"].step(page["closure"])
    assert group["rho"] == 0.1
    page["lr_schedule"].step()
    page["rho_schedule"].step()
    assert group["rho"] == 0.1 * 2 / 4


def test_some_parameters_perturbs_the_matrices_only_and_trains_all(open_page: OpenPage) -> None:
    page = open_page("how_to/some_parameters").run("matrices")
    model, optimizer = page["model"], page["optimizer"]
    start = weights_of(model)
    optimizer.zero_grad()
    page["closure"]()
    with optimizer.perturbed():
        at = weights_of(model)
        page["closure"]()
    optimizer.step()
    moved = [not torch.equal(p, q) for p, q in zip(at, start, strict=True)]
    assert moved == [True, False, False, False, True, False]
    distance = sum((p - q).square().sum() for p, q in zip(at, start, strict=True)) ** 0.5
    assert abs(distance - 0.05) < 1e-5
    assert not any(map(torch.equal, weights_of(model[3]), start[4:]))


def test_some_parameters_takes_a_rho_for_each_group(open_page: OpenPage) -> None:
    page = open_page("how_to/some_parameters").run("matrices", "groups")
    assert [group["rho"] for group in page["optimizer"].param_groups] == [0.05, 0.0]


def test_frozen_backbone_saves_gradients_of_the_first_pass_and_changes_no_step(
    open_page: OpenPage,
) -> None:
    page = open_page("how_to/some_parameters").run()
    original, ends = page["model"], []
    for contexts in ({"ascent_context": page["frozen_backbone"]}, {}):
        model = copy.deepcopy(original)
        page.names |= {"model": model, "backbone": model[:3], "head": model[3:]}
        found: list[bool] = []

        def noted(model: nn.Module = model, found: list[bool] = found) -> Tensor:
            loss = page["closure"]()
            found.append(model[0].weight.grad is None)
            return loss

        base = SGD(model.parameters(), lr=0.05)
        BalancedSAM(model[3:].parameters(), base, rho=0.2, **contexts).step(noted)
        assert found == [bool(contexts), False]
        ends.append(weights_of(model))
    assert are_equal(*ends)
    assert not are_equal(ends[0], weights_of(original))


def test_several_optimizers_move_all_weights_and_leave_no_step_open(open_page: OpenPage) -> None:
    page = open_page("how_to/several_optimizers").run()
    sam, start = page["sam"], weights_of(page["model"])
    batch = page["inputs"], page["targets"]
    sam.zero_grad()
    page["balanced_loss"](*batch).backward()
    with sam.perturbed():
        page["balanced_loss"](*batch).backward()
    page["muon"].step()
    page["adamw"].step()
    moved = weights_of(page["model"])
    sam.zero_grad()
    assert not any(map(torch.equal, start, moved))
    assert are_equal(moved, weights_of(page["model"]))
    page["balanced_loss"](*batch).backward()
    with sam.perturbed():
        pass


def test_schedule_free_base_trains_in_its_train_mode_and_ends_in_that_of_eval(
    open_page: OpenPage,
) -> None:
    page = open_page("how_to/schedule_free")
    modes: list[str] = []

    class Noting(page["AdamWScheduleFree"]):
        def step(self, closure: None = None) -> None:
            modes.append(self.mode)
            super().step(closure)

    page.names["sys"].modules["schedulefree"].AdamWScheduleFree = Noting
    page.run()
    assert modes == ["train"] * 3
    assert page["base"].mode == "eval"
    assert not hasattr(make_optimizer(page["model"]), "train")


def test_averages_see_no_perturbation_where_a_closure_raised(open_page: OpenPage) -> None:
    page = open_page("how_to/averages").run()
    assert page["averaged"].n_averaged == 3
    before, optimizer = weights_of(page["model"]), page["optimizer"]

    def failing() -> Tensor:
        if optimizer.is_perturbed:
            raise KeyboardInterrupt
        return page["closure"]()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(failing)
    assert are_equal(weights_of(page["model"]), before)
