"""Give a scikit-learn regressor target weights through ``sample_weight``, and report by region.

The data are scikit-learn's diabetes set (Efron et al., 2004), which ships inside that package.

It shows that the weights and the report need no network: ``TargetWeights`` maps the training
targets to one weight each, ``fit`` takes them, and ``region_report`` reads the predictions. There
is no BSAM here, which steps along gradients of a torch model. It does not show which weights are
better: one split, 148 test samples.

Needs scikit-learn. Run it: ``python examples/sample_weight.py``
"""

import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from balanced_sam import ShotRegions, TargetWeights, region_report

SCHEMES = {"Unweighted": "none", "SQINV": "sqinv", "INV": "inv"}

inputs, targets = load_diabetes(return_X_y=True, scaled=False)
train_inputs, test_inputs, train_targets, test_targets = train_test_split(
    inputs, targets, test_size=148, random_state=0
)

for name, scheme in SCHEMES.items():
    weights = TargetWeights.from_targets(torch.from_numpy(train_targets), scheme=scheme)
    sample_weight = weights(torch.from_numpy(train_targets)).numpy()
    # A pipeline hands `sample_weight` on to the step whose name stands before it.
    regressor = make_pipeline(StandardScaler(), Ridge())
    regressor.fit(train_inputs, train_targets, ridge__sample_weight=sample_weight)
    predictions = torch.from_numpy(regressor.predict(test_inputs))
    print(f"\n{name}: weights from {sample_weight.min():.2f} to {sample_weight.max():.2f}")
    # The usual limit, 100, is made for larger data.
    regions = ShotRegions.from_weights(weights, many_above=40)
    print(region_report(predictions, torch.from_numpy(test_targets), regions))
