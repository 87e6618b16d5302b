"""The depths of NYUD2-DIR: their bins, regions and histogram, which rooms have, too."""

import json
from pathlib import Path

import torch

from balanced_sam import ShotRegions, TargetBins

COUNTS = torch.tensor(
    json.loads(Path(__file__).with_name("nyud2_counts.json").read_text())["train_pixels"]
)
BINS = TargetBins.uniform(0, 10, width=0.1)
MANY = {*range(9, 46), 47, 49}
MEDIUM = {7, 8, 46, 48, *range(50, 57), 58, 60, 61, 63}
REGIONS = ShotRegions(
    BINS, ["many" if k in MANY else "medium" if k in MEDIUM else "few" for k in range(len(BINS))]
)
