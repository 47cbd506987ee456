"""How long each core remembers: bsuite's memory chain by length, over seeds, with intervals.

    python -m benchmarks.memory RESULTS [--cores lstm gru ...] [--lengths 10 50 200] [--seeds 5] [--steps 400000]

In the chain an agent sees a sign once, waits, and is asked for it: a perfect memory earns 1, none earns 0 on average.
Each row is one program, all seeds side by side. Finished rows are lines of the file RESULTS and are not computed again:
the study may be stopped and started anew at any time. It ends with a table of all rows in the file.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from btnn_jax import envs
from btnn_jax.envs.trading.performance import bootstrap_interval
from btnn_jax.training.config import CORES, UnrealConfig
from btnn_jax.training.evaluate import make_evaluate
from btnn_jax.training.unreal import make_unreal

ENV = "MemoryChain-bsuite"
EPISODES = 128  # of each seed, sampled actions
SOLVED = 0.95


def settings(core: str, length: int, steps: int) -> UnrealConfig:
    """The same for all cores: the defaults, in rollouts that reach over the chain, up to 256 steps."""
    rollout = min(256, max(32, 2 ** int(np.ceil(np.log2(length + 1)))))
    return UnrealConfig(
        total_steps=steps,
        rollout_length=rollout,
        replay_length=2 * rollout,
        core=core,
        core_memory=64,
        pc_weight=0.0,
        rp_weight=0.0,
    )


def row(core: str, length: int, seeds: int, steps: int) -> dict[str, Any]:
    """Trains and evaluates one row: mean returns of each seed, and the time it took."""
    config, env = settings(core, length, steps), envs.make(ENV, memory_length=length)
    init, step, _, policy = make_unreal(config, env)
    state = jax.jit(jax.vmap(lambda seed: init(jax.random.key(seed))))(jnp.arange(seeds))
    compiled = jax.jit(jax.vmap(step), donate_argnums=0).lower(state).compile()
    started = time.perf_counter()
    for _ in range(config.num_updates):
        state, metrics = compiled(state)
    jax.block_until_ready(metrics)
    seconds = time.perf_counter() - started
    evaluate = make_evaluate(env, policy, num_episodes=EPISODES, greedy=False)
    played = jax.jit(jax.vmap(evaluate))(state.params, jax.random.split(jax.random.key(1), seeds))
    return {
        "core": core,
        "length": length,
        "seeds": seeds,
        "steps": steps,
        "returns": np.asarray(played.returns, np.float64).mean(axis=1).tolist(),
        "seconds": round(seconds, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown: mean return over seeds with its interval of 95 %, and how many seeds solve the chain."""
    lines = ["| length | core | return | seeds solved | seconds |", "|---:|---|---|---:|---:|"]
    for r in sorted(rows, key=lambda r: (r["length"], r["core"])):
        values = jnp.asarray(r["returns"], jnp.float32)
        mean, low, high = map(float, bootstrap_interval(jax.random.key(0), values))
        solved = sum(value >= SOLVED for value in r["returns"])
        lines.append(
            f"| {r['length']} | {r['core']} | {mean:.2f} ({low:.2f} to {high:.2f}) "
            f"| {solved} of {r['seeds']} | {r['seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Computes the rows that the file lacks and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=pathlib.Path, help="file of finished rows, one JSON object a line")
    parser.add_argument("--cores", nargs="+", default=list(CORES), help="as of --core")
    parser.add_argument("--lengths", nargs="+", type=int, default=[10, 50, 200])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400_000, help="environment steps of each seed")
    given = parser.parse_args()
    lines = given.results.read_text().splitlines() if given.results.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {(r["core"], r["length"], r["seeds"], r["steps"]) for r in rows}
    for length in given.lengths:
        for core in given.cores:
            if (core, length, given.seeds, given.steps) in done:
                continue
            rows.append(row(core, length, given.seeds, given.steps))
            with given.results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(rows[-1], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
