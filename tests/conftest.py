"""Settings of all tests."""

import pytest
import torch

from support.compatibility import Report

# Several test processes share the cores, and the tensors are small.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that writes the table of the README."""
    parser.addoption("--write-compatibility", action="store_true", help="write README's table")


def pytest_configure(config: pytest.Config) -> None:
    """Make the README's table of what works with what a part of the run."""
    config.addinivalue_line("markers", "works_with(*rows): rows of the README's table it shows")
    config.pluginmanager.register(Report(write=config.getoption("--write-compatibility")))
