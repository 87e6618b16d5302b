"""Experiments: an experiment is (data set, method, seed); see ``python -m benchmarks --help``."""
