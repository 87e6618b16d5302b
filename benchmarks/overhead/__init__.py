"""What Balanced SAM costs beyond its two passes: ``python -m benchmarks.overhead``."""
