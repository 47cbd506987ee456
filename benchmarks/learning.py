"""The learning study: agents times environments times seeds, resumable, with intervals.

python -m benchmarks.learning                       # what is missing in results/learning.jsonl, in order
python -m benchmarks.learning --only tasks --seeds 10
python -m benchmarks.learning --report              # writes docs/learning.md from the file

A run is one agent on one environment with some seeds side by side. It appends one JSON line when it has ended, so that
a kill loses at most the run under way.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from btnn_jax import envs
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.evaluate import make_evaluate
from btnn_jax.training.unreal import make_unreal

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "learning.jsonl"
REPORT = ROOT / "docs" / "learning.md"
NO_TASKS = {"pc_weight": 0.0, "vr_weight": 0.0, "rp_weight": 0.0}
FORMER = {"normalize_returns": False, "entropy_beta": 0.01, "learning_rate": 1e-3}  # version 0.1.0
SMALL_TASKS = {"rp_weight": 0.05, "vr_weight": 0.1, "max_grad_norm": 2.0}
EPISODES = 64  # of each seed, at the end


class Task(NamedTuple):
    """An environment, its budget, and what its observations ask for."""

    steps: int
    fields: dict[str, Any]
    name: str | None = None  # of the environment; None for the task's


ENVIRONMENTS = {
    "Breakout-MinAtar": Task(400_000, {}),
    "CartPole-v1": Task(200_000, {"pc_weight": 0.0}),
    "CartPole-v1, short": Task(50_000, {"pc_weight": 0.0}, "CartPole-v1"),
}
AGENTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no tasks": NO_TASKS,
    "no tasks, no noise": {**NO_TASKS, "noisy": False},
    "pixel control alone": {"vr_weight": 0.0, "rp_weight": 0.0},
    "value replay alone": {"pc_weight": 0.0, "rp_weight": 0.0},
    "reward prediction alone": {"pc_weight": 0.0, "vr_weight": 0.0},
    "version 0.1.0": FORMER,
    "version 0.1.0, no tasks": {**FORMER, **NO_TASKS},
    "entropy to 0": {"entropy_beta_final": 0.0},
    "entropy .02, cosine": {"entropy_beta": 0.02, "learning_rate_schedule": "cosine"},
    "learning rate 5e-3": {"learning_rate": 5e-3},
    "4 epochs": {"epochs": 4},
    "rollouts of 16": {"rollout_length": 16},
    "rollouts of 64": {"rollout_length": 64},
    "32 environments": {"num_envs": 32},
    "16 environments": {"num_envs": 16},
    "no memory": {"lstm": ()},
    "reward prediction .05": {"rp_weight": 0.05},
    "small tasks": SMALL_TASKS,
    "small tasks, value 1": {**SMALL_TASKS, "value_weight": 1.0},
    "small tasks, entropy .02": {**SMALL_TASKS, "entropy_beta": 0.02},
    "entropy to .005, floor .35": {"entropy_beta_final": 0.005, "entropy_floor": 0.35},
    "lambda .9": {"gae_lambda": 0.9},
    "discount .97": {"discount": 0.97},
    "wider network": {"hidden": (256,), "lstm": (256,), "num_filters": (32,)},
}


def run(environment: str, agent: str, seeds: range) -> dict[str, Any]:
    """Trains one agent with several seeds side by side and evaluates each."""
    task = ENVIRONMENTS[environment]
    config = UnrealConfig(total_steps=task.steps, **{**AGENTS[agent], **task.fields})
    env = envs.make(task.name or environment)
    init, step, _, policy = make_unreal(config, env)
    state = jax.jit(jax.vmap(lambda seed: init(jax.random.key(seed))))(jnp.arange(seeds.start, seeds.stop))
    block = max(1, config.num_updates // 40)

    @jax.jit
    def advance(state: Any) -> Any:
        return jax.lax.scan(lambda state, _: jax.vmap(step)(state), state, length=block)

    start, curve = time.monotonic(), []
    for update in range(block, config.num_updates + 1, block):
        state, metrics = advance(state)
        means = {
            name: np.round(np.mean(metrics[name], axis=0), 4).tolist()
            for name in ("episode_return", "entropy")
        }
        curve.append({"steps": update * config.steps_per_update, **means})
    row: dict[str, Any] = {
        "environment": environment,
        "agent": agent,
        "seeds": list(seeds),
        "steps": task.steps,
    }
    row["seconds"] = round(time.monotonic() - start)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), 1), len(seeds))
    for mode in ("sampled", "greedy"):
        evaluate = make_evaluate(env, policy, num_episodes=EPISODES, greedy=mode == "greedy", max_steps=5000)
        returns = jax.jit(
            jax.vmap(lambda params, key, evaluate=evaluate: jnp.mean(evaluate(params, key).returns))
        )(state.params, keys)
        row[mode] = np.round(np.asarray(returns), 2).tolist()
    return {**row, "entropy": curve[-1]["entropy"], "curve": curve, "jax": jax.__version__}


def read() -> list[dict[str, Any]]:
    """The runs that have ended."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def interval(values: np.ndarray) -> tuple[float, float]:
    """The interval of 95 % of the mean, by bootstrap over seeds."""
    draws = np.random.default_rng(0).integers(0, len(values), (10_000, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def improvement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The probability that a seed of ours is above one of theirs (Agarwal et al. 2021, arXiv:2108.13264)."""
    return float(np.mean((ours[:, None] > theirs) + 0.5 * (ours[:, None] == theirs)))


def table(environment: str, rows: list[dict[str, Any]]) -> str:
    """The scores of every agent on one environment, in Markdown."""
    scores: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["environment"] == environment:
            for mode in ("sampled", "greedy", "entropy"):
                scores.setdefault(row["agent"], {}).setdefault(mode, []).extend(row[mode])
    default = np.array(scores.get("default", {}).get("sampled", []))
    lines = ["| agent | seeds | sampled | greedy | lowest seed | entropy at the end | default is above it |"]
    lines.append("|---|---:|---|---|---:|---:|---:|")
    for agent, score in scores.items():
        cells = [agent, str(len(score["sampled"]))]
        for mode in ("sampled", "greedy"):
            values = np.array(score[mode])
            low, high = interval(values)
            cells.append(f"{values.mean():.1f} ({low:.1f} to {high:.1f})")
        cells += [f"{min(score['sampled']):.1f}", f"{np.mean(score['entropy']):.2f}"]
        cells.append(f"{improvement(default, np.array(score['sampled'])):.2f}" if len(default) else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(rows: list[dict[str, Any]]) -> str:
    """docs/learning.md up to the first table is kept; the tables are made anew."""
    head = REPORT.read_text().partition("<!-- tables -->")[0] if REPORT.exists() else "# Learning\n\n"
    parts = [f"{head}<!-- tables -->\n"]
    for environment, task in ENVIRONMENTS.items():
        if any(row["environment"] == environment for row in rows):
            parts.append(f"## {task.name or environment}, {task.steps:,} steps\n{table(environment, rows)}\n")
    return "\n".join(parts)


def main() -> None:
    """Runs what is missing, or writes the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning")
    parser.add_argument("--only", default="", help="agents whose names contain this")
    parser.add_argument("--environment", choices=ENVIRONMENTS, action="append")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each agent, from 0")
    parser.add_argument("--at-once", type=int, default=5, help="seeds side by side in one run")
    parser.add_argument("--report", action="store_true", help="write docs/learning.md")
    given = parser.parse_args()
    if given.report:
        REPORT.write_text(report(read()))
        return
    for environment in given.environment or ENVIRONMENTS:
        for agent in (name for name in AGENTS if given.only in name):
            done = {
                seed
                for row in read()
                if (row["environment"], row["agent"]) == (environment, agent)
                for seed in row["seeds"]
            }
            missing = [seed for seed in range(given.seeds) if seed not in done]
            while missing:
                first = missing[0]
                count = next(
                    (k for k in range(1, given.at_once + 1) if first + k not in missing), given.at_once
                )
                row = run(environment, agent, range(first, first + count))
                RESULTS.parent.mkdir(exist_ok=True)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(
                    environment,
                    agent,
                    "sampled",
                    row["sampled"],
                    "greedy",
                    row["greedy"],
                    f"{row['seconds']} s",
                    flush=True,
                )
                missing = [seed for seed in missing if seed not in row["seeds"]]


if __name__ == "__main__":
    main()
