"""A search over hyperparameters: populations that learn in one program, chosen by Optuna, resumable after a kill.

>>> space = {"learning_rate": Range(1e-4, 1e-2, log=True), "rollout_length": (16, 32)}
>>> sweep("CartPole-v1", UnrealConfig(pc_weight=0), space, folder="sweep", trials=32)  # doctest: +SKIP
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import itertools
import json
import math
import pathlib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from btnn_jax._errors import first_line, import_extra
from btnn_jax.envs.base import Environment, is_host
from btnn_jax.runs.folder import CONFIG, Folder, RunError, create_folder, locked, read_settings, write_text
from btnn_jax.runs.keys import check_seeds
from btnn_jax.runs.sources import make_env
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.objective import Hyperparameters
from btnn_jax.training.unreal import TrainState, hyperparameters, make_unreal

__all__ = [
    "SAMPLERS",
    "Choices",
    "Range",
    "Space",
    "Trial",
    "read_sweep",
    "sweep",
    "trials_csv",
    "trials_table",
]

SAMPLERS = ("random", "tpe", "grid")
TRIALS, TABLE = "trials.jsonl", "trials.csv"
_SCORED = 0.1  # share of a run, at its end, that a trial is judged by


class Range(NamedTuple):
    """Numbers from `low` to `high`, drawn uniformly or, with `log`, uniformly in their logarithm."""

    low: float
    high: float
    log: bool = False


Choices = tuple[Any, ...]
Space = Mapping[str, Range | Choices]


class Trial(NamedTuple):
    """What came of one choice of values."""

    values: dict[str, Any]
    score: (
        float  # mean return over the seeds and the last updates that it made; -inf where no episode has ended
    )
    scores: tuple[float, ...]  # that of each seed; NaN where none of its episodes has ended
    steps: int  # environment steps that each seed made
    pruned: bool  # whether it was given up before its end


def sweep(
    env: str,
    config: UnrealConfig,
    space: Space,
    *,
    folder: Folder,
    trials: int = 32,
    population: int = 8,
    seeds: int = 1,
    seed: int = 0,
    sampler: str = "tpe",
    halvings: int = 0,
    env_params: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = print,
) -> list[Trial]:
    """Searches for the values of a configuration that bring the highest return.

    Trials of a population that differ only in what may be traced (`Hyperparameters`) learn side by side in one program;
    any other field makes a program of its own. Each trial is judged by its mean return over the last tenth of its
    updates, averaged over the seeds of which an episode has ended. A call with the same arguments goes on where an
    earlier one was stopped, and repeats at most the population that was under way.

    Args:
      env: a name that `btnn_jax.envs.make` knows.
      config: the values of all that is not searched.
      space: fields of `UnrealConfig` and where to search: a `Range` for a float, or a tuple of choices.
      folder: where to keep the search: a new one, an empty one, or that of the same search before.
      trials: how many to make in all; with "grid" at most as many as the grid has.
      population: trials between two questions to the sampler.
      seeds: agents of each trial, from the seeds `seed` to `seed + seeds - 1`.
      seed: of the agents and of the sampler.
      sampler: "tpe" (tree-structured Parzen estimator), "random", or "grid", for which every field needs choices.
      halvings: how often the worse half of a program's trials is given up: at the half of its updates, the quarter,
        and so on.
      env_params: parameters of the environment.
      report: is told a line now and then.

    Returns:
      All trials that have ended, the best first. `trials.csv` in the folder holds the same.

    Raises:
      RunError: the space or a number is impossible, no agent fits, or the folder is another search's.
      ModuleNotFoundError: optuna is missing (the extra `sweep`).
    """
    optuna = import_extra("optuna", "a search over hyperparameters", extra="sweep")
    check_seeds(seed, seeds)
    _check(config, space, sampler, {"trials": trials, "population": population}, halvings)
    params = dict(env_params or {})
    environment = make_env(env, params)
    if is_host(environment):
        raise RunError(f"{env} is stepped on the host, and a population learns in one program on the device")
    settings = {
        "sweep": {
            name: list(where) if isinstance(where, Range) else {"choices": where}
            for name, where in space.items()
        },
        "environment": {"name": env, "params": params},
        "config": config.to_dict(),
        "seed": seed,
        "seeds": seeds,
        "sampler": sampler,
        "halvings": halvings,
    }
    path = _open_folder(pathlib.Path(folder), settings)
    with locked(path):
        _drop_unfinished_line(path / TRIALS)
        ended = read_sweep(path)
        while len(ended) < trials:
            asked = _ask(optuna, ended, space, sampler, seed, min(population, trials - len(ended)))
            if not asked:
                break  # the grid has no more
            for group in _programs(asked, config):
                for trial in _learn(group, environment, range(seed, seed + seeds), halvings, report):
                    _append(path, trial)
            ended = read_sweep(path)
            write_text(path / TABLE, trials_csv(ended))
            best = ended[0]
            report(f"{len(ended)} of {trials} trials; best return {best.score:.4g}: {_words(best.values)}")
    return ended


def read_sweep(folder: Folder) -> list[Trial]:
    """The trials of a search that have ended, the best first.

    Raises:
      RunError: a line of the file is damaged.
    """
    path = pathlib.Path(folder) / TRIALS
    # What follows the last line's end is a trial that a killed search was about to write.
    lines = path.read_text("utf-8", errors="replace").split("\n")[:-1] if path.exists() else []
    trials = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row["values"] = {name: _tuples(value) for name, value in row["values"].items()}
            row["score"] = -math.inf if row["score"] is None else float(row["score"])
            row["scores"] = tuple(math.nan if x is None else float(x) for x in row["scores"])
            trials.append(Trial(**row))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunError(f"{path}, line {number}, is not a trial: {first_line(error)}") from error
    return sorted(trials, key=lambda trial: (trial.pruned, -trial.score))


def trials_table(trials: Sequence[Trial], *, most: int = 10) -> str:
    """The best trials as lines of text.

    >>> print(trials_table([Trial({"learning_rate": 0.003}, 21.5, (20.0, 23.0), 4096, False)]))
        return  seeds        lowest   steps  values
          21.5      2            20    4096  learning_rate=0.003
    """
    lines = [f"{'return':>10}  {'seeds':>5}  {'lowest':>12}  {'steps':>6}  values"]
    for trial in trials[:most]:
        given_up = "  (given up)" if trial.pruned else ""
        lines.append(
            f"{trial.score:>10.4g}  {len(trial.scores):>5}  {min(trial.scores):>12.4g}  {trial.steps:>6}  "
            f"{_words(trial.values)}{given_up}"
        )
    return "\n".join(lines)


def _check(
    config: UnrealConfig, space: Space, sampler: str, counts: Mapping[str, int], halvings: int
) -> None:
    kinds = typing.get_type_hints(UnrealConfig)
    if not space:
        raise RunError("nothing to search: the space is empty")
    for name, where in space.items():
        if name not in kinds:
            raise RunError(f"the configuration has no field {name}")
        if isinstance(where, Range):
            if kinds[name] not in (float, float | None):
                raise RunError(f"{name}: a range is for a float, {name} needs choices")
            if not (math.isfinite(where.low) and math.isfinite(where.high) and where.low < where.high):
                raise RunError(f"{name}: expected finite low < high, got {where.low:g} and {where.high:g}")
            if where.log and where.low <= 0:
                raise RunError(f"{name}: a logarithmic range must start above 0, got {where.low:g}")
            if sampler == "grid":
                raise RunError(f"{name}: a grid needs choices, got a range")
        elif not where:
            raise RunError(f"{name}: expected at least one choice")
        for value in where[:2] if isinstance(where, Range) else where:
            changed: dict[str, Any] = {name: value}
            try:
                dataclasses.replace(config, **changed)
            except ValueError as error:
                raise RunError(f"{name}: {first_line(error)}") from error
    if sampler not in SAMPLERS:
        raise RunError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    for name, count in counts.items():
        if count < 1:
            raise RunError(f"{name} must be at least 1, got {count}")
    if halvings < 0:
        raise RunError(f"halvings must be at least 0, got {halvings}")


def _open_folder(path: pathlib.Path, settings: dict[str, Any]) -> pathlib.Path:
    """Makes the folder, or finds in it the search that `settings` describe."""
    if not (path / CONFIG).exists():
        return create_folder(path, settings)
    written, plain = read_settings(path), json.loads(json.dumps(settings))
    if other := [name for name in plain if written.get(name) != plain[name]]:
        raise RunError(
            f"{path} is not of this search, its {' and '.join(other)} differ; choose another folder"
        )
    return path


def _ask(
    optuna: Any, ended: Sequence[Trial], space: Space, sampler: str, seed: int, count: int
) -> list[dict[str, Any]]:
    """The values of the next trials."""
    if sampler == "grid":
        tried = [trial.values for trial in ended]
        grid = (dict(zip(space, values, strict=True)) for values in itertools.product(*space.values()))
        return [values for values in grid if values not in tried][:count]
    seed = (seed + len(ended)) % 2**32  # a search that goes on must not draw the same values again
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    samplers = optuna.samplers
    made = (
        samplers.RandomSampler(seed=seed)
        if sampler == "random"
        else samplers.TPESampler(seed=seed, constant_liar=True)
    )
    study = optuna.create_study(direction="maximize", sampler=made)
    distributions = {name: _distribution(optuna, where) for name, where in space.items()}
    states = optuna.trial.TrialState
    for trial in ended:
        params = {
            name: value if isinstance(space[name], Range) else space[name].index(value)
            for name, value in trial.values.items()
        }
        study.add_trial(
            optuna.trial.create_trial(
                state=states.PRUNED if trial.pruned else states.COMPLETE,
                params=params,
                distributions=distributions,
                value=None if trial.pruned else trial.score,
                intermediate_values={trial.steps: trial.score},
            )
        )
    asked = [study.ask(distributions).params for _ in range(count)]
    return [
        {
            name: value if isinstance(space[name], Range) else space[name][value]
            for name, value in params.items()
        }
        for params in asked
    ]


def _distribution(optuna: Any, where: Range | Choices) -> Any:
    if isinstance(where, Range):
        return optuna.distributions.FloatDistribution(where.low, where.high, log=where.log)
    return optuna.distributions.CategoricalDistribution(range(len(where)))


class _Asked(NamedTuple):
    """A trial that begins."""

    values: dict[str, Any]
    hyper: Hyperparameters


def _programs(
    asked: Sequence[dict[str, Any]], config: UnrealConfig
) -> list[tuple[UnrealConfig, list[_Asked]]]:
    """The trials in groups that one program serves, with the configuration that it is made of."""
    groups: dict[UnrealConfig, list[_Asked]] = {}
    for values in asked:
        own = dataclasses.replace(config, **values)
        hyper = hyperparameters(own)
        groups.setdefault(_shared_program(own, config, values), []).append(_Asked(values, hyper))
    return list(groups.items())


def _shared_program(own: UnrealConfig, config: UnrealConfig, values: Mapping[str, Any]) -> UnrealConfig:
    """`own` without the values that the state carries; but whether a weight is 0 decides the program."""
    traced: dict[str, Any] = {
        name: getattr(config, name) or 1.0 for name in Hyperparameters._fields if values.get(name)
    }
    return dataclasses.replace(own, **traced)


def _learn(
    group: tuple[UnrealConfig, list[_Asked]],
    env: Environment,
    seeds: range,
    halvings: int,
    report: Callable[[str], None],
) -> Iterator[Trial]:
    """Trains the trials of one program side by side, and gives up the worse half now and then."""
    config, asked = group
    try:
        init, step, *_ = make_unreal(config, env)
    except ValueError as error:
        raise RunError(
            f"no agent fits {env.name} with {_words(asked[0].values)}: {first_line(error)}"
        ) from error
    report(
        f"{len(asked)} x {len(seeds)} agents in one program, {config.num_updates * config.steps_per_update} steps each"
    )

    def start(seed: jax.Array, hyper: Hyperparameters) -> TrainState:
        return init(jax.random.key(seed), hyper)

    every = jnp.arange(seeds.start, seeds.stop, dtype=jnp.uint32)
    hypers = jax.tree.map(lambda *xs: jnp.asarray(xs, jnp.float32), *(trial.hyper for trial in asked))
    state = jax.jit(jax.vmap(jax.vmap(start, (0, None)), (None, 0)))(every, hypers)  # [trials, seeds]

    @functools.partial(jax.jit, static_argnums=1, donate_argnums=0)
    def advance(state: TrainState, updates: int) -> tuple[TrainState, jax.Array]:
        def one(state: TrainState, _: None) -> tuple[TrainState, jax.Array]:
            state, metrics = jax.vmap(jax.vmap(step))(state)
            return state, jnp.where(metrics["episode_length"] > 0, metrics["episode_return"], jnp.nan)

        return jax.lax.scan(one, state, length=updates)

    ends = sorted({max(1, config.num_updates >> k) for k in range(halvings + 1)})
    made = 0
    for end in ends:
        state, returns = advance(state, end - made)  # [updates, trials, seeds]
        made = end
        scores = _scores(np.asarray(returns[-max(1, round(_SCORED * end)) :], np.float64))
        score = np.array([_mean(row) for row in scores])
        order = np.argsort(-score, kind="stable")
        last = end == config.num_updates
        keep = np.sort(order[: 0 if last else -(-len(asked) // 2)])
        for i in sorted(set(range(len(asked))) - set(keep.tolist())):
            yield Trial(
                values=asked[i].values,
                score=float(score[i]),
                scores=tuple(scores[i].tolist()),
                steps=made * config.steps_per_update,
                pruned=not last,
            )
        asked = [asked[i] for i in keep]
        state = jax.tree.map(lambda x, rows=keep: x[rows], state)


def _scores(returns: np.ndarray) -> np.ndarray:
    """Means over the updates `[updates, trials, seeds]` in which an episode had ended, NaN where there are none."""
    ended = np.isfinite(returns)
    count = ended.sum(axis=0)
    return np.where(count > 0, np.where(ended, returns, 0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _mean(scores: np.ndarray) -> float:
    """The mean over the seeds that have a score, -inf where none has."""
    known = scores[np.isfinite(scores)]
    return float(known.mean()) if known.size else -math.inf


def _append(path: pathlib.Path, trial: Trial) -> None:
    def readable(x: float) -> float | None:
        return x if math.isfinite(x) else None

    row = {
        **trial._asdict(),
        "score": readable(trial.score),
        "scores": [readable(x) for x in trial.scores],
    }
    with (path / TRIALS).open("a") as file:
        file.write(json.dumps(row) + "\n")


def _drop_unfinished_line(path: pathlib.Path) -> None:
    """Takes off what follows the last line's end, where the next trial would be appended to it."""
    text = path.read_text("utf-8", errors="replace") if path.exists() else ""
    if text and not text.endswith("\n"):
        write_text(path, text[: text.rfind("\n") + 1])


def trials_csv(trials: Sequence[Trial]) -> str:
    """The trials as a table of comma-separated values, a column for each field of the space."""
    text = io.StringIO()
    names = list(trials[0].values) if trials else []
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["score", "lowest", "highest", "steps", "pruned", *names])
    for trial in trials:
        row = [trial.score, min(trial.scores), max(trial.scores), trial.steps, trial.pruned]
        writer.writerow([*row, *(trial.values[name] for name in names)])
    return text.getvalue()


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in values.items()
    )
