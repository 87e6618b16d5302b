"""BalancedSAM inside trainers, run for real: Lightning, Fabric, accelerate, transformers."""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import lightning.pytorch as pl
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration
from lightning.fabric.plugins.precision import MixedPrecision as FabricMixedPrecision
from lightning.pytorch.loops.optimization.automatic import Closure
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler
from torch.utils.data import DataLoader, TensorDataset

from balanced_sam import BalancedSAM, LambdaRho, TargetBins, TargetWeights, weighted_mean

# Lightning's own: a torch name it uses is deprecated, and it wants more loader processes.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
]

BATCHES = 3
RHO = 0.3
EPOCHS = 2
Batch = list[Tensor]
BASES: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": partial(SGD, lr=0.1, momentum=0.9),
    "AdamW": partial(AdamW, lr=0.01),
}
every_base = pytest.mark.parametrize("make_base", BASES.values(), ids=BASES)


@pytest.fixture(autouse=True)
def accelerate_starts_anew() -> Iterator[None]:
    """Forget accelerate's settings, such as the precision, which hold for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def make_scaler() -> GradScaler:
    """Return a scaler whose scale grows in every run here."""
    return GradScaler("cpu", init_scale=2.0**8, growth_interval=2)


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def make_loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(4 * BATCHES, 3, generator=generator)
    targets = torch.rand(4 * BATCHES, generator=generator) * 10
    return DataLoader(TensorDataset(inputs, targets), batch_size=4)


def make_weights() -> TargetWeights:
    targets = torch.cat([targets for _, targets in make_loader()])
    return TargetWeights.from_targets(targets, TargetBins.uniform(0, 10, width=2))


def balanced_loss(network: nn.Module, batch: Batch) -> Tensor:
    inputs, targets = batch
    return weighted_mean((network(inputs)[:, 0] - targets).abs(), make_weights()(targets))


def make_optimizer(
    network: nn.Module, make_base: Callable[[Any], Optimizer] = BASES["SGD"]
) -> BalancedSAM:
    return BalancedSAM(network.parameters(), make_base(network.parameters()), rho=RHO)


def make_schedulers(optimizer: Optimizer) -> list[LRScheduler]:
    return [
        CosineAnnealingLR(optimizer, T_max=20),
        LambdaRho(optimizer, lambda t: float(t % 2)),
    ]


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def train_plainly(
    *,
    make_base: Callable[[Any], Optimizer] = BASES["SGD"],
    clip: float | None = None,
    scheduled: bool = False,
    dtype: torch.dtype | None = None,
    scaler: GradScaler | None = None,
    epochs: int = EPOCHS,
) -> dict[str, Tensor]:
    """Return the weights after the loop that every trainer here is held against."""
    network = make_network()
    optimizer = make_optimizer(network, make_base)
    schedulers = make_schedulers(optimizer) if scheduled else []

    def closure(batch: Batch) -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            loss = balanced_loss(network, batch)
        (loss if scaler is None else scaler.scale(loss)).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        return loss

    for _ in range(epochs):
        for batch in make_loader():
            optimizer.step(partial(closure, batch), scaler=scaler)
            if scaler is not None:
                scaler.update()
            for scheduler in schedulers:
                scheduler.step()
    return weights_of(network)


class Regressor(pl.LightningModule):
    """An ordinary module: nothing but ``configure_optimizers`` knows of the optimizer."""

    def __init__(
        self, make_base: Callable[[Any], Optimizer] = BASES["SGD"], *, scheduled: bool = False
    ) -> None:
        super().__init__()
        self.network = make_network()
        self.make_base = make_base
        self.scheduled = scheduled
        self.calls: list[int] = []
        self.rhos: list[float] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.calls.append(batch_idx)
        return balanced_loss(self.network, batch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.rhos.append(self.trainer.optimizers[0].param_groups[0]["rho"])

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.network, self.make_base)
        if not self.scheduled:
            return optimizer
        schedulers = make_schedulers(optimizer)
        return [optimizer], [
            {"scheduler": scheduler, "interval": "step"} for scheduler in schedulers
        ]


def fit(module: pl.LightningModule, root: Path, *, ckpt_path: Path | None = None, **options: Any):
    trainer = pl.Trainer(
        **{"max_epochs": EPOCHS, "enable_checkpointing": False} | options,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
    )
    trainer.fit(module, make_loader(), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.works_with("Lightning")
def test_lightning_calls_the_training_step_twice_a_batch_and_counts_one_step(
    tmp_path: Path,
) -> None:
    module = Regressor()
    trainer = fit(module, tmp_path)
    assert module.calls == [i for i in range(BATCHES) for _ in range(2)] * EPOCHS
    assert trainer.global_step == EPOCHS * BATCHES


@pytest.mark.works_with("Lightning")
@every_base
def test_lightning_takes_the_steps_of_a_plain_loop(
    make_base: Callable[[Any], Optimizer], tmp_path: Path
) -> None:
    module = Regressor(make_base)
    fit(module, tmp_path)
    assert_same(weights_of(module.network), train_plainly(make_base=make_base))


@pytest.mark.works_with("Lightning")
def test_lightning_with_gradient_clipping_takes_the_steps_of_a_loop_that_clips(
    tmp_path: Path,
) -> None:
    module = Regressor()
    fit(module, tmp_path, gradient_clip_val=0.1)
    clipped = train_plainly(clip=0.1)
    assert_same(weights_of(module.network), clipped)
    assert not torch.equal(clipped["0.weight"], train_plainly()["0.weight"])


@pytest.mark.works_with("Lightning")
def test_lightning_drives_lr_and_rho_schedules_every_step(tmp_path: Path) -> None:
    module = Regressor(scheduled=True)
    trainer = fit(module, tmp_path)
    assert_same(weights_of(module.network), train_plainly(scheduled=True))
    assert module.rhos == [0.0, RHO] * (EPOCHS * BATCHES // 2)
    # One pass where rho is 0, two where it is not.
    assert len(module.calls) == EPOCHS * BATCHES * 3 // 2
    bare = SGD(make_network().parameters(), lr=0.1)
    expected = CosineAnnealingLR(bare, T_max=20)
    for _ in range(EPOCHS * BATCHES):
        bare.step()
        expected.step()
    assert trainer.optimizers[0].param_groups[0]["lr"] == expected.get_last_lr()[0]


@pytest.mark.works_with("Lightning")
def test_lightning_in_bfloat16_takes_the_steps_of_a_loop_under_autocast(tmp_path: Path) -> None:
    module = Regressor()
    fit(module, tmp_path, precision="bf16-mixed")
    assert_same(weights_of(module.network), train_plainly(dtype=torch.bfloat16))


@pytest.mark.works_with("Lightning")
@every_base
def test_lightning_resumed_from_its_checkpoint_equals_the_uninterrupted_run(
    make_base: Callable[[Any], Optimizer], tmp_path: Path
) -> None:
    whole = Regressor(make_base, scheduled=True)
    expected = fit(whole, tmp_path, max_epochs=3)
    first = fit(Regressor(make_base, scheduled=True), tmp_path, max_epochs=1)
    first.save_checkpoint(tmp_path / "first.ckpt")
    resumed = Regressor(make_base, scheduled=True)
    trainer = fit(resumed, tmp_path, max_epochs=3, ckpt_path=tmp_path / "first.ckpt")
    assert trainer.global_step == 3 * BATCHES
    assert resumed.rhos == whole.rhos[BATCHES:]
    assert_same(weights_of(resumed.network), weights_of(whole.network))
    mine, other = (t.optimizers[0].state_dict() for t in (trainer, expected))
    assert mine["param_groups"] == other["param_groups"]
    for index, state in other["state"].items():
        assert_same(mine["state"][index], state)


@pytest.mark.works_with("Lightning")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to")
def test_lightning_checkpoint_callback_saves_what_resumes_exactly(tmp_path: Path) -> None:
    callback = pl.callbacks.ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    whole = Regressor(scheduled=True)
    fit(whole, tmp_path, enable_checkpointing=True, callbacks=[callback])
    resumed = Regressor(scheduled=True)
    trainer = fit(resumed, tmp_path, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert trainer.global_step == EPOCHS * BATCHES
    assert len(resumed.rhos) == BATCHES
    assert_same(weights_of(resumed.network), weights_of(whole.network))


@pytest.mark.works_with("Lightning")
def test_lightning_shows_the_sharpness_of_the_step_to_the_module(tmp_path: Path) -> None:
    class Reader(Regressor):
        def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
            optimizer = self.optimizers()
            assert isinstance(optimizer, BalancedSAM)
            sharpness.append(optimizer.sharpness.item())

    sharpness: list[float] = []
    fit(Reader(), tmp_path)
    assert len(sharpness) == EPOCHS * BATCHES
    assert all(value > 0 for value in sharpness)


@pytest.mark.works_with("Lightning")
def test_lightning_gradient_accumulation_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="loop over them inside the closure"):
        fit(Regressor(), tmp_path, accumulate_grad_batches=3)


@pytest.mark.works_with("Lightning")
def test_lightning_training_step_that_returns_none_skips_the_batch(tmp_path: Path) -> None:
    class Skipper(Regressor):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
            self.calls.append(batch_idx)
            return balanced_loss(self.network, batch) if batch_idx != 1 else None

    network = make_network()
    optimizer = make_optimizer(network)

    def closure(batch: Batch) -> Tensor:
        loss = balanced_loss(network, batch)
        loss.backward()
        return loss

    for i, batch in enumerate(make_loader()):
        if i != 1:
            optimizer.step(partial(closure, batch))
    module = Skipper()
    Closure.warning_cache.clear()  # Lightning warns once a process, so another test may have had it
    with pytest.warns(UserWarning, match="returned `None`"):
        fit(module, tmp_path, max_epochs=1)
    assert module.calls == [0, 0, 1, 2, 2]
    assert_same(weights_of(module.network), weights_of(network))


@pytest.mark.works_with("Lightning")
def test_lightning_weight_averaging_estimates_batch_norm_statistics(tmp_path: Path) -> None:
    """Its last epoch runs no backward."""

    class Normalized(Regressor):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    module = Normalized()
    averaging = pl.callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1)
    with pytest.warns(UserWarning, match="does nothing where the closure leaves no gradient"):
        fit(module, tmp_path, max_epochs=3, callbacks=[averaging])
    layer = module.network[1]
    hidden = torch.cat([module.network[0](inputs) for inputs, _ in make_loader()])
    torch.testing.assert_close(layer.running_mean, hidden.mean(dim=0).detach())


@pytest.mark.works_with("Lightning")
def test_lightning_logs_the_clean_loss_where_the_second_pass_is_left_out(tmp_path: Path) -> None:
    class Logger(Regressor):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            loss = balanced_loss(self.network, batch)
            if not self.optimizers().is_perturbed:
                self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[0]))
                clean.append(loss.item())
            return loss

    clean: list[float] = []
    trainer = fit(Logger(), tmp_path, max_epochs=1)
    assert len(clean) == BATCHES
    assert trainer.callback_metrics["loss"].item() == pytest.approx(sum(clean) / BATCHES)


class ManualRegressor(Regressor):
    """Optimizes by hand, in one of the ways that a module can."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.training_step = getattr(self, way)
        self.states: list[bool] = []

    def by_closure(self, batch: Batch, batch_idx: int) -> None:
        optimizer = self.optimizers()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = balanced_loss(self.network, batch)
            self.manual_backward(loss)
            self.states.append(optimizer.is_perturbed)
            return loss

        optimizer.step(closure=closure)

    def by_perturbed_block(self, batch: Batch, batch_idx: int) -> None:
        optimizer = self.optimizers()
        self._two_passes(optimizer, batch)
        optimizer.step()

    def by_perturbed_block_of_the_optimizer_inside(self, batch: Batch, batch_idx: int) -> None:
        optimizer = self.optimizers().optimizer
        self._two_passes(optimizer, batch)
        optimizer.step()

    def by_bare_step(self, batch: Batch, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(balanced_loss(self.network, batch))
        optimizer.step()

    def by_closure_and_scaler(self, batch: Batch, batch_idx: int) -> None:
        # Lightning's own wrapper would run the closure once and leave the step to the scaler.
        optimizer = self.optimizers(use_pl_optimizer=False)
        scaler = self.trainer.precision_plugin.scaler

        def closure() -> Tensor:
            loss = balanced_loss(self.network, batch)
            self.manual_backward(loss)
            return loss

        optimizer.step(closure, scaler=scaler)
        scaler.update()

    def _two_passes(self, optimizer: Any, batch: Batch) -> None:
        optimizer.zero_grad()
        self.manual_backward(balanced_loss(self.network, batch))
        self.states.append(optimizer.is_perturbed)
        with optimizer.perturbed():
            self.manual_backward(balanced_loss(self.network, batch))
            self.states.append(optimizer.is_perturbed)


@pytest.mark.works_with("Lightning")
@pytest.mark.parametrize(
    "way", ["by_closure", "by_perturbed_block", "by_perturbed_block_of_the_optimizer_inside"]
)
def test_lightning_manual_optimization_takes_the_steps_of_a_plain_loop(
    way: str, tmp_path: Path
) -> None:
    module = ManualRegressor(way)
    trainer = fit(module, tmp_path)
    assert module.states == [False, True] * (EPOCHS * BATCHES)
    assert_same(weights_of(module.network), train_plainly())
    if not way.endswith("inside"):
        assert trainer.global_step == EPOCHS * BATCHES


def in_float16() -> dict[str, Any]:
    """Return the options of a Lightning Trainer that scales the loss, as on a GPU."""
    return {"plugins": [MixedPrecision("16-mixed", "cpu", make_scaler())]}


@pytest.mark.works_with("Lightning")
@pytest.mark.parametrize("way", ["by_perturbed_block", "by_closure_and_scaler"])
def test_lightning_manual_optimization_in_float16_takes_the_steps_of_a_plain_loop(
    way: str, tmp_path: Path
) -> None:
    module, scaler = ManualRegressor(way), make_scaler()
    trainer = fit(module, tmp_path, **in_float16())
    assert_same(weights_of(module.network), train_plainly(dtype=torch.float16, scaler=scaler))
    assert trainer.precision_plugin.scaler.state_dict() == scaler.state_dict()
    assert scaler.get_scale() > make_scaler().get_scale()


class Players(nn.Module):
    """Two networks, one of which reads the other's outputs, as in a GAN."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.generator = nn.Linear(3, 2)
        self.critic = nn.Linear(2, 1)

    def generator_loss(self, batch: Batch) -> Tensor:
        return self.critic(self.generator(batch[0])).square().mean()

    def critic_loss(self, batch: Batch) -> Tensor:
        return (self.critic(self.generator(batch[0]).detach())[:, 0] - batch[1]).abs().mean()

    def optimizers(self) -> list[BalancedSAM]:
        return [make_optimizer(self.generator), make_optimizer(self.critic, BASES["AdamW"])]


def play_plainly(epochs: int) -> dict[str, Tensor]:
    """Return the weights after a loop in which no player's loss touches the other's gradients."""
    players = Players()
    optimizers = players.optimizers()
    losses = [players.generator_loss, players.critic_loss]
    others = [players.critic, players.generator]
    for _ in range(epochs):
        for batch in make_loader():
            for optimizer, loss_of, other in zip(optimizers, losses, others, strict=True):

                def closure(loss_of: Any = loss_of, batch: Batch = batch) -> Tensor:
                    loss = loss_of(batch)
                    loss.backward()
                    return loss

                other.requires_grad_(requires_grad=False)
                optimizer.step(closure)
                other.requires_grad_(requires_grad=True)
    return weights_of(players)


def test_two_optimizers_in_a_loop_move_their_own_network_only() -> None:
    players = Players()
    generator, critic = players.optimizers()
    for batch in make_loader():
        for optimizer, loss_of, still in (
            (generator, players.generator_loss, players.critic),
            (critic, players.critic_loss, players.generator),
        ):
            before = weights_of(still)

            def closure(
                optimizer: BalancedSAM = optimizer, loss_of: Any = loss_of, batch: Batch = batch
            ) -> Tensor:
                loss = loss_of(batch)
                loss.backward()
                assert generator.is_perturbed == (optimizer is generator and closure.calls)
                assert critic.is_perturbed == (optimizer is critic and closure.calls)
                closure.calls += 1
                return loss

            closure.calls = 0
            # The generator's loss left a gradient on the critic: GAN loops clear it here.
            optimizer.zero_grad()
            optimizer.step(closure)
            assert closure.calls == 2
            assert_same(weights_of(still), before)
    assert_same(weights_of(players), play_plainly(1))


@pytest.mark.works_with("Lightning")
def test_lightning_manual_optimization_with_two_optimizers_equals_a_plain_loop(
    tmp_path: Path,
) -> None:
    class Game(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.players = Players()
            self.automatic_optimization = False

        def training_step(self, batch: Batch, batch_idx: int) -> None:
            losses = [self.players.generator_loss, self.players.critic_loss]
            for optimizer, loss_of in zip(self.optimizers(), losses, strict=True):

                def closure(loss_of: Any = loss_of) -> Tensor:
                    loss = loss_of(batch)
                    self.manual_backward(loss)
                    return loss

                with optimizer.toggle_model():
                    optimizer.step(closure=closure)

        def configure_optimizers(self) -> list[BalancedSAM]:
            return self.players.optimizers()

    game = Game()
    trainer = fit(game, tmp_path)
    assert trainer.global_step == 2 * EPOCHS * BATCHES
    assert_same(weights_of(game.players), play_plainly(EPOCHS))


@pytest.mark.works_with("Lightning")
def test_fabric_in_float16_takes_the_steps_of_a_plain_loop() -> None:
    plugin = FabricMixedPrecision("16-mixed", "cpu", make_scaler())
    fabric = lightning.Fabric(accelerator="cpu", devices=1, plugins=[plugin])
    network, scaler = make_network(), make_scaler()
    model, optimizer = fabric.setup(network, make_optimizer(network))
    for _ in range(EPOCHS):
        for batch in fabric.setup_dataloaders(make_loader()):
            optimizer.zero_grad()
            fabric.backward(balanced_loss(model, batch))
            with optimizer.optimizer.perturbed():
                fabric.backward(balanced_loss(model, batch))
            optimizer.step()
    expected = train_plainly(dtype=torch.float16, scaler=scaler)
    for name, weight in weights_of(network).items():
        # Fabric rounds the inputs to float16 as well.
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-3)
    assert plugin.scaler.state_dict() == scaler.state_dict()


@pytest.mark.works_with("Lightning")
def test_fabric_takes_the_steps_of_a_plain_loop() -> None:
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    network = make_network()
    # Fabric forwards calls of the module itself only.
    model, optimizer = fabric.setup(network, make_optimizer(network))
    loader = fabric.setup_dataloaders(make_loader())
    for _ in range(EPOCHS):
        for batch in loader:

            def closure(batch: Batch = batch) -> Tensor:
                optimizer.zero_grad()
                loss = balanced_loss(model, batch)
                fabric.backward(loss)
                return loss

            optimizer.step(closure)
    assert_same(weights_of(network), train_plainly())


class AcceleratedRun:
    """The loop of accelerate's documentation, its step given a closure."""

    def __init__(
        self,
        *,
        make_base: Callable[[Any], Optimizer] = BASES["SGD"],
        scheduled: bool = False,
        clip: float | None = None,
        scaler: GradScaler | None = None,
        **options: Any,
    ) -> None:
        self.accelerator = Accelerator(
            cpu=True,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=False),
            **options,
        )
        # Without a GPU accelerate trains in float32 where it is told to in float16.
        self.accelerator.scaler = scaler
        self.autocast = partial(torch.autocast, "cpu", torch.float16, enabled=scaler is not None)
        self.network = make_network()
        self.clip = clip
        self.calls = 0
        optimizer = make_optimizer(self.network, make_base)
        schedulers = make_schedulers(optimizer) if scheduled else []
        self.model, self.optimizer, self.loader, *self.schedulers = self.accelerator.prepare(
            self.network, optimizer, make_loader(), *schedulers
        )

    def closure(self, batch: Batch) -> Tensor:
        self.calls += 1
        self.optimizer.zero_grad()
        with self.autocast():
            loss = balanced_loss(self.model, batch)
        self.accelerator.backward(loss)
        if self.clip is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip)
        return loss

    def train(self, epochs: int) -> list[tuple[float, float]]:
        """Return lr and rho of every step."""
        history = []
        for _ in range(epochs):
            for batch in self.loader:
                group = self.optimizer.param_groups[0]
                history.append((group["lr"], group["rho"]))
                self.optimizer.step(partial(self.closure, batch))
                for scheduler in self.schedulers:
                    scheduler.step()
        return history


