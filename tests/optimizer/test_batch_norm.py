"""frozen_running_stats: normalisation statistics stay, whatever runs in the block."""

import copy
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from balanced_sam import BalancedSAM, frozen_running_stats

pytestmark = pytest.mark.works_with("BatchNorm")

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(3), (4, 3)),
    "BatchNorm1d_sequence": (lambda: nn.BatchNorm1d(3), (4, 3, 5)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(3), (4, 3, 2, 2)),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(3), (4, 3, 2, 2, 2)),
    "BatchNorm1d_without_momentum": (lambda: nn.BatchNorm1d(3, momentum=None), (4, 3)),
    "BatchNorm1d_not_affine": (lambda: nn.BatchNorm1d(3, affine=False), (4, 3)),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(3, track_running_stats=True), (4, 3, 5)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(3, track_running_stats=True), (4, 3, 2, 2)),
    "InstanceNorm3d": (lambda: nn.InstanceNorm3d(3, track_running_stats=True), (4, 3, 2, 2, 2)),
}
WITHOUT_STATS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "BatchNorm1d_without_stats": (lambda: nn.BatchNorm1d(3, track_running_stats=False), (4, 3)),
    "InstanceNorm1d_without_stats": (lambda: nn.InstanceNorm1d(3), (4, 3, 5)),
    "LayerNorm": (lambda: nn.LayerNorm(3), (4, 3)),
    "GroupNorm": (lambda: nn.GroupNorm(1, 3), (4, 3)),
}
every_layer = pytest.mark.parametrize(("build", "shape"), LAYERS.values(), ids=LAYERS)
every_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def make_inputs(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 4),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.Sequential(nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2, track_running_stats=True)),
        nn.Flatten(),
        nn.BatchNorm1d(4, momentum=None),
        nn.Linear(4, 1),
    )


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def make_closure(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: int = 1
) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros(())
        for seed in range(batches):
            loss = model(make_inputs((6, 3), seed)).square().mean()
            loss.backward()
            total += loss.detach()
        return total

    return closure


