"""Settings of all tests."""

import torch

# Several test processes share the cores, and the tensors are small.
torch.set_num_threads(1)
