"""The command line: ``python -m benchmarks list | prepare | run | tune | table | plot``."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import registry
from benchmarks.store import COMMITTED

REGIONS = ("many", "medium", "few")


def main(arguments: list[str] | None = None) -> None:
    """Run the command that the arguments name."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (ValueError, OSError) as error:
        sys.exit(f"benchmarks: {error}")


def _list(options: argparse.Namespace) -> None:
    print("Data sets")
    for name in registry.dataset_names():
        print(f"  {name:20} {registry.get_dataset(name).title}")
    print("Methods")
    for name in registry.method_names():
        print(f"  {name:20} {registry.get_method(name).summary}")


def _prepare(options: argparse.Namespace) -> None:
    dataset = registry.get_dataset(options.dataset)
    print(dataset.title, f"Source: {dataset.source}", sep="\n")
    for split, samples in vars(dataset.load(options.data)).items():
        targets = samples.tensors[1]
        regions = (f"{r} {int(dataset.regions.mask(targets, r).sum())}" for r in REGIONS)
        print(f"{split}: {len(targets)} samples, {', '.join(regions)}")


def _run(options: argparse.Namespace) -> None:
    from benchmarks.running import Run, run_all  # torch and lightning, which `list` needs not

    runs = [
        Run(
            options.dataset,
            method,
            seed,
            records=options.records,
            data=options.data,
            changes=dict(options.set),
            normalized=options.normalized,
            accelerator=options.device,
            precision=options.precision,
        )
        for seed in options.seeds
        for method in options.methods
    ]
    run_all(runs, jobs=options.jobs, resume=options.resume)


def _tune(options: argparse.Namespace) -> None:
    from benchmarks.tuning import tune

    tune(
        options.dataset,
        options.methods,
        options.seeds,
        dict(options.grid),
        path=COMMITTED / options.dataset / "tuning.json",
        jobs=options.jobs,
    )


def _table(options: argparse.Namespace) -> None:
    from benchmarks import tables

    if options.check or options.write:
        stale = [path for path in tables.TEXTS if tables.fill(path.read_text()) != path.read_text()]
        if options.check and stale:
            names = ", ".join(map(str, stale))
            sys.exit(
                f"benchmarks: the tables of {names} are not those of the records; run "
                "`python -m benchmarks table --write`"
            )
        for path in stale:
            path.write_text(tables.fill(path.read_text()))
        return
    for name in options.datasets or registry.dataset_names():
        print(tables.report(options.records, name))


def _plot(options: argparse.Namespace) -> None:
    from benchmarks.plots import error_by_target

    for name in options.datasets or registry.dataset_names():
        path = options.out / f"{name}_error_by_target.png"
        error_by_target(options.records, name, options.selection, path)
        print(path)


def _change(text: str) -> tuple[str, Any]:
    """Return the entry of the recipe that ``name=value`` changes."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected name=number, but got {text!r}") from None


def _values(text: str) -> tuple[str, list[Any]]:
    """Return the entry of the recipe and the values that ``name=value,value`` tries."""
    name, _, values = text.partition("=")
    return name, [_change(f"{name}={value}")[1] for value in values.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description="Experiments.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="name the data sets and methods")
    listing.set_defaults(command=_list)

    prepare = commands.add_parser("prepare", help="say where the data comes from, and check it")
    prepare.add_argument("dataset")
    prepare.set_defaults(command=_prepare)

    run = commands.add_parser("run", help="train and test; one record a run")
    run.add_argument("dataset")
    run.add_argument("methods", nargs="+", metavar="method")
    run.add_argument("--seeds", type=int, nargs="+", default=[0])
    run.add_argument("--resume", action="store_true", help="keep what is done, go on with the rest")
    run.set_defaults(command=_run)

    tuning = commands.add_parser("tune", help="compare recipes on validation data alone")
    tuning.add_argument("dataset")
    tuning.add_argument("methods", nargs="+", metavar="method")
    tuning.add_argument("--seeds", type=int, nargs="+", required=True)
    tuning.add_argument(
        "--grid",
        type=_values,
        action="append",
        required=True,
        metavar="NAME=VALUE,VALUE",
        help="values of an entry of the recipe",
    )
    tuning.set_defaults(command=_tune)

    for command in (prepare, run):
        command.add_argument("--data", type=Path, help="folder of the data; none: embedded data")
    run.add_argument("--device", default="cpu", help="Lightning's name: cpu, cuda, auto")
    run.add_argument("--precision", default="32-true", help="Lightning's name, such as bf16-mixed")
    run.add_argument(
        "--normalized",
        action="store_true",
        help="weights of mean 1, learning rate and weight decay converted",
    )
    run.add_argument(
        "--set",
        type=_change,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change an entry of the recipe",
    )
    for command in (run, tuning):
        command.add_argument("--jobs", type=int, default=1, help="runs at a time")

    table = commands.add_parser("table", help="records to Markdown tables")
    table.add_argument("datasets", nargs="*", metavar="dataset")
    table.add_argument("--check", action="store_true", help="fail if a text's tables are stale")
    table.add_argument("--write", action="store_true", help="renew the tables in the texts")
    table.set_defaults(command=_table)

    plot = commands.add_parser("plot", help="records to pictures")
    plot.add_argument("datasets", nargs="*", metavar="dataset")
    plot.add_argument("--selection", default="best_validation")
    plot.add_argument("--out", type=Path, default=Path("docs/images"))
    plot.set_defaults(command=_plot)

    for command in (run, table, plot):
        command.add_argument(
            "--records", type=Path, default=COMMITTED, help="folder of the records"
        )
    return parser


if __name__ == "__main__":
    main()
