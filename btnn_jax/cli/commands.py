"""`btnn-jax`: train an agent or an autoencoder, evaluate it, plot how it learned.

Whatever takes long to import is imported inside of the command that needs it, so that mistakes are told at once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from btnn_jax._errors import first_line
from btnn_jax.cli import arguments as options
from btnn_jax.cli.parser import DEFAULT_ENV, EVALUATION, make_parser
from btnn_jax.runs.interrupt import say_on_interrupt, watch_interrupts
from btnn_jax.training.config import AutoencoderConfig, Config, UnrealConfig

__all__ = ["UsageError", "main"]

_C = TypeVar("_C", bound=Config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `btnn-jax` with `arguments` (None takes the process's) and returns its exit code.

    It is 0 for success, 2 for a user's mistake, 128 plus the signal's number where a signal stopped the run.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be in the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    parser = make_parser()
    given = parser.parse_args(arguments)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # where an environment of one's own, module:Class, lies
    from btnn_jax.runs.folder import RunError
    from btnn_jax.runs.processes import ProcessLostError

    with watch_interrupts():
        try:
            return _COMMANDS[given.command](given)
        except ProcessLostError as error:
            print(f"btnn-jax: error: {error}", file=sys.stderr, flush=True)
            os._exit(1)  # an orderly exit would wait for the lost process, and then abort
        except (RunError, UsageError, ModuleNotFoundError) as error:
            parser.error(str(error))
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            parser.error(f"not enough memory; make sizes smaller: {first_line(error)}")


class UsageError(Exception):
    """The options make no sense together; the message is one line."""


def _train(given: argparse.Namespace) -> int:
    fields, loop = _settings(given, UnrealConfig)
    devices = _use_devices(given)
    if "resume" in given:
        from btnn_jax.runs.agent import resume

        result = resume(given.resume, devices=devices, **loop)
    else:
        from btnn_jax.envs import registration
        from btnn_jax.runs.agent import train

        env = getattr(given, "env", DEFAULT_ENV)
        env_params = dict(getattr(given, "env_params", []))
        known = registration(env)
        if "data_options" in given:
            if known is None or "data" not in known.run_params:
                raise UsageError(f"--data-option is for prices, and {env} has none")
            given_params = env_params.get("data_params", {})
            env_params["data_params"] = {**given_params, **dict(given.data_options)}
            given.env_params = list(env_params.items())
        if known is not None:
            for name, (_, told) in known.run_params.items():
                if name not in env_params:
                    print(told)
            env_params = {name: value for name, (value, _) in known.run_params.items()} | env_params
            given.env_params = list(env_params.items())
        if "pc_weight" not in fields and not _has_image(env, env_params):
            print(f"{env} shows no image: no pixel control")
            fields["pc_weight"] = 0.0
        pretrained = None
        if "encoder" in given:
            from btnn_jax.runs.autoencoder import pretrained_encoder

            described, pretrained = pretrained_encoder(given.encoder)
            if both := [options.option_of(name) for name in described if name in fields]:
                raise UsageError(f"--encoder says what {', '.join(both)} is; leave it out")
            fields |= described
        fields.setdefault("shards", devices * getattr(given, "num_processes", 1))
        config = _configure(UnrealConfig, fields)
        seeds = getattr(given, "seeds", 1)
        run = _new_run(given)
        result = train(env, config, pretrained=pretrained, seeds=seeds, devices=devices, **run, **loop)
    return _conclude(result, given)


def _use_devices(given: argparse.Namespace) -> int:
    """Joins the other processes, if there are any; the number of devices of this one."""
    import jax

    devices = getattr(given, "devices", 1)
    if devices > 1:
        with contextlib.suppress(RuntimeError):  # it is too late: JAX has been used in this process
            jax.config.update("jax_num_cpu_devices", devices)  # where there is nothing but the host
    words = {name: getattr(given, name, None) for name in ("coordinator", "process_id", "num_processes")}
    missing = [options.option_of(name) for name, value in words.items() if value is None]
    if len(missing) == 3:
        return devices
    if missing:
        raise UsageError(f"a run of several processes needs {' and '.join(missing)} too")
    if given.process_id >= given.num_processes:
        raise UsageError(f"--process-id must be below {given.num_processes}, got {given.process_id}")
    if "run" not in given and "resume" not in given:
        raise UsageError("a run of several processes needs --run: the same folder for all")
    from btnn_jax.runs.processes import connect

    connect(given.coordinator, given.process_id, given.num_processes)
    return devices


def _train_ae(given: argparse.Namespace) -> int:
    fields, loop = _settings(given, AutoencoderConfig)
    from btnn_jax._errors import import_extra

    import_extra("sklearn.decomposition", "comparing with PCA")  # not only after all the training
    if "resume" in given:
        from btnn_jax.runs.autoencoder import resume_autoencoder

        result = resume_autoencoder(given.resume, **loop)
    else:
        from btnn_jax.runs.autoencoder import train_autoencoder

        if "data" not in given:
            raise UsageError("the following arguments are required: --data")
        from btnn_jax.runs.autoencoder_data import unused_fields

        if unused := [options.option_of(name) for name in unused_fields(given.data) if name in fields]:
            raise UsageError(f"examples of {given.data} take no {', '.join(unused)}")
        read_with = getattr(given, "data_options", [])  # a series has no other parameters
        given.env_params = [*getattr(given, "env_params", []), *read_with]
        result = train_autoencoder(
            given.data, _configure(AutoencoderConfig, fields), **_new_run(given), **loop
        )
    return _conclude_ae(result)


def _settings(given: argparse.Namespace, config: type[Config]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of the configuration that were given, and how to run; with --resume there must be none."""
    known = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    fields = {name: value for name, value in vars(given).items() if name in known}
    if "resume" in given:
        chosen = [options.option_of(name) for name in fields]
        chosen += [word for name, word in _BEFORE_RUN.items() if name in given]
        if chosen:
            raise UsageError(f"--resume goes on with the run as it is; leave out {', '.join(chosen)}")
    elif given.checkpoint is not None:
        raise UsageError("--checkpoint goes with --resume")
    return fields, {name: getattr(given, name) for name in _LOOP}


