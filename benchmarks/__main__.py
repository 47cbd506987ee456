"""Prints the table of ratios: `python -m benchmarks [--only NAME ...] [--rounds N]`."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from functools import partial

import jax
import jax.numpy as jnp

import benchmarks
from benchmarks.harness import compare, median_seconds

NOT_CASES = {"__main__", "communication", "disentanglement", "harness", "learning", "markets", "memory"}
ALONE = {"scaling"}  # it changes how many devices there are


def main() -> None:
    """Runs every module of this folder that has `CASES`."""
    topics = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name not in NOT_CASES)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=benchmarks.__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=topics,
        default=[topic for topic in topics if topic not in ALONE],
        metavar="TOPIC",
        help=f"of {', '.join(topics)}; {', '.join(ALONE)} only where it is named, alone",
    )
    parser.add_argument("--rounds", type=int, default=11, help="pairs to time per case (default 11)")
    arguments = parser.parse_args()
    print("| case | peer | ours ms | peer ms | ratio | quartiles | promised |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for topic in arguments.only:
        for case in importlib.import_module(f"benchmarks.{topic}").CASES:
            r = compare(case, arguments.rounds)
            promised = "" if case.floor is None else f"{case.floor:.1f}"
            print(
                f"| {case.name} | {case.peer} | {r.ours_ms:.3g} | {r.peer_ms:.3g} "
                f"| **{r.ratio:.2f}** | {r.low:.2f}-{r.high:.2f} | {promised} |",
                flush=True,
            )
    print(
        f"\n{jax.devices()[0].device_kind}: {product_gflops():.0f} GFLOP/s in a float32 product of 2048 cubed"
    )


def product_gflops(size: int = 2048) -> float:
    """How fast the machine multiplies: what a ratio depends on whose two sides do not multiply alike."""
    a = jnp.ones((size, size))
    return 2e-9 * size**3 / median_seconds(partial(jax.jit(jnp.matmul), a, a))


if __name__ == "__main__":
    main()