@pytest.mark.works_with("Accelerate")
@every_base
@pytest.mark.parametrize("clip", [None, 0.1], ids=["unclipped", "clipped"])
def test_accelerate_takes_the_steps_of_a_plain_loop(
    make_base: Callable[[Any], Optimizer], clip: float | None
) -> None:
    run = AcceleratedRun(make_base=make_base, clip=clip)
    run.train(EPOCHS)
    assert run.calls == 2 * EPOCHS * BATCHES
    assert_same(weights_of(run.network), train_plainly(make_base=make_base, clip=clip))


@pytest.mark.works_with("Accelerate")
def test_accelerate_lets_the_schedules_drive_the_optimizer_after_prepare() -> None:
    run = AcceleratedRun(scheduled=True)
    history = run.train(EPOCHS)
    assert_same(weights_of(run.network), train_plainly(scheduled=True))
    bare = SGD(make_network().parameters(), lr=0.1)
    cosine = CosineAnnealingLR(bare, T_max=20)
    expected = []
    for t in range(EPOCHS * BATCHES):
        expected.append((cosine.get_last_lr()[0], RHO * (t % 2)))
        bare.step()
        cosine.step()
    assert history == expected
    assert len({lr for lr, _ in history}) == EPOCHS * BATCHES


@pytest.mark.works_with("Accelerate")
def test_schedules_can_be_made_of_the_optimizer_that_accelerate_returns() -> None:
    run = AcceleratedRun()
    run.schedulers = make_schedulers(run.optimizer)
    run.train(EPOCHS)
    assert_same(weights_of(run.network), train_plainly(scheduled=True))


