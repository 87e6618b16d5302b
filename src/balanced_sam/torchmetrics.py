"""Region metrics that stream over batches and ranks (extra ``balanced-sam[torchmetrics]``)."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

try:
    from torchmetrics import Metric
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Expected torchmetrics, which adds up over batches, to be installed, but it is not: "
        "`pip install torchmetrics`."
    ) from error

from balanced_sam._checks import check_choice, check_type
from balanced_sam._grid import edges_and_shape
from balanced_sam._metrics import (
    Multioutput,
    RegionReport,
    bin_sums,
    report_from_sums,
    rows_from_sums,
)
from balanced_sam._regions import ShotRegions

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure


class RegionMetrics(Metric):
    """Stream :func:`balanced_sam.region_report` over batches, epochs and ranks.

    The state is a ``(5, B, d)`` tensor of sums, for ``d`` targets per sample, and the edges. Its
    size does not depend on the number of samples. The sums add up over ranks, so the result equals
    the result of :func:`balanced_sam.region_report` on all samples.

    Args:
        regions: The many-, medium- and few-shot bins.
        multioutput: As in :func:`balanced_sam.region_report`.
        kwargs: Options of :class:`torchmetrics.Metric`, such as ``dist_sync_on_step``.

    Example:
        >>> import torch
        >>> from balanced_sam import ShotRegions, TargetBins
        >>> from balanced_sam.torchmetrics import RegionMetrics
        >>> bins = TargetBins([0.0, 10.0, 20.0, 30.0])
        >>> metrics = RegionMetrics(ShotRegions(bins, ["many", "medium", "few"]))
        >>> metrics.update(torch.tensor([4.0, 25.0]), torch.tensor([5.0, 21.0]))
        >>> metrics.compute()["few/MAE"]
        tensor(4., dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    sums: Tensor
    edges: Tensor

    def __init__(
        self,
        regions: ShotRegions,
        *,
        multioutput: Multioutput = "uniform_average",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_type("regions", regions, ShotRegions)
        check_choice("multioutput", multioutput, ("uniform_average", "raw_values"))
        self.regions = regions
        self.multioutput = multioutput
        axes = regions.bins.axes
        zeros = torch.zeros(5, len(regions.bins), len(axes), dtype=torch.float64)
        self.add_state("sums", default=zeros, dist_reduce_fx="sum")
        # A MetricCollection lets metrics share states that agree after a batch. The edges, as a
        # state that never changes, keep metrics over different bins apart.
        self.add_state("edges", default=edges_and_shape(regions.bins), dist_reduce_fx="max")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add a batch; an empty one adds nothing.

        Args:
            predictions: Model outputs, any shape, in target units; for a grid, shape ``(..., d)``.
            targets: Targets, same shape, in target units. One that is NaN makes the metrics of its
                region NaN; filter such targets out.

        Raises:
            ValueError: If the shapes differ, or targets ``(N, d)`` come without a grid.
        """
        self.sums += bin_sums(predictions, targets, self.regions.bins).to(self.sums.device)

    def compute(self) -> dict[str, Tensor]:
        """Return every metric of every region, ready for ``log_dict``.

        Returns:
            0-dim float64 tensors under ``"<region>/<metric>"``, such as ``"few/MAE"``.
        """
        return {
            f"{region}/{name}": torch.tensor(value, dtype=torch.float64, device=self.sums.device)
            for region, row in rows_from_sums(self.sums, self.regions, self.multioutput).items()
            for name, value in row.items()
        }

    def plot(
        self,
        val: dict[str, Tensor] | Sequence[dict[str, Tensor]] | None = None,
        ax: "matplotlib.axes.Axes | None" = None,
    ) -> "tuple[matplotlib.figure.Figure, matplotlib.axes.Axes]":
        """Draw the MAE per bin against the target, as :meth:`balanced_sam.RegionReport.plot` does.

        The samples of all processes count, as for ``compute``: each process must call it.

        Args:
            val: What ``compute`` or ``forward`` returned, or a list with one such value per epoch.
                If it is given, the plot shows the MAE of each region instead, as other metrics do.
            ax: The axes to draw in; if None, the axes of a new figure.

        Returns:
            The figure and the axes of the MAE.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
        """
        if val is not None:
            errors = [_only_mae(values) for values in ([val] if isinstance(val, dict) else val)]
            axes: Any = self._plot(errors, ax)[1]
            return axes.figure, axes
        with self.sync_context(self.dist_sync_fn, should_sync=self.sync_on_compute):
            report = self.report()
        return report.plot(ax=ax)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> "RegionMetrics":
        """Move the sums, as ``.to()`` does; only ``set_dtype`` converts them."""
        # In 16 bits a sum would soon stop growing.

        def move(tensor: Tensor) -> Tensor:
            # Apple's GPUs have no float64: there the sums stay on the CPU.
            if fn(torch.empty(0)).device.type == "mps":
                return tensor
            moved = fn(tensor)
            if self._dtype_convert or moved.dtype == tensor.dtype:
                return moved
            return tensor.to(moved.device)

        super()._apply(move, *args, **kwargs)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Load persistent states, unless they are of other bins."""
        edges = state_dict.get(f"{prefix}edges", self.edges)
        if not torch.equal(edges.cpu(), self.edges.cpu()):
            raise ValueError(
                f"Expected a state_dict of metrics over {self.regions.bins}, but got one over "
                "others."
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def report(self) -> RegionReport:
        """Return this process's samples as a :class:`balanced_sam.RegionReport`."""
        return report_from_sums(self.sums, self.regions, self.multioutput)


def _only_mae(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the values that are drawn over epochs."""
    return {name: value for name, value in values.items() if "/MAE" in name}