_LOOP = ("checkpoint_minutes", "keep", "checkpoint", "max_skipped", "profile")


_BEFORE_RUN = {
    "env": "ENV",
    "encoder": "--encoder",
    "data": "--data",
    "env_params": "--env-param",
    "data_options": "--data-option",
    "seed": "--seed",
    "seeds": "--seeds",
}


def _new_run(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "seed": getattr(given, "seed", 0),
        "folder": getattr(given, "run", None),
        "env_params": dict(getattr(given, "env_params", [])),
    }


def _configure(config: type[_C], fields: dict[str, Any]) -> _C:
    try:
        return config(**fields)
    except ValueError as error:
        raise UsageError(options.in_options(str(error), config)) from error


def _has_image(env: str, env_params: dict[str, Any]) -> bool:
    import jax

    from btnn_jax.runs.sources import make_env

    return any(len(stream.shape) > 1 for stream in jax.tree.leaves(make_env(env, env_params).observation))


def _conclude(result: Any, given: argparse.Namespace) -> int:
    """Says how a run ended, evaluates it if it came to its end, and returns the exit code."""
    from btnn_jax.runs.processes import is_first

    if not is_first():
        return 0 if result.stopped is None else 128 + int(result.stopped)
    if code := _report(result, "train", _resume_options(given)):
        return code
    episodes = getattr(given, "evaluate_episodes", EVALUATION["episodes"])
    if "num_processes" in given:  # the others have gone, so that nothing can be computed with them any more
        print(f"evaluate: btnn-jax evaluate {result.folder}")
    elif not episodes:
        pass
    elif result.run.backtested:
        from btnn_jax.runs.folder import RunError

        try:
            _print_backtests(result.folder)
        except RunError as error:  # it has learned on all of the time, or too little of it is left
            print(f"no backtest: {error}")
    else:
        _print_scores(result.folder, episodes=episodes)
    print(f"plot:     btnn-jax plot {result.folder}")
    return 0