@pytest.mark.works_with("Accelerate")
@every_base
def test_accelerate_resumed_from_its_state_equals_the_uninterrupted_run(
    make_base: Callable[[Any], Optimizer], tmp_path: Path
) -> None:
    run = AcceleratedRun(make_base=make_base, scheduled=True)
    run.train(1)
    run.accelerator.save_state(str(tmp_path))
    expected = run.train(1)
    resumed = AcceleratedRun(make_base=make_base, scheduled=True)
    resumed.accelerator.load_state(str(tmp_path))
    assert resumed.train(1) == expected
    assert_same(weights_of(resumed.network), weights_of(run.network))
    mine, other = (each.optimizer.state_dict() for each in (resumed, run))
    assert mine["param_groups"] == other["param_groups"]
    for index, state in other["state"].items():
        assert_same(mine["state"][index], state)


@pytest.mark.works_with("Accelerate")
def test_accelerate_keeps_the_prepared_optimizer_and_its_base_together() -> None:
    run = AcceleratedRun()
    inner = run.optimizer.optimizer
    assert run.optimizer.param_groups is inner.base_optimizer.param_groups
    assert run.optimizer.state is inner.base_optimizer.state


@pytest.mark.works_with("Accelerate")
def test_manual_cycle_works_on_the_optimizer_inside_accelerates() -> None:
    run = AcceleratedRun()
    optimizer = run.optimizer.optimizer
    for _ in range(EPOCHS):
        for batch in run.loader:
            run.closure(batch)
            with optimizer.perturbed():
                run.closure(batch)
            run.optimizer.step()
    assert_same(weights_of(run.network), train_plainly())


