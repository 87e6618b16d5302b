"""Clocks, rounds in which everything is measured in turns, and what they come to."""

import gc
import random
import time
from collections.abc import Callable
from statistics import median, quantiles

import torch

Work = Callable[[], object]
Clock = Callable[[Work, int], float]
"""Returns the seconds of a call, measured over a number of calls."""
Rounds = dict[str, list[float]]
"""Seconds of a call, of everything that is measured, in each round."""

BLOCK = 0.02
"""Seconds that a block of calls lasts at least: what is fast is called often."""
FEWEST, MOST = 5, 100
"""Rounds."""


def host_clock(work: Work, calls: int) -> float:
    """Return the seconds of the median call by the host's clock: an interrupted one is none."""
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def cuda_clock(work: Work, calls: int) -> float:
    """Return the seconds of a call between two events on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / calls


def clock_of(device: torch.device) -> Clock:
    """Return the clock that is right for a device."""
    return cuda_clock if device.type == "cuda" else host_clock


def interleaved(works: dict[str, Work], *, seconds: float, clock: Clock, before: Work) -> Rounds:
    """Measure everything in turns, in an order drawn for each round.

    Args:
        works: What to measure.
        seconds: How long to measure, about.
        clock: Measures a block of calls.
        before: Called before each block, off the clock.
    """
    calls, spent = {}, 0.0
    for name, work in works.items():
        before()
        clock(work, 2)  # What is made once does not count.
        once = clock(work, 1)
        calls[name] = max(1, round(BLOCK / once))
        spent += calls[name] * once
    rounds = min(MOST, max(FEWEST, round(seconds / spent)))
    measured: Rounds = {name: [] for name in works}
    gc.disable()
    try:
        for k in range(rounds):
            # What comes after what matters: caches, and memory that another has given back.
            for name in random.Random(k).sample(list(works), len(works)):
                before()
                measured[name].append(clock(works[name], calls[name]))
    finally:
        gc.enable()
    return measured


def minus(rounds: list[float], control: list[float]) -> list[float]:
    """Return the differences, round by round."""
    return [one - other for one, other in zip(rounds, control, strict=True)]


def over(rounds: list[float], reference: list[float]) -> list[float]:
    """Return the ratios, round by round."""
    return [one / other for one, other in zip(rounds, reference, strict=True)]


def spread(values: list[float]) -> list[float]:
    """Return the median and the quartiles on both sides of it: ``[median, low, high]``."""
    low, _, high = quantiles(values, n=4, method="inclusive")
    return [significant(value) for value in (median(values), low, high)]


def significant(value: float) -> float:
    """Return the value with four digits."""
    return float(f"{value:.4g}")
