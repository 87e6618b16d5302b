"""The command line: ``python -m benchmarks COMMAND``."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.experiment import registry
from benchmarks.experiment.record import COMMITTED, write_json

Commands = Any  # argparse does not export the type of its subparsers


def main(arguments: list[str] | None = None) -> None:
    """Run the command that the arguments name."""
    parser = argparse.ArgumentParser("python -m benchmarks", description="Experiments.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_list(commands)
    _add_miniature(commands)
    _add_prepare(commands)
    _add_labels(commands)
    _add_run(commands)
    _add_tune(commands)
    _add_exponents(commands)
    _add_cost(commands)
    _add_overhead(commands)
    _add_loading(commands)
    _add_table(commands)
    _add_plot(commands)
    _add_pays(commands)
    options = parser.parse_args(arguments)
    try:
        options.command(options)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; what Python flushes at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        sys.exit(f"benchmarks: {error}")


def _add_list(commands: Commands) -> None:
    parser = commands.add_parser("list", help="name the data sets and methods")
    parser.set_defaults(command=_list)


def _list(options: argparse.Namespace) -> None:
    names = {"datasets": registry.dataset_names(), "methods": registry.method_names()}
    for folder, of_folder in names.items():
        print(folder)
        for name in of_folder:
            print(f"  {name:26} {registry.first_line(folder, name)}")


def _add_miniature(commands: Commands) -> None:
    parser = commands.add_parser("miniature", help="write a few generated samples to try --data on")
    parser.add_argument("dataset")
    parser.add_argument("folder", type=Path)
    parser.set_defaults(command=_miniature)


def _miniature(options: argparse.Namespace) -> None:
    registry.get_dataset(options.dataset).write_miniature(options.folder)


def _add_prepare(commands: Commands) -> None:
    parser = commands.add_parser("prepare", help="say where the data comes from, fetch, check it")
    parser.add_argument("dataset")
    _add_data(parser)
    parser.set_defaults(command=_prepare)


def _prepare(options: argparse.Namespace) -> None:
    from benchmarks.experiment.prepare import prepare

    prepare(registry.get_dataset(options.dataset), options.data)


def _add_labels(commands: Commands) -> None:
    parser = commands.add_parser("labels", help="draw and describe how the targets are distributed")
    parser.add_argument("dataset")
    _add_data(parser)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the pictures")
    parser.set_defaults(command=_labels)


def _labels(options: argparse.Namespace) -> None:
    from benchmarks.results.labels import describe, train_counts
    from benchmarks.results.plots import label_distribution, save

    dataset = registry.get_dataset(options.dataset)
    counts = train_counts(dataset, options.data)
    path = options.out / f"{options.dataset}_labels.png"
    save(label_distribution(options.dataset, counts), path)
    print(describe(dataset, counts), path, sep="\n\n")


def _add_run(commands: Commands) -> None:
    parser = commands.add_parser("run", help="train and test; one record a run")
    parser.add_argument("dataset")
    parser.add_argument("methods", nargs="+", metavar="method")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--resume", action="store_true", help="keep what is done, go on with it")
    _add_data(parser)
    _add_records(parser)
    _add_jobs(parser)
    parser.add_argument("--device", default="cpu", help="Lightning's name: cpu, cuda, auto")
    parser.add_argument("--precision", default="32-true", help="Lightning's name: bf16-mixed, ...")
    parser.add_argument(
        "--normalized",
        action="store_true",
        help="weights of mean 1, learning rate and weight decay converted",
    )
    parser.add_argument(
        "--chosen",
        action="store_true",
        help="take the exponent of the weights that was chosen among the committed ones",
    )
    parser.add_argument(
        "--set",
        type=_change,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change an entry of the recipe, or a constant of the methods that have it",
    )
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from benchmarks.experiment.plan import changes_by_method
    from benchmarks.training.pool import Run, run_all

    _check_device(options.device)
    if options.chosen and "exponent" in dict(options.set):
        raise ValueError("Expected --chosen or an exponent that is set, but got both.")
    changes = changes_by_method(options.methods, dict(options.set))
    if options.chosen:
        from benchmarks.results import families

        for method in options.methods:
            changes[method]["exponent"] = families.chosen(options.dataset, method).exponent
    runs = [
        Run(
            options.dataset,
            method,
            seed,
            records=options.records,
            data=options.data,
            changes=changes[method],
            normalized=options.normalized,
            accelerator=options.device,
            precision=options.precision,
        )
        for seed in options.seeds
        for method in options.methods
    ]
    run_all(runs, jobs=options.jobs, resume=options.resume)


def _add_tune(commands: Commands) -> None:
    parser = commands.add_parser("tune", help="compare recipes on validation data alone")
    parser.add_argument("dataset")
    parser.add_argument("methods", nargs="+", metavar="method")
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    _add_jobs(parser)
    parser.add_argument(
        "--grid",
        type=_values,
        action="append",
        required=True,
        metavar="NAME=VALUE,VALUE",
        help="values of an entry of the recipe, or of a constant that all methods have",
    )
    parser.set_defaults(command=_tune)


def _tune(options: argparse.Namespace) -> None:
    from benchmarks.training.tuning import tune

    tune(
        options.dataset,
        options.methods,
        options.seeds,
        dict(options.grid),
        path=COMMITTED / options.dataset / "tuning.json",
        jobs=options.jobs,
    )


def _add_exponents(commands: Commands) -> None:
    parser = commands.add_parser("exponents", help="run methods with weights of all exponents")
    parser.add_argument("dataset")
    parser.add_argument("methods", nargs="+", metavar="method")
    parser.add_argument("--seeds", type=int, nargs="+", default=range(10))
    parser.add_argument("--records", type=Path, default=COMMITTED / "exponents")
    _add_data(parser)
    _add_jobs(parser)
    parser.set_defaults(command=_exponents)


def _exponents(options: argparse.Namespace) -> None:
    from benchmarks.results.families import EXPONENTS
    from benchmarks.training.pool import Run, run_all

    runs = [
        Run(
            options.dataset,
            method,
            seed,
            records=options.records / f"{exponent:g}",
            data=options.data,
            changes={"exponent": exponent},
        )
        for seed in options.seeds
        for exponent in EXPONENTS
        for method in options.methods
    ]
    run_all(runs, jobs=options.jobs, resume=True)


def _add_cost(commands: Commands) -> None:
    parser = commands.add_parser("cost", help="measure what training takes beside SQINV")
    parser.add_argument("dataset")
    parser.add_argument("methods", nargs="*", metavar="method", help="none: all that fit")
    _add_data(parser)
    _add_records(parser)
    parser.add_argument("--device", default="cpu", help="Lightning's name: cpu, cuda, auto")
    parser.add_argument("--batch-size", type=_at_least(1), help="another than the recipe's")
    parser.add_argument("--steps", type=_at_least(1), default=8, help="of a turn of a method")
    parser.add_argument("--rounds", type=_at_least(2), default=9, help="turns of each method")
    parser.set_defaults(command=_cost)


def _cost(options: argparse.Namespace) -> None:
    from benchmarks.costs.training import cost

    _check_device(options.device)
    record = cost(
        options.dataset,
        options.methods,
        {} if options.batch_size is None else {"batch_size": options.batch_size},
        data=options.data,
        accelerator=options.device,
        steps=options.steps,
        rounds=options.rounds,
    )
    write_json(options.records / options.dataset / "cost.json", record)


def _add_overhead(commands: Commands) -> None:
    parser = commands.add_parser("overhead", help="measure a step beside its two passes and peers")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=_at_least(1), help="of the CPU; none: torch's choice")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each measurement")
    parser.add_argument("--out", type=Path, help="the record; none: named by the device")
    parser.set_defaults(command=_overhead)


def _overhead(options: argparse.Namespace) -> None:
    import torch

    from benchmarks.costs.overhead.record import default_path, measure
    from benchmarks.costs.overhead.report import tables
    from benchmarks.results.cells import markdown

    _check_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    record = measure(torch.device(options.device), seconds=options.seconds)
    write_json(options.out or default_path(record), record)
    for title, rows in tables(record).items():
        print(f"\n{title}\n\n{markdown(rows)}")
    for sentence in record["not_run"]:
        print(f"\nNot run: {sentence}.")


def _add_loading(commands: Commands) -> None:
    parser = commands.add_parser("loading", help="measure whether faces are read fast enough")
    parser.add_argument("--device", default="cpu", help="torch's name: cpu, cuda")
    parser.add_argument(
        "--images", type=_at_least(5), default=2000, help="written; 3/5 are read in a round"
    )
    parser.add_argument("--batch-size", type=_at_least(1), default=32)
    parser.add_argument("--rounds", type=_at_least(1), default=5)
    parser.add_argument("--out", type=Path, default=COMMITTED / "loading.json")
    parser.set_defaults(command=_loading)


def _loading(options: argparse.Namespace) -> None:
    from benchmarks.costs.loading import loading

    _check_device(options.device)
    record = loading(
        device=options.device,
        images=options.images,
        batch_size=options.batch_size,
        rounds=options.rounds,
    )
    write_json(options.out, record)
    print(
        f"Images a second, medians of {options.rounds} rounds: {record['decoded']} decoded, "
        f"{record['delivered']} delivered with augmentation, {record['learned']} learned from "
        f"({record['delivered_by_learned']} times as many delivered)."
    )


def _add_table(commands: Commands) -> None:
    parser = commands.add_parser("table", help="records to Markdown tables")
    parser.add_argument("datasets", nargs="*", metavar="dataset")
    _add_records(parser)
    parser.add_argument("--check", action="store_true", help="fail if a text's tables are stale")
    parser.add_argument("--write", action="store_true", help="renew the tables in the texts")
    parser.set_defaults(command=_table)


def _table(options: argparse.Namespace) -> None:
    from benchmarks.results import tables, texts
    from benchmarks.results.results import Results

    if options.check or options.write:
        filled = {path: texts.fill(path.read_text()) for path in texts.TEXTS}
        stale = [path for path, text in filled.items() if text != path.read_text()]
        if options.check and stale:
            names = ", ".join(map(str, stale))
            sys.exit(
                f"benchmarks: the tables of {names} are not those of the records; run "
                "`python -m benchmarks table --write`"
            )
        for path in stale:
            path.write_text(filled[path])
        return
    for name in options.datasets or registry.dataset_names():
        print(tables.report(Results(name, options.records)))


def _add_plot(commands: Commands) -> None:
    parser = commands.add_parser("plot", help="records to pictures")
    parser.add_argument("dataset")
    parser.add_argument("--methods", nargs="+", metavar="method", help="which, in their order")
    parser.add_argument(
        "--selection", default="last_epoch", choices=("best_validation", "last_epoch")
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the pictures")
    _add_records(parser)
    parser.set_defaults(command=_plot)


def _plot(options: argparse.Namespace) -> None:
    from benchmarks.results import plots
    from benchmarks.results.results import Results

    name = options.dataset
    results = Results(name, options.records, selection=options.selection)
    path = options.out / f"{name}_error_by_target.png"
    figure = plots.error_by_target(results, methods=tuple(options.methods or plots.METHODS))
    plots.save(figure, path)
    print(path)


def _add_pays(commands: Commands) -> None:
    parser = commands.add_parser("pays", help="records to pictures of what BSAM trades and gains")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the pictures")
    parser.set_defaults(command=_pays)


def _pays(options: argparse.Namespace) -> None:
    from benchmarks.results import families, plots

    names = families.measured("bsam_weighted")
    if not names:
        raise ValueError(f"Expected records of weighted and bsam_weighted in {families.FOLDER}.")
    others = [name for name in names if families.curve(name, "averaged")]
    figures = {
        "trade": plots.trade(*names),
        "epochs": plots.error_and_epochs(*names),
        "families": plots.trade(*others, methods=tuple(families.FAMILIES)),
    }
    for title, figure in figures.items():
        path = options.out / f"{title}.png"
        plots.save(figure, path)
        print(path)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="folder of the data; none: the embedded data")


def _add_records(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--records", type=Path, default=COMMITTED, help="folder of the records")


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=_at_least(1), default=1, help="runs at a time")


def _check_device(name: str) -> None:
    """Raise if there is no such device."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("Expected a GPU for --device cuda, but torch finds none.")


def _at_least(least: int) -> Callable[[str], int]:
    """Return what reads a whole number that is not below ``least``."""

    def whole(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, but got {text}")
        return int(text)

    whole.__name__ = "whole number"  # as argparse names what it cannot read
    return whole


def _change(text: str) -> tuple[str, Any]:
    """Return the entry of the recipe that ``name=value`` changes."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected name=number or name=true, but got {text!r}"
        ) from None


def _values(text: str) -> tuple[str, list[Any]]:
    """Return the entry of the recipe and the values that ``name=value,value`` tries."""
    name, _, values = text.partition("=")
    return name, [_change(f"{name}={value}")[1] for value in values.split(",")]


if __name__ == "__main__":
    main()
