"""Get a data set ready: where it comes from, what may be fetched, whether it is whole."""

from pathlib import Path

from benchmarks.experiment.dataset import REGIONS, Dataset, Split, is_counted


def prepare(dataset: Dataset, root: Path | None) -> None:
    """Say where the data comes from, fetch what may be fetched, and check all of it.

    Args:
        dataset: The data set.
        root: Folder of the data; None for embedded data.

    Raises:
        ValueError: If a file or a count is not what it should be: the first one.
        FileNotFoundError: If a file is missing.
    """
    print(dataset.title, f"Source: {dataset.source}", sep="\n", flush=True)
    if root is not None and dataset.download is not None:
        dataset.download(root)
    splits = dataset.load(root)
    for name in ("train", "validation", "test"):
        print(f"{name}: {_counts(dataset, getattr(splits, name))}", flush=True)
    if root is not None and dataset.check is not None:
        dataset.check(splits)
        print("All files can be read, and all counts are those of the published data set.")


def _counts(dataset: Dataset, split: Split) -> str:
    """Return the number of samples, and per region of targets where those are in memory."""
    samples = f"{len(split)} samples"
    targets = getattr(split, "targets", None)
    if targets is None:
        return samples
    counted = targets[is_counted(targets, dataset.bins)]
    regions = (f"{r} {int(dataset.regions.mask(counted, r).sum())}" for r in REGIONS[1:])
    return f"{samples}, {', '.join(regions)}"