@pytest.mark.works_with("Accelerate")
def test_accelerate_in_bfloat16_takes_the_steps_of_a_loop_under_autocast() -> None:
    run = AcceleratedRun(mixed_precision="bf16")
    run.train(EPOCHS)
    assert_same(weights_of(run.network), train_plainly(dtype=torch.bfloat16))


@pytest.mark.works_with("Accelerate")
@pytest.mark.parametrize("way", ["closure", "perturbed block"])
def test_accelerate_in_float16_takes_the_steps_of_a_plain_loop(way: str) -> None:
    run, scaler = AcceleratedRun(scaler=make_scaler()), make_scaler()
    optimizer = run.optimizer.optimizer
    for _ in range(EPOCHS):
        for batch in run.loader:
            if way == "closure":
                optimizer.step(partial(run.closure, batch), scaler=run.accelerator.scaler)
                run.accelerator.scaler.update()
            else:
                run.closure(batch)
                with optimizer.perturbed():
                    run.closure(batch)
                run.optimizer.step()
    assert_same(weights_of(run.network), train_plainly(dtype=torch.float16, scaler=scaler))
    assert run.accelerator.scaler.state_dict() == scaler.state_dict()
    assert scaler.get_scale() > make_scaler().get_scale()


@pytest.mark.works_with("Accelerate")
def test_micro_batches_inside_a_closure_of_accelerate_equal_one_batch() -> None:
    run = AcceleratedRun()
    for _ in range(EPOCHS):
        for batch in run.loader:

            def closure(batch: Batch = batch) -> Tensor:
                total = torch.zeros(())
                for part in zip(*(tensor.split([1, 3]) for tensor in batch), strict=True):
                    loss = balanced_loss(run.model, list(part)) * len(part[0]) / len(batch[0])
                    run.accelerator.backward(loss)
                    total += loss.detach()
                return total

            run.optimizer.step(closure)
    for name, weight in train_plainly().items():
        torch.testing.assert_close(weights_of(run.network)[name], weight)