def _conclude_ae(result: Any) -> int:
    """Says how a run ended, compares it with PCA and draws it if it came to its end, and returns the exit code."""
    code = _report(result, "train-ae")
    if not code:
        _print_errors(result.folder)
        _print_pictures(result.folder)
    return code


def _resume_options(given: argparse.Namespace) -> str:
    """The options that are no part of the run itself, as going on with it needs them again."""
    values = {**vars(given), **({"process_id": "I"} if "process_id" in given else {})}
    names = ("devices", "coordinator", "num_processes", "process_id", "evaluate_episodes")
    return "".join(f" {options.option_of(name)} {values[name]}" for name in names if name in values)


def _report(result: Any, command: str, more: str = "") -> int:
    """Says how far a run came, and how to go on where it was stopped; the exit code."""
    import jax

    from btnn_jax.runs.progress import format_count, format_duration

    config = result.run.config
    steps = (
        f"{format_count(result.steps)} of {format_count(config.num_updates * config.steps_per_update)} steps"
    )
    print(f"trained {steps} in {format_duration(result.seconds)}; all of it is in {result.folder}")
    if skipped := int(jax.numpy.max(result.state.skipped)):
        print(f"{skipped} gradient steps were not finite and left out: try a smaller --learning-rate")
    if result.stopped is None:
        return 0
    print(f"go on:    btnn-jax {command} --resume {result.folder}{more}")
    print(f"evaluate: btnn-jax evaluate {result.folder}")
    print(f"plot:     btnn-jax plot {result.folder}")
    return 128 + int(result.stopped)


def _evaluate(given: argparse.Namespace) -> int:
    say_on_interrupt(f"{given.run} is as it was")
    from btnn_jax.runs.run import is_autoencoder_run

    if is_autoencoder_run(given.run):
        _given_options(given, "an autoencoder", ())
        _print_errors(given.run)
    elif _is_backtested(given.run):
        chosen = _given_options(given, "a trading run", ("part", "commission", "seed", "best"))
        _print_backtests(given.run, chosen.pop("commission", (None,)), **chosen)
    else:
        chosen = _given_options(given, "an agent's episodes", ("episodes", "max_steps", "seed", "best"))
        unusual = chosen.items() - EVALUATION.items()
        _print_scores(given.run, **chosen, keep=not unusual)
        if unusual:
            print("not kept: evaluation.json, which plot draws, is of an evaluation as it is by default")
    return 0


def _given_options(given: argparse.Namespace, what: str, names: Sequence[str]) -> dict[str, Any]:
    """The options of `evaluate` that were given, all of which must be among `names`."""
    chosen = {name: value for name, value in vars(given).items() if name not in ("run", "command")}
    if others := [options.option_of(name) for name in chosen if name not in names]:
        raise UsageError(f"evaluating {what} takes no {', '.join(others)}")
    return chosen


def _print_scores(folder: Any, **arguments: Any) -> None:
    from btnn_jax.runs.scores import score_run, scores_table

    arguments = EVALUATION | arguments
    print(f"evaluating {arguments['episodes']} episodes of each agent ...", flush=True)
    print(scores_table(score_run(folder, **arguments)))


def _is_backtested(folder: Any) -> bool:
    from btnn_jax.runs.run import read_run

    return read_run(folder).backtested


def _print_backtests(folder: Any, commissions: Sequence[float | None] = (None,), **arguments: Any) -> None:
    from btnn_jax.runs.backtests import backtest_run, backtest_table, compare, write_backtests

    backtests = backtest_run(folder, commissions=commissions, **arguments)
    rows = [compare(backtest) for backtest in backtests]
    write_backtests(folder, backtests, rows)
    for backtest, accounts in zip(backtests, rows, strict=True):
        print(f"{backtest.part} part, commission {backtest.env.rules.commission:g}:")
        print(backtest_table(accounts))


def _print_errors(folder: Any) -> None:
    from btnn_jax.runs.reconstruction import compare_run, errors_table

    print(errors_table(compare_run(folder)))