@every_layer
def test_every_buffer_is_bit_identical_after_the_block(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    layer = build()
    layer(make_inputs(shape))
    before = snapshot(layer)
    assert {"running_mean", "running_var"} <= before.keys()
    with frozen_running_stats(layer):
        layer(make_inputs(shape, seed=1))
        layer(make_inputs(shape, seed=2))
    assert_same(snapshot(layer), before)


@every_layer
def test_every_buffer_is_the_same_object_after_the_block(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    layer = build()
    before = dict(layer.named_buffers())
    versions = {name: buffer._version for name, buffer in before.items()}
    with frozen_running_stats(layer):
        layer(make_inputs(shape))
    after = dict(layer.named_buffers())
    assert after.keys() == before.keys()
    assert all(after[name] is buffer for name, buffer in before.items())
    assert {name: buffer._version for name, buffer in after.items()} == versions


@every_layer
@every_mode
def test_outputs_and_gradients_are_those_of_the_layer_outside_the_block(
    build: Callable[[], nn.Module], shape: tuple[int, ...], training: bool
) -> None:
    layer = build().train(training)
    twin = copy.deepcopy(layer)
    inputs = make_inputs(shape).requires_grad_()
    twin_inputs = inputs.detach().clone().requires_grad_()
    with frozen_running_stats(layer):
        outputs = layer(inputs)
    expected = twin(twin_inputs)
    # The backward after the block, once the first buffers are back.
    outputs.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(outputs, expected)
    assert inputs.grad is not None
    assert twin_inputs.grad is not None
    assert torch.equal(inputs.grad, twin_inputs.grad)


@every_layer
def test_the_block_leaves_momentum_and_mode_alone(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    layer, twin = build(), build()
    for _ in range(2):
        with frozen_running_stats(layer), frozen_running_stats(layer):
            layer(make_inputs(shape))
    assert (layer.momentum, layer.training) == (twin.momentum, twin.training)
    layer(make_inputs(shape, seed=1))
    twin(make_inputs(shape, seed=1))
    assert_same(snapshot(layer), snapshot(twin))


@pytest.mark.parametrize(("build", "shape"), WITHOUT_STATS.values(), ids=WITHOUT_STATS)
def test_layer_without_statistics_runs_as_ever(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    layer = build()
    with frozen_running_stats(layer):
        inside = layer(make_inputs(shape))
        assert dict(layer.named_buffers()) == {}
    assert torch.equal(inside, layer(make_inputs(shape)))


def test_sync_batch_norm_buffers_change_in_the_block_only() -> None:
    layer = nn.SyncBatchNorm(3)
    before = dict(layer.named_buffers())
    with frozen_running_stats(layer):
        for buffer in layer.buffers():
            buffer.add_(1)
    after = dict(layer.named_buffers())
    assert all(after[name] is buffer for name, buffer in before.items())
    assert_same(after, dict(nn.SyncBatchNorm(3).named_buffers()))


def test_converted_sync_batch_norm_keeps_its_statistics() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(make_network())
    before = snapshot(model)
    with frozen_running_stats(model):
        for buffer in model.buffers():
            buffer.add_(1)
    assert_same(snapshot(model), before)


def test_nested_blocks_each_restore_what_they_found() -> None:
    layer = nn.BatchNorm1d(3)
    outermost = layer.running_mean
    with frozen_running_stats(layer):
        layer(make_inputs((4, 3)))
        between = layer.running_mean
        with frozen_running_stats(layer):
            layer(make_inputs((4, 3), seed=1))
        assert layer.running_mean is between
        assert not torch.equal(between, torch.zeros(3))
    assert layer.running_mean is outermost
    assert torch.equal(outermost, torch.zeros(3))


def test_a_block_on_a_part_inside_a_block_on_the_whole_restores_both() -> None:
    model = make_network()
    before = snapshot(model)
    with frozen_running_stats(model), frozen_running_stats(model[1]):
        model(make_inputs((6, 3)))
    assert_same(snapshot(model), before)


def test_a_block_on_a_part_keeps_that_part_only() -> None:
    model, twin = make_network(), make_network()
    with frozen_running_stats(model[1]):
        model(make_inputs((6, 3)))
    fresh = snapshot(twin)
    twin(make_inputs((6, 3)))
    expected = snapshot(twin) | {name: fresh[name] for name in fresh if name.startswith("1.")}
    assert_same(snapshot(model), expected)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_statistics_are_back_after_an_exception(error: type[BaseException]) -> None:
    model = make_network()
    before = dict(model.named_buffers())
    values = snapshot(model)

    def fail_in_the_block() -> None:
        with frozen_running_stats(model):
            model(make_inputs((6, 3)))
            raise error("stop")

    with pytest.raises(error, match="stop"):
        fail_in_the_block()
    assert all(buffer is before[name] for name, buffer in model.named_buffers())
    assert_same(snapshot(model), values)


@every_mode
def test_block_can_be_entered_while_a_graph_waits_for_its_backward(training: bool) -> None:
    model = make_network().train(training)
    loss = model(make_inputs((6, 3))).square().mean()
    with frozen_running_stats(model):
        model(make_inputs((6, 3), seed=1))
    loss.backward()
    gradient = model[0].weight.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()


def test_eval_mode_layers_normalise_with_their_statistics_in_the_block() -> None:
    model = make_network()
    model(make_inputs((6, 3)))
    model.eval()
    expected = model(make_inputs((6, 3), seed=1))
    with frozen_running_stats(model):
        assert torch.equal(model(make_inputs((6, 3), seed=1)), expected)
    assert not model.training


def test_custom_module_keeps_buffers_of_the_known_names_only() -> None:
    class Centered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(3))
            self.register_buffer("running_var", None)
            self.register_buffer("num_batches_tracked", torch.tensor(0), persistent=False)
            self.register_buffer("seen", torch.tensor(0))

        def forward(self, inputs: Tensor) -> Tensor:
            self.running_mean += inputs.detach().mean(0)
            self.num_batches_tracked += 1
            self.seen += len(inputs)
            return inputs - self.running_mean

    model = nn.Sequential(Centered(), nn.Linear(3, 1))
    with frozen_running_stats(model):
        model(make_inputs((4, 3)))
    assert torch.equal(model[0].running_mean, torch.zeros(3))
    assert model[0].running_var is None
    assert model[0].num_batches_tracked == 0
    assert model[0].seen == 4
    assert set(model.state_dict()) == {"0.running_mean", "0.seen", "1.weight", "1.bias"}


def test_module_used_twice_in_a_model_is_kept() -> None:
    layer = nn.BatchNorm1d(3)
    model = nn.Sequential(layer, nn.Linear(3, 3), layer)
    before = dict(layer.named_buffers())
    with frozen_running_stats(model):
        model(make_inputs((4, 3)))
    assert all(buffer is before[name] for name, buffer in layer.named_buffers())
    assert_same(snapshot(layer), snapshot(nn.BatchNorm1d(3)))


def test_lazy_layer_can_meet_its_first_batch_in_the_block() -> None:
    layer = nn.LazyBatchNorm1d()
    with frozen_running_stats(layer):
        outputs = layer(make_inputs((4, 3)))
    assert type(layer) is nn.BatchNorm1d
    assert torch.equal(outputs, nn.BatchNorm1d(3)(make_inputs((4, 3))))
    assert layer.running_mean is not None
    before = snapshot(layer)
    with frozen_running_stats(layer):
        layer(make_inputs((4, 3), seed=1))
    assert_same(snapshot(layer), before)


def test_lazy_layer_beside_others_does_not_keep_them_from_being_frozen() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.LazyLinear(2), nn.LazyBatchNorm1d())
    before = snapshot(model[0])
    with frozen_running_stats(model):
        model(make_inputs((4, 3)))
    assert_same(snapshot(model[0]), before)


def test_module_without_submodules_or_buffers_is_accepted() -> None:
    layer = nn.Linear(3, 1)
    with frozen_running_stats(layer):
        assert layer(make_inputs((4, 3))).shape == (4, 1)


def test_block_is_left_out_of_what_pickle_keeps() -> None:
    model = make_network()
    with frozen_running_stats(model):
        model(make_inputs((6, 3)))
    assert_same(snapshot(pickle.loads(pickle.dumps(model))), snapshot(make_network()))


@settings(max_examples=15, deadline=None)
@given(
    depth=st.integers(1, 4),
    forwards=st.integers(1, 3),
    seed=st.integers(0, 100),
    training=st.booleans(),
)
def test_any_nesting_restores_every_buffer_bit_for_bit(
    depth: int, forwards: int, seed: int, training: bool
) -> None:
    model = make_network()
    model(make_inputs((6, 3), seed))
    model.train(training)
    before = snapshot(model)

    def descend(level: int) -> None:
        if level == 0:
            return
        found = snapshot(model)
        with frozen_running_stats(model):
            for i in range(forwards):
                model(make_inputs((6, 3), seed + i))
            descend(level - 1)
        assert_same(snapshot(model), found)

    descend(depth)
    assert_same(snapshot(model), before)


@pytest.mark.parametrize("batches", [1, 3], ids=["one_batch", "micro_batches"])
def test_step_with_it_as_descent_context_updates_statistics_as_one_clean_pass(
    batches: int,
) -> None:
    model = make_network()
    twin = copy.deepcopy(model)
    optimizer = BalancedSAM(
        model.parameters(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        rho=0.5,
        descent_context=partial(frozen_running_stats, model),
    )
    optimizer.step(make_closure(model, optimizer, batches))
    for seed in range(batches):
        twin(make_inputs((6, 3), seed))
    assert_same(snapshot(model), snapshot(twin))


def test_step_without_it_updates_statistics_twice() -> None:
    model = make_network()
    twin = copy.deepcopy(model)
    optimizer = BalancedSAM(
        model.parameters(), torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5
    )
    optimizer.step(make_closure(model, optimizer))
    twin(make_inputs((6, 3)))
    assert model[1].num_batches_tracked == 2
    assert not torch.equal(model[1].running_mean, twin[1].running_mean)


def test_descent_context_does_not_change_the_weights_a_step_leads_to() -> None:
    models = [make_network(), make_network()]
    for model, context in zip(
        models, [{}, {"descent_context": partial(frozen_running_stats, models[1])}], strict=True
    ):
        optimizer = BalancedSAM(
            model.parameters(), torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5, **context
        )
        for _ in range(3):
            optimizer.step(make_closure(model, optimizer))
    first, second = (dict(model.named_parameters()) for model in models)
    assert_same(first, second)


@pytest.mark.parametrize("keeps", [True, False], ids=["frozen_running_stats", "as it is"])
def test_ascent_on_a_sub_batch_leaves_the_running_statistics(keeps: bool) -> None:
    """With ``frozen_running_stats`` around the first pass they are those of the whole batch."""
    model = make_network()
    twin = copy.deepcopy(model)
    optimizer = BalancedSAM(
        # What comes after all normalization is perturbed alone.
        model[6].parameters(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        rho=0.5,
        ascent_context=partial(frozen_running_stats, model) if keeps else nullcontext,
    )

    def ascent_closure() -> Tensor:
        loss = model(100 * make_inputs((2, 3), seed=1)).square().mean()
        loss.backward()
        return loss

    optimizer.step(make_closure(model, optimizer), ascent_closure=ascent_closure)
    twin(make_inputs((6, 3)))
    assert model[1].num_batches_tracked == (1 if keeps else 2)
    assert torch.equal(model[1].running_mean, twin[1].running_mean) == keeps


def test_step_of_one_pass_updates_statistics_once_though_the_context_is_given() -> None:
    model = make_network()
    optimizer = BalancedSAM(
        model.parameters(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        rho=0.0,
        descent_context=partial(frozen_running_stats, model),
    )
    optimizer.step(make_closure(model, optimizer))
    twin = make_network()
    twin(make_inputs((6, 3)))
    assert_same(snapshot(model), snapshot(twin))


def test_statistics_are_those_of_the_clean_pass_after_an_exception_in_the_second() -> None:
    model = make_network()
    optimizer = BalancedSAM(
        model.parameters(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        rho=0.5,
        descent_context=partial(frozen_running_stats, model),
    )
    closure = make_closure(model, optimizer)

    def fail_at_the_end_of_the_second_pass() -> Tensor:
        loss = closure()
        if optimizer.is_perturbed:
            raise MemoryError("out of memory")
        return loss

    with pytest.raises(MemoryError, match="out of memory"):
        optimizer.step(fail_at_the_end_of_the_second_pass)
    twin = make_network()
    twin(make_inputs((6, 3)))
    assert_same(snapshot(model), snapshot(twin))


@pytest.mark.parametrize("own", [True, False], ids=["in the block", "descent_context"])
def test_manual_loop_can_freeze_the_perturbed_pass(own: bool) -> None:
    model = make_network()
    context = partial(frozen_running_stats, model)
    optimizer = BalancedSAM(
        model.parameters(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        rho=0.5,
        descent_context=nullcontext if own else context,
    )
    closure = make_closure(model, optimizer)
    closure()
    with optimizer.perturbed(), context() if own else nullcontext():
        closure()
    optimizer.step()
    twin = make_network()
    twin(make_inputs((6, 3)))
    assert_same(snapshot(model), snapshot(twin))


def test_argument_that_is_no_module_is_refused() -> None:
    with (
        pytest.raises(TypeError, match="Expected `module` to be Module, but got list"),
        frozen_running_stats([nn.BatchNorm1d(3)]),  # type: ignore[arg-type]
    ):
        pass