@pytest.mark.works_with("Accelerate")
def test_accumulate_of_accelerate_is_warned_of_where_gradients_are_gathered() -> None:
    run = AcceleratedRun(gradient_accumulation_steps=BATCHES)
    passes = []

    def backward(number: int, batch: Batch) -> Tensor:
        passes.append(number)
        loss = balanced_loss(run.model, batch)
        run.accelerator.backward(loss)
        return loss

    for number, batch in enumerate(run.loader):
        with run.accelerator.accumulate(run.model):
            backward(number, batch)
            is_last = number == BATCHES - 1
            with pytest.warns(match="inside the closure") if is_last else nullcontext():
                run.optimizer.step(partial(backward, number, batch))
            run.optimizer.zero_grad()
    # Accelerate does not hand on the steps before the last: their closures are not called.
    assert passes == [*range(BATCHES), BATCHES - 1, BATCHES - 1]


def train_with_transformers(
    root: Path, *, two_passes: bool = True, **options: Any
) -> dict[str, Tensor]:
    """Return the weights after training by a Trainer of transformers."""
    # Seconds to import: only by the tests that need it.
    from transformers import Trainer, TrainingArguments

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = make_network()

        def forward(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
            return {"loss": balanced_loss(self.network, [inputs, targets])}

    def collate(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        inputs, targets = map(torch.stack, zip(*samples, strict=True))
        return {"inputs": inputs, "targets": targets}

    class OrdinaryTrainer(Trainer):
        def get_train_dataloader(self) -> Any:
            loader = DataLoader(make_loader().dataset, batch_size=4, collate_fn=collate)
            return self.accelerator.prepare(loader)

    class TwoPassTrainer(OrdinaryTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            loss = super().training_step(*args, **kwargs)
            with self.optimizer.optimizer.perturbed():
                super().training_step(*args, **kwargs)
            return loss

    model = Model()
    optimizer = make_optimizer(model)
    arguments = TrainingArguments(
        output_dir=str(root),
        use_cpu=True,
        num_train_epochs=EPOCHS,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **{"max_grad_norm": 0.0} | options,
    )
    trainer = (TwoPassTrainer if two_passes else OrdinaryTrainer)(
        model, arguments, optimizers=(optimizer, ConstantLR(optimizer, factor=1))
    )
    trainer.train()
    assert trainer.state.global_step == EPOCHS * BATCHES
    return weights_of(model.network)


@pytest.mark.works_with("transformers")
@pytest.mark.parametrize(("bf16", "dtype"), [(False, None), (True, torch.bfloat16)])
def test_transformers_trainer_with_both_passes_in_its_training_step_takes_the_steps_of_a_loop(
    bf16: bool, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    assert_same(train_with_transformers(tmp_path, bf16=bf16), train_plainly(dtype=dtype))


@pytest.mark.works_with("transformers")
def test_transformers_trainer_clips_the_gradient_of_the_second_pass(tmp_path: Path) -> None:
    weights = train_with_transformers(tmp_path, max_grad_norm=0.1)
    for name, weight in train_plainly(clip=0.1).items():
        torch.testing.assert_close(weights[name], weight)


def step_plainly(tmp_path: Path) -> None:
    network = make_network()
    optimizer = make_optimizer(network)
    balanced_loss(network, next(iter(make_loader()))).backward()
    optimizer.step()


def step_under_accelerate(tmp_path: Path) -> None:
    run = AcceleratedRun()
    run.closure(next(iter(run.loader)))
    run.optimizer.step()


def step_under_lightning(tmp_path: Path) -> None:
    fit(ManualRegressor("by_bare_step"), tmp_path)


def step_under_lightning_in_float16(tmp_path: Path) -> None:
    fit(Regressor(), tmp_path, **in_float16())


def step_under_transformers(tmp_path: Path) -> None:
    train_with_transformers(tmp_path, two_passes=False)


ALONE = r"got `step\(\)` alone: .* Pass a closure that computes the loss, calls backward and"
ERRORS: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "plain": (step_plainly, RuntimeError, ALONE),
    "accelerate": (step_under_accelerate, RuntimeError, ALONE),
    # Lightning's optimizer passes a closure that returns None where the module passed none.
    "lightning": (step_under_lightning, Exception, r"closure .*returns? the loss"),
    # The scaler calls `step` without the closure.
    "lightning in float16": (step_under_lightning_in_float16, RuntimeError, ALONE),
    "transformers": (step_under_transformers, RuntimeError, ALONE),
}


@pytest.mark.works_with("transformers")
@pytest.mark.filterwarnings("ignore:BalancedSAM.step.closure. clears the gradients")
@pytest.mark.parametrize(("step", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_step_without_a_closure_is_an_error_that_says_what_to_do(
    step: Callable[[Path], None], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        step(tmp_path)


def test_deepcopy_of_a_lightning_module_with_its_optimizer_trains_alone(tmp_path: Path) -> None:
    module = Regressor()
    trainer = fit(module, tmp_path)
    before = weights_of(module.network)
    twin, optimizer = copy.deepcopy((module.network, trainer.optimizers[0]))

    def closure() -> Tensor:
        loss = balanced_loss(twin, next(iter(make_loader())))
        loss.backward()
        return loss

    optimizer.step(closure)
    assert_same(weights_of(module.network), before)
    assert not torch.equal(twin[0].weight, before["0.weight"])
