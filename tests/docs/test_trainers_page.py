"""The page on trainers: its modules and loops train, and what it warns of comes true."""

import copy
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from accelerate.state import AcceleratorState
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from tests.support.pages import OpenPage, Page


@pytest.fixture
def page(open_page: OpenPage) -> Iterator[Page]:
    """Return the page once it has run, with Lightning quiet and accelerate's settings forgotten."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield open_page("trainers").run()
    logger.setLevel(level)
    AcceleratorState._reset_state(reset_partial_state=True)


QUIET = {
    "max_epochs": 1,
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def fit(
    module: pl.LightningModule, page: Page, *, validates: bool = False, **options: Any
) -> pl.Trainer:
    trainer = pl.Trainer(**(QUIET | options))
    module.model.zero_grad()
    trainer.fit(module, page["loader"], page["loader"] if validates else None)
    return trainer


def weights_of(page: Page) -> list[Tensor]:
    return [p.detach().clone() for p in page["model"].parameters()]


@pytest.mark.parametrize("name", ["Regressor", "MicroBatchRegressor", "ManualRegressor"])
def test_lightning_module_takes_a_step_a_batch(name: str, page: Page) -> None:
    start = weights_of(page)
    trainer = fit(page[name](page["model"]), page)
    assert trainer.global_step == len(page["loader"])
    assert not any(map(torch.equal, weights_of(page), start))


def test_lightning_that_accumulates_batches_is_warned_of(page: Page) -> None:
    with pytest.warns(UserWarning, match="inside the closure"):
        fit(page["Regressor"](page["model"]), page, accumulate_grad_batches=3)


def test_lightning_step_that_returns_none_skips_the_batch(page: Page) -> None:
    class Skipping(page["Regressor"]):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            return None

    start = weights_of(page)
    fit(Skipping(page["model"]), page)
    assert all(map(torch.equal, weights_of(page), start))


@pytest.mark.parametrize("is_guarded", [True, False])
def test_lightning_logs_the_loss_at_w_only_behind_the_guard(is_guarded: bool, page: Page) -> None:
    clean: list[Tensor] = []

    class Noting(page["LoggingRegressor"]):
        def on_train_batch_start(self, batch: list[Tensor], batch_idx: int) -> None:
            clean.append(page["balanced_loss"](self.model, *batch).detach())

    class Unguarded(Noting):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss: Tensor = page["balanced_loss"](self.model, *batch)
            self.log("train_loss", loss, on_step=False, on_epoch=True)
            return loss

    module = (Noting if is_guarded else Unguarded)(page["model"])
    logged = fit(module, page).callback_metrics["train_loss"]
    if is_guarded:
        torch.testing.assert_close(logged, torch.stack(clean).mean())
    else:
        assert logged > torch.stack(clean).mean() + 0.01


def test_lightning_logs_the_perturbed_loss_on_step_without_the_guard(page: Page) -> None:
    losses: list[tuple[bool, float]] = []

    class Unguarded(page["Regressor"]):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss: Tensor = page["balanced_loss"](self.model, *batch)
            self.log("train_loss", loss)
            losses.append((self.optimizers().is_perturbed, loss.item()))
            return loss

    logged = fit(Unguarded(page["model"]), page).callback_metrics["train_loss"].item()
    assert losses[-1] == (True, logged)
    assert losses[-2] != (False, logged)


def validated(page: Page, folder: Path, callbacks: list[pl.Callback]) -> pl.Trainer:
    """Return the trainer after two epochs with validation; checkpoints go to the folder."""
    return fit(
        page["ValidatedRegressor"](page["model"]),
        page,
        validates=True,
        max_epochs=2,
        enable_checkpointing=True,
        default_root_dir=folder,
        callbacks=callbacks,
    )


def test_lightning_callbacks_monitor_a_region_and_write_files_into_no_folder(
    page: Page, tmp_path: Path
) -> None:
    trainer = validated(page, tmp_path, page["callbacks"])
    checkpoint, stopping = page["callbacks"]
    assert stopping.best_score == checkpoint.best_model_score
    (path,) = tmp_path.rglob("*.ckpt")
    assert path.parent == tmp_path / "checkpoints"
    assert re.fullmatch(r"[01]-few-\d\.\d\d\.ckpt", path.name)
    assert trainer.current_epoch == 2


def test_lightning_file_name_with_the_metric_inserted_makes_a_folder(
    page: Page, tmp_path: Path
) -> None:
    filename = page["callbacks"][0].filename
    validated(page, tmp_path, [ModelCheckpoint(monitor="few/MAE", filename=filename)])
    (path,) = tmp_path.rglob("*.ckpt")
    assert path.parent.parent == tmp_path / "checkpoints"


def test_lightning_early_stopping_ends_at_a_region_without_samples(
    page: Page, tmp_path: Path
) -> None:
    trainer = validated(page, tmp_path, [EarlyStopping("many/MAE", patience=10)])
    assert trainer.current_epoch == 1


def test_lightning_checkpoint_of_a_region_without_samples_is_that_of_the_first_epoch(
    page: Page, tmp_path: Path
) -> None:
    trainer = validated(page, tmp_path, [ModelCheckpoint(monitor="many/MAE", filename="{epoch}")])
    assert trainer.current_epoch == 2
    (path,) = tmp_path.rglob("*.ckpt")
    assert path.name == "epoch=0.ckpt"


def test_lightning_loads_the_best_epoch_of_a_checkpoint(page: Page, tmp_path: Path) -> None:
    validated(page, tmp_path, page["callbacks"])
    path = page["callbacks"][0].best_model_path
    saved = torch.load(path, weights_only=False)["state_dict"]
    for parameter in page["model"].parameters():
        parameter.data.zero_()
    page["ValidatedRegressor"].load_from_checkpoint(path, model=page["model"])
    parameters = dict(page["model"].named_parameters())
    assert all(torch.equal(p, saved[f"model.{name}"]) for name, p in parameters.items())
    assert any(parameter.any() for parameter in parameters.values())


def test_lightning_resumes_with_another_rho(page: Page, tmp_path: Path) -> None:
    options = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    fit(page["Regressor"](page["model"]), page, **options)
    (path,) = tmp_path.rglob("*.ckpt")
    for name, rho in (("Regressor", 0.05), ("ResumedRegressor", 0.1)):
        module = page[name](page["model"])
        trainer = pl.Trainer(**(QUIET | options | {"max_epochs": 2}))
        trainer.fit(module, page["loader"], ckpt_path=path)
        (group,) = trainer.optimizers[0].param_groups
        assert trainer.current_epoch == 2
        assert group["rho"] == rho


@pytest.mark.parametrize(
    ("name", "moves"), [("MicroBatchRegressor", False), ("ManualRegressor", True)]
)
def test_lightning_in_float16_trains_by_the_perturbed_block_only(
    name: str, moves: bool, page: Page
) -> None:
    start = weights_of(page)
    # So large that the first gradients overflow, which no closure of its own clears.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-12)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    fit(page[name](page["model"]), page, max_epochs=4, plugins=[plugin])
    assert any(map(torch.equal, weights_of(page), start)) is not moves


def test_lightning_manual_step_alone_raises(page: Page) -> None:
    class StepAlone(page["ManualRegressor"]):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.manual_backward(page["balanced_loss"](self.model, *batch))
            self.optimizers().step()

    with pytest.raises(RuntimeError, match=r"perturbed\(\):"):
        fit(StepAlone(page["model"]), page)


@pytest.mark.parametrize("has_two_passes", [False, True])
def test_transformers_trainer_takes_weighted_steps(
    has_two_passes: bool, page: Page, tmp_path: Path
) -> None:
    from transformers import TrainingArguments

    model, alone = page["model"], copy.deepcopy(page["model"])
    rows = [dict(zip(("inputs", "targets"), row, strict=True)) for row in page["data"]]
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=len(rows),
        remove_unused_columns=False,
        label_names=["targets"],
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    optimizers = []
    for network in (model, alone):
        base = torch.optim.SGD(network.parameters(), lr=0.1)
        wrapped = page["BalancedSAM"](network.parameters(), base, rho=0.05)
        optimizers.append(wrapped if has_two_passes else base)
    kind = page["TwoPasses" if has_two_passes else "WeightedTrainer"]
    trainer = kind(
        model, arguments, train_dataset=rows, eval_dataset=rows, optimizers=(optimizers[0], None)
    )
    trainer.train()

    def closure() -> Tensor:
        optimizers[1].zero_grad()
        loss = page["balanced_loss"](alone, page["all_inputs"], page["all_targets"])
        loss.backward()
        return loss

    optimizers[1].step(closure)
    for parameter, expected in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected)
    with torch.no_grad():
        loss = page["balanced_loss"](alone, page["all_inputs"], page["all_targets"])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss.item(), rel=1e-3)


def test_accelerate_step_calls_the_closure_twice_and_moves_the_weights(page: Page) -> None:
    start, calls = weights_of(page), []

    def counted() -> Tensor:
        calls.append(page["optimizer"].optimizer.is_perturbed)
        return page["closure"]()

    page["optimizer"].step(counted)
    assert calls == [False, True]
    assert not any(map(torch.equal, weights_of(page), start))
