"""Shot regions: the bins with many, a medium number of, or few training samples."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from balanced_sam._checks import check_choice, check_counts, check_number, check_type
from balanced_sam._grid import Bins, check_bins, per_width
from balanced_sam._weights import TargetWeights

Region = Literal["many", "medium", "few"]
REGIONS: tuple[Region, ...] = ("many", "medium", "few")


class ShotRegions:
    """Say which target bins are many-, medium- and few-shot.

    Args:
        bins: The bins of the target range, or a grid of several.
        labels: ``"many"``, ``"medium"`` or ``"few"`` for each of the ``B`` bins, in the order of
            the bins. Useful for regions that do not follow from counts alone, such as NYUD2-DIR's.
            Most users want :meth:`from_weights`.

    Attributes:
        bins: The bins.
        labels: The region of each bin, a tuple of ``B`` strings.

    Raises:
        ValueError: If there is not exactly one label per bin, or a label is none of the three.

    Example:
        >>> import torch
        >>> from balanced_sam import ShotRegions, TargetBins
        >>> bins = TargetBins.uniform(0, 3, width=1)
        >>> regions = ShotRegions.from_counts(bins, torch.tensor([5, 50, 500]))
        >>> regions.labels
        ('few', 'medium', 'many')
        >>> regions.mask(torch.tensor([0.5, 2.5]), "many")
        tensor([False,  True])
    """

    def __init__(self, bins: Bins, labels: Sequence[Region]) -> None:
        check_bins(bins)
        self.bins = bins
        self.labels: tuple[Region, ...] = tuple(labels)
        if len(self.labels) != len(bins):
            raise ValueError(
                f"Expected `labels` to hold one label a bin, {len(bins)}, but got "
                f"{len(self.labels)}."
            )
        for label in self.labels:
            if label not in REGIONS:
                raise ValueError(
                    f"Expected `labels` to hold 'many', 'medium' or 'few', but got {label!r}."
                )

    @classmethod
    def from_counts(
        cls, bins: Bins, counts: Tensor, *, many_above: float = 100, few_below: float = 20
    ) -> "ShotRegions":
        """Return the regions that the number of training samples per bin defines.

        If bin widths differ, the counts are scaled to the median width, as for the weights.

        Args:
            bins: The bins of the target range, or a grid of several.
            counts: Training samples per bin, shape ``bins.shape``.
            many_above: A bin with more samples than this is many-shot.
            few_below: A bin with fewer samples than this, an empty one too, is few-shot.

        Returns:
            The regions; a bin that is neither many- nor few-shot is medium-shot.

        Raises:
            ValueError: If ``counts`` does not fit the bins, or ``few_below > many_above``.

        References:
            Yang et al. (2021), `Delving into Deep Imbalanced Regression
            <https://arxiv.org/abs/2102.09554>`_, Section 4.

        Example:
            >>> import torch
            >>> from balanced_sam import ShotRegions, TargetBins
            >>> bins = TargetBins.uniform(0, 3, width=1)
            >>> ShotRegions.from_counts(bins, torch.tensor([5, 50, 500]), few_below=60).labels
            ('few', 'few', 'many')
        """
        check_bins(bins)
        check_counts(counts, bins.shape)
        if not check_number("few_below", few_below) <= check_number("many_above", many_above):
            raise ValueError(
                "Expected `few_below` to be at most `many_above`, but got "
                f"few_below={few_below} and many_above={many_above}."
            )
        labels: list[Region] = [
            "many" if count > many_above else "few" if count < few_below else "medium"
            for count in per_width(counts, bins).flatten().tolist()
        ]
        return cls(bins, labels)

    @classmethod
    def from_weights(
        cls, weights: TargetWeights, *, many_above: float = 100, few_below: float = 20
    ) -> "ShotRegions":
        """Return the regions for the bins and the training counts that the weights hold.

        Args:
            weights: The target weights.
            many_above: As in :meth:`from_counts`.
            few_below: As in :meth:`from_counts`.

        Returns:
            The regions.

        Raises:
            TypeError: If ``weights`` are not :class:`TargetWeights`.
            ValueError: If ``few_below > many_above``.

        Example:
            >>> import torch
            >>> from balanced_sam import ShotRegions, TargetWeights
            >>> weights = TargetWeights.from_targets(torch.tensor([18] * 150 + [19] * 50))
            >>> ShotRegions.from_weights(weights).labels
            ('many', 'medium')
        """
        check_type("weights", weights, TargetWeights)
        return cls.from_counts(
            weights.bins, weights.counts, many_above=many_above, few_below=few_below
        )

    def mask(self, targets: Tensor, region: Region) -> Tensor:
        """Return which targets lie in a region.

        Args:
            targets: Targets of any shape, in target units; for a grid, shape ``(..., d)``.
            region: ``"many"``, ``"medium"`` or ``"few"``.

        Returns:
            True where the target's bin is in the region, shape of ``targets`` (``(...)`` for a
            grid), bool.

        Raises:
            TypeError: If ``targets`` is not a tensor of real numbers.
            ValueError: If ``region`` is none of the three.
        """
        index = self.bins.index(targets)
        return self.bin_mask(region).flatten().to(index.device)[index]

    def bin_mask(self, region: Region) -> Tensor:
        """Return which bins are in a region.

        Args:
            region: ``"many"``, ``"medium"`` or ``"few"``.

        Returns:
            True for the bins in the region, shape ``bins.shape``, bool, on the CPU.

        Raises:
            ValueError: If ``region`` is none of the three.
        """
        check_choice("region", region, REGIONS)
        flat = torch.tensor([label == region for label in self.labels], device="cpu")
        return flat.reshape(self.bins.shape)

    def __eq__(self, other: object) -> bool:
        """Return whether ``other`` has the same bins and labels."""
        return (
            isinstance(other, ShotRegions)
            and self.bins == other.bins
            and self.labels == other.labels
        )

    def __hash__(self) -> int:
        """Return a hash of the bins and labels."""
        return hash((self.bins, self.labels))

    def __repr__(self) -> str:
        """Return the number of bins in each region."""
        sizes = ", ".join(f"{region}={self.labels.count(region)}" for region in REGIONS)
        return f"ShotRegions({sizes} bins)"