def _envs(given: argparse.Namespace) -> int:
    from btnn_jax import envs
    from btnn_jax._errors import check_known

    suites = envs.suites()
    if given.suite is not None:
        try:
            check_known("suite", [given.suite], suites)
        except ValueError as error:
            raise UsageError(str(error)) from error
        print("\n".join(f"{given.suite}:{name}" for name in suites[given.suite].names()))
        return 0
    print(f"{'ours':<12}{len(envs.own_names()):>5}  {', '.join(envs.own_names())}")
    for name, suite in suites.items():
        try:
            print(f"{name:<12}{len(suite.names()):>5}  {suite.text}")
        except ModuleNotFoundError as error:
            print(f"{name:<12}{'-':>5}  {suite.text}; {error}")
    print("module:Class is an environment of your own")
    return 0


def _sweep(given: argparse.Namespace) -> int:
    from btnn_jax.plots.sweep import plot_sweep
    from btnn_jax.runs.sweep import Range, sweep, trials_table

    say_on_interrupt(f"the trials that have ended are kept in {given.folder}; the same command goes on")
    known = {field.name for field in dataclasses.fields(UnrealConfig)}
    fields = {name: value for name, value in vars(given).items() if name in known}
    space = {
        name: Range(*values) if isinstance(values, tuple) else tuple(values) for name, values in given.vary
    }
    if both := [options.option_of(name) for name in space if name in fields]:
        raise UsageError(f"--vary says what {', '.join(both)} is; leave it out")
    env_params = dict(getattr(given, "env_params", []))
    if "pc_weight" not in {*fields, *space} and not _has_image(given.env, env_params):
        print(f"{given.env} shows no image: no pixel control")
        fields["pc_weight"] = 0.0
    names = ("folder", "trials", "population", "seeds", "seed", "sampler", "halvings")
    arguments = {name: getattr(given, name) for name in names}
    trials = sweep(given.env, _configure(UnrealConfig, fields), space, env_params=env_params, **arguments)
    print(trials_table(trials))
    print(plot_sweep(given.folder))
    return 0


def _data(given: argparse.Namespace) -> int:
    from btnn_jax.cli.data import show_prices

    try:
        show_prices(given.files, dict(given.data_options or []), given.plot)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(f"cannot read {error.filename}: {error.strerror or error}") from error
    return 0


def _export(given: argparse.Namespace) -> int:
    say_on_interrupt(f"{given.run} is as it was")
    from btnn_jax.runs.export import PLATFORMS, export_agent

    platforms = given.platforms or PLATFORMS
    try:
        print(export_agent(given.run, given.file, best=given.best, seed=given.seed, platforms=platforms))
    except ValueError as error:
        raise UsageError(str(error)) from error
    return 0


def _plot(given: argparse.Namespace) -> int:
    say_on_interrupt("the runs are as they were")
    from btnn_jax.runs.run import is_autoencoder_run

    if len(given.runs) == 1 and is_autoencoder_run(given.runs[0]):
        if given.output is not None:
            raise UsageError("an autoencoder has several pictures, in its run's folder; leave out --output")
        _print_pictures(given.runs[0])
        return 0
    from btnn_jax.plots.agent import plot_runs

    print(plot_runs(given.runs, given.output))
    if len(given.runs) == 1 and _is_backtested(given.runs[0]):
        from btnn_jax.plots.trading import plot_backtest
        from btnn_jax.runs.folder import RunError

        try:
            print(plot_backtest(given.runs[0]))
        except RunError as error:  # the curves that were asked for are there
            print(f"no picture of its trades: {error}")
    return 0


def _print_pictures(folder: Any) -> None:
    from btnn_jax.plots.autoencoder import plot_autoencoder

    for path in plot_autoencoder(folder):
        print(path)


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "train": _train,
    "train-ae": _train_ae,
    "evaluate": _evaluate,
    "plot": _plot,
    "data": _data,
    "envs": _envs,
    "sweep": _sweep,
    "export": _export,
}
