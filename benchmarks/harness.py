"""Times two programs in turn and reports the ratio of each pair, so that a drifting machine cancels out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

Program = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One comparison: `make()` builds `(ours, peer)`, two calls without arguments that return device arrays."""

    name: str
    peer: str
    make: Callable[[], tuple[Program, Program]]
    floor: float | None = None  # the ratio that we promise, None where none is promised


@dataclass(frozen=True)
class Result:
    """How long each took and how many times faster ours is, medians over rounds."""

    case: Case
    ours_ms: float
    peer_ms: float
    ratio: float
    low: float
    high: float
    rounds: int


def _seconds(program: Program, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        out = program()
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / repeats


def _repeats(program: Program, budget: float) -> int:
    jax.block_until_ready(program())  # compile
    once = _seconds(program, 1)
    if once < budget:  # the slow peers take seconds
        once = min(once, _seconds(program, 3))
    return max(1, min(10_000, int(budget / max(once, 1e-7))))


def median_seconds(program: Program, rounds: int = 11) -> float:
    """The median time of a call, once compiled."""
    jax.block_until_ready(program())
    return statistics.median(_seconds(program, 1) for _ in range(rounds))


def compare(case: Case, rounds: int = 11, budget: float = 0.1) -> Result:
    """Runs ours and the peer in turn `rounds` times, about `budget` seconds each time."""
    ours, peer = case.make()
    n_ours, n_peer = _repeats(ours, budget), _repeats(peer, budget)
    pairs = [(_seconds(ours, n_ours), _seconds(peer, n_peer)) for _ in range(rounds)]
    ratios = sorted(b / a for a, b in pairs)
    return Result(
        case=case,
        ours_ms=1e3 * statistics.median(a for a, _ in pairs),
        peer_ms=1e3 * statistics.median(b for _, b in pairs),
        ratio=statistics.median(ratios),
        low=ratios[len(ratios) // 4],
        high=ratios[-1 - len(ratios) // 4],
        rounds=rounds,
    )
