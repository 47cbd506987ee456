"""Prints the table of ratios: `python -m benchmarks [--only NAME ...] [--rounds N]`."""

from __future__ import annotations

import argparse
import importlib
import pkgutil

import benchmarks
from benchmarks.harness import compare

NOT_CASES = {"__main__", "communication", "disentanglement", "harness", "markets"}
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


if __name__ == "__main__":
    main()
