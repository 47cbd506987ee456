"""Scores of a trained agent beside a random one."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from btnn_jax._types import PyTree
from btnn_jax.envs.base import AnyEnvironment
from btnn_jax.runs.agent import BoundRun, make_agent
from btnn_jax.runs.checkpoint import Checkpoints
from btnn_jax.runs.folder import CHECKPOINTS, EVALUATION, Folder, RunError, read_rows, write_json
from btnn_jax.runs.keys import check_seeds, key_of
from btnn_jax.runs.run import read_run
from btnn_jax.runs.sources import opened
from btnn_jax.training.evaluate import Episodes, make_evaluate, make_evaluate_random

__all__ = ["Score", "read_scores", "score", "score_run", "scores_table", "summarise"]


class Score(NamedTuple):
    """One agent's episodes."""

    episodes: int
    mean_return: float
    standard_error: float | None  # of the mean return; None of a single episode
    mean_length: float  # steps
    unfinished: int  # episodes that were cut by the evaluation


def score_run(
    folder: Folder,
    *,
    episodes: int = 128,
    seed: int = 0,
    max_steps: int = 10_000,
    best: bool = False,
    keep: bool = True,
    env: AnyEnvironment | None = None,
) -> dict[str, Score]:
    """Plays the agent, or agents, of one of a run's checkpoints, and writes `evaluation.json` into the folder.

    Args:
      folder: the run's; it may have been interrupted.
      episodes: how many each agent plays.
      seed: seed of the episodes.
      max_steps: where to cut an episode that does not end.
      best: play the checkpoint with the highest return in training rather than the newest.
      keep: write `evaluation.json`, which pictures show as the run's result.
      env: the environment, of a run that was started with an object.

    Returns:
      The scores of the agent's most likely actions (`greedy`), of its sampled ones (`sampled`), and of
      uniformly drawn ones (`random`). Of a run of several seeds the first two are over all agents, with the standard
      error over them, and the most likely actions of each are there too (`greedy, seed 0`, ...).

    Raises:
      RunError: the folder is not a run's, or has no checkpoint that can be read; a number is out of its range.
    """
    check_seeds(seed)
    for name, value in (("episodes", episodes), ("max_steps", max_steps)):
        if not 1 <= value < 2**31:
            raise RunError(f"{name} must be between 1 and {2**31 - 1}, got {value}")
    run = read_run(folder, env)
    agent = make_agent(run)
    with Checkpoints(pathlib.Path(folder) / CHECKPOINTS, create=False) as checkpoints:
        state = checkpoints.restore(agent.state, checkpoints.best() if best else None)
    names = range(run.seed, run.seed + run.seeds) if run.seeds > 1 else None
    with opened(agent.env):
        scores = score(agent, state.params, episodes=episodes, seed=seed, max_steps=max_steps, seeds=names)
    if keep:
        steps = int(np.max(state.update)) * run.config.steps_per_update
        scored = {name: score._asdict() for name, score in scores.items()}
        write_json(pathlib.Path(folder) / EVALUATION, {"steps": steps, "seed": seed, "scores": scored})
    return scores


def score(
    agent: BoundRun,
    params: PyTree,
    *,
    episodes: int,
    seed: int = 0,
    max_steps: int = 10_000,
    seeds: Sequence[int] | None = None,
) -> dict[str, Score]:
    """The scores of `params`, greedy and sampled, and of a random agent; see `score_run`.

    Args:
      agent: the run's.
      params: parameters of the policy; leading with an axis of seeds where `seeds` names them.
      episodes: how many each agent plays.
      seed: seed of the episodes.
      max_steps: where to cut an episode that does not end.
      seeds: the agents' seeds; None for one agent.
    """
    greedy_key, sampled_key, random_key = jax.random.split(key_of(seed, "evaluation"), 3)

    def trained(key: jax.Array, *, greedy: bool) -> Episodes:
        play = make_evaluate(
            agent.env, agent.policy, num_episodes=episodes, greedy=greedy, max_steps=max_steps
        )
        if seeds is None:
            return jax.jit(play)(params, key)
        return jax.jit(jax.vmap(play))(params, jax.random.split(key, len(seeds)))

    random = jax.jit(make_evaluate_random(agent.env, num_episodes=episodes, max_steps=max_steps))
    greedy = trained(greedy_key, greedy=True)
    scores = {
        "greedy": summarise(greedy),
        "sampled": summarise(trained(sampled_key, greedy=False)),
        "random": summarise(random(random_key)),
    }
    for index, name in enumerate(seeds or ()):
        scores[f"greedy, seed {name}"] = summarise(jax.tree.map(lambda x, index=index: x[index], greedy))
    return scores


def summarise(played: Episodes) -> Score:
    """Mean return with its standard error over episodes `[N]`, or over the agents of `[S, N]`, and mean length."""
    returns = np.asarray(played.returns, np.float64)
    count = returns.size
    samples = returns if returns.ndim == 1 else returns.mean(axis=1)
    error = samples.std(ddof=1) / math.sqrt(samples.size) if samples.size > 1 else None
    return Score(
        episodes=count,
        mean_return=float(returns.mean()),
        standard_error=None if error is None else float(error),
        mean_length=float(np.mean(played.lengths)),
        unfinished=int(count - np.sum(played.finished)),
    )


def read_scores(folder: Folder) -> dict[str, Score]:
    """The scores that `score_run` wrote; empty where it has not been called.

    Raises:
      RunError: the file is damaged.
    """
    return read_rows(pathlib.Path(folder) / EVALUATION, "scores", Score)


def scores_table(scores: dict[str, Score]) -> str:
    """The scores as lines of text; the last column is how many times the random agent's return they are.

    >>> random = Score(64, 0.5, 0.1, 70.2, 0)
    >>> print(scores_table({"greedy": Score(64, 12.5, 0.4, 310.0, 0), "random": random}))
    agent    episodes   mean return            length  x random
    greedy         64         12.50 +- 0.40     310.0      25.0
    random         64          0.50 +- 0.10      70.2       1.0
    +- is the standard error of the mean over episodes
    """
    random = scores.get("random")
    width = max(8, 1 + max(map(len, scores), default=0))
    lines = [f"{'agent':<{width}}{'episodes':>9}{'mean return':>14}{'':<10}{'length':>8}{'x random':>10}"]
    for name, score in scores.items():
        # A ratio to a random agent that earns nothing, or loses, says nothing.
        meaningful = random is not None and random.mean_return > 0
        ratio = f"{score.mean_return / random.mean_return:.1f}" if random is not None and meaningful else "-"
        error = "-" if score.standard_error is None else f"{score.standard_error:.2f}"
        lines.append(
            f"{name:<{width}}{score.episodes:>9}{score.mean_return:>14.2f} +- {error:<6}"
            f"{score.mean_length:>8.1f}{ratio:>10}"
        )
    several = any(name.startswith("greedy, seed") for name in scores)
    over = "; of all greedy and of all sampled agents, over agents" if several else ""
    lines.append(f"+- is the standard error of the mean over episodes{over}")
    if cut := sum(score.unfinished for score in scores.values()):
        lines.append(f"{cut} of the episodes were cut before they ended")
    return "\n".join(lines)
