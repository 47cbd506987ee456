"""`btnn-jax`: train an agent or an autoencoder, evaluate it, plot how it learned.

Whatever takes long to import is imported inside of the command that needs it, so that help is there at once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from btnn_jax import options
from btnn_jax.options import with_default as _
from btnn_jax.training.config import AutoencoderConfig, Config, UnrealConfig

_C = TypeVar("_C", bound=Config)

DEFAULT_ENV = "Breakout-MinAtar"

HELP: dict[str, dict[str, str]] = {
    "experience": {
        "total_steps": "environment steps of the whole run; the schedules end there",
        "shards": "learners side by side that average their gradients; --devices unless given",
        "num_envs": "environments stepped side by side, in each shard",
        "rollout_length": "steps of each environment per update; also the length of replayed sequences",
        "discount": "of rewards, per step",
        "gae_lambda": "of generalized advantage estimation",
    },
    "algorithm": {
        "algorithm": "a2c makes one gradient step per rollout, ppo epochs * minibatches of them",
        "epochs": "ppo: passes over each rollout",
        "minibatches": "ppo: parts of each rollout, a divisor of --num-envs",
        "ppo_epsilon": "ppo: how far the policy's probability ratio is followed",
        "normalize_advantages": "scale advantages to mean 0 and deviation 1",
        "value_weight": "weight of the value loss",
        "entropy_beta": "weight of the policy's entropy",
        "entropy_beta_final": "what --entropy-beta changes to linearly by the end; none keeps it",
    },
    "optimizer": {
        "learning_rate": "Adam's step size",
        "learning_rate_schedule": "linear and cosine go down to 0",
        "max_grad_norm": "bound of the global norm of the gradients",
        "adam_epsilon": "in Adam's denominator",
    },
    "auxiliary tasks (a weight of 0 leaves a task out)": {
        "pc_weight": "weight of pixel control",
        "vr_weight": "weight of value replay",
        "rp_weight": "weight of reward prediction",
        "pc_discount": "of pixel changes, per step",
        "pc_cell": "pixels of a cell of the pixel-control grid: height,width",
        "pc_stream": "observation stream that pixel control watches; none for the only one",
        "rp_frames": "frames that reward prediction sees",
        "rp_threshold": "rewards within [-X, X] count as zero",
        "replay_length": "steps kept of each environment, a multiple of --rollout-length",
        "replay_batch": "replayed sequences per gradient step",
        "replay_burn_in": "steps that only refresh the recurrent state of a replayed sequence",
        "rp_batch": "frame stacks per gradient step, half of them with a reward",
    },
    "network": {
        "policy": "stacked_lstm has two LSTMs, for observation streams external and internal",
        "num_filters": "channels of each convolution; none chooses by the observation's size",
        "hidden": "sizes of the dense layers after the convolutions",
        "lstm": "sizes of the recurrent layers; none for an agent without memory",
        "noisy": "NoisyNet heads, which explore by noise in their weights",
        "precision": "of the network's computations; parameters, memory, logits and losses are float32",
        "frozen": "parameters that stay as they start, by how their paths start: encoder/autoencoder",
    },
    "an autoencoder as encoder": {
        "autoencoder": "whose latent variables the agent sees in place of convolutions",
        "ae_layers": "filters:size:stride of each of its layers; none chooses by the observation's shape",
        "ae_stream": "observation stream that it encodes; none for the only one",
        "ae_weight": "weight of its own loss, on what the agent sees",
        "ae_beta": "weight of a beta_vae's divergence in its loss",
    },
}
"""What every field of `UnrealConfig` is called for on the command line, by topic."""

AUTOENCODER_HELP: dict[str, dict[str, str]] = {
    "examples": {
        "columns": "columns of a series; none for its bars, or for all but the volume where it has none",
        "window": "rows of a window of a series",
        "stride": "rows between the starts of two windows",
        "frames": "frames of an environment, seen by random actions",
        "stream": "which of an environment's observation streams; none for the only one",
        "validation": "fraction of the time, at its end, that nothing is learned from",
        "embargo": "rows or steps left out before it",
    },
    "network": {
        "kind": "channel_wise has weights for each channel; beta_vae is variational",
        "layer_config": "filters:size:stride of each layer of the encoder; none chooses by the example's shape",
        "resize_method": "how the decoder makes features larger",
        "pad": "of the convolutions",
    },
    "loss of a beta_vae": {
        "beta": "weight of the divergence in nats, beside the likelihood of variance 1",
        "beta_warmup_steps": "gradient steps in which beta rises linearly from 0",
    },
    "optimizer": {
        "steps": "gradient steps of the whole run; the learning rate falls to 0 there",
        "batch": "examples of a gradient step",
        "learning_rate": "Adam's first step size",
        "max_grad_norm": "bound of the global norm of the gradients",
        "steps_per_update": "gradient steps between two measurements of the validation part",
    },
}
"""What every field of `AutoencoderConfig` is called for on the command line, by topic."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `btnn-jax` with `arguments` (None takes the process's) and returns its exit code.

    It is 0 for success, 2 for a user's mistake, 128 plus the signal's number where a signal stopped the run.
    """
    parser = make_parser()
    given = parser.parse_args(arguments)
    from btnn_jax.training.folder import RunError
    from btnn_jax.training.processes import ProcessLostError

    with _plain_interrupt():
        try:
            return given.command(given)
        except ProcessLostError as error:
            print(f"btnn-jax: error: {error}", file=sys.stderr, flush=True)
            os._exit(1)  # an orderly exit would wait for the lost process, and then abort
        except (RunError, UsageError, ModuleNotFoundError) as error:
            parser.error(str(error))


class UsageError(Exception):
    """The options make no sense together; the message is one line."""


def make_parser() -> options.Parser:
    """The parser of all commands; `given.command(given)` runs the one that was chosen."""
    parser = options.Parser(
        prog="btnn-jax",
        description="Train agents with UNREAL's auxiliary tasks, and autoencoders, on the device.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_train_ae(commands)

    evaluate = commands.add_parser(
        "evaluate",
        help="play episodes with a trained agent and with a random one, or compare an autoencoder with PCA",
        description="Play episodes with the agent of a run's newest checkpoint, and with a random one; let one that "
        "trades do so on time that it has not learned on, beside simple strategies; or measure the reconstructions of "
        "an autoencoder's run beside those of PCA.",
        argument_default=argparse.SUPPRESS,  # what is not given must be known: each kind of run has its own
        allow_abbrev=False,
    )
    evaluate.add_argument("run", metavar="RUN", help="folder of the run")
    evaluate.add_argument("--episodes", type=options.at_least_one, metavar="N", help=_("of each agent", 128))
    evaluate.add_argument("--seed", type=options.seed, metavar="N", help=_("of the episodes", 0))
    evaluate.add_argument(
        "--max-steps",
        type=options.at_least_one,
        metavar="N",
        help=_("where to cut an episode", 10_000),
    )
    evaluate.add_argument(
        "--best",
        action="store_true",
        help="the checkpoint with the highest return in training rather than the newest",
    )
    evaluate.add_argument(
        "--part",
        choices=("train", "validation", "test"),
        help=_("of a trading run: which part of the time, one that it has not learned on", "test"),
    )
    evaluate.add_argument(
        "--commission",
        type=options.fractions,
        metavar="X,X",
        help="of a trading run: what it comes to at these commissions instead of the one learned with",
    )
    evaluate.set_defaults(command=_evaluate)

    plot = commands.add_parser(
        "plot",
        help="draw the learning curve and the losses of one or several runs, or what an autoencoder does",
        description="Draw the learning curve, the losses and the learner's vital signs of agents as one PNG, or an "
        "autoencoder's reconstructions, traversals and kernels as one PNG each.",
        allow_abbrev=False,
    )
    plot.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run; several are drawn together")
    plot.add_argument(
        "--output",
        metavar="FILE.png",
        help="of the learning curves of agents (default: curves.png in the first run's folder)",
    )
    plot.set_defaults(command=_plot)
    return parser


def _add_train(commands: Any) -> None:
    train = _add_training(commands, "train", "an agent", "[ENV]", "ENV-ALGORITHM")
    train.add_argument(
        "env",
        metavar="ENV",
        nargs="?",
        help=_("environment: trading, a probe, or one of gymnax", DEFAULT_ENV),
    )
    train.add_argument("--env", dest="env", metavar="ENV", help="the same, as an option")
    train.add_argument(
        "--evaluate-episodes",
        type=options.at_least_zero,
        default=128,
        metavar="N",
        help=_("episodes of the evaluation at the end; 0 for none", 128),
    )
    train.add_argument(
        "--encoder",
        metavar="RUN",
        help="start with the autoencoder of this run of train-ae as encoder; --frozen encoder/autoencoder keeps it",
    )
    _add_devices(train)
    options.add_fields(train, UnrealConfig, HELP)
    train.set_defaults(command=_train)


def _add_devices(train: Any) -> None:
    devices = train.add_argument_group("devices and processes")
    devices.add_argument(
        "--devices",
        type=options.at_least_one,
        metavar="N",
        help=_("how many of each process's to divide the shards among", 1),
    )
    devices.add_argument(
        "--seeds",
        type=options.at_least_one,
        metavar="N",
        help=_("agents that learn side by side in one program, from --seed on", 1),
    )
    devices.add_argument(
        "--coordinator", metavar="HOST:PORT", help="where process 0 of several listens; the same for all"
    )
    devices.add_argument("--process-id", type=options.at_least_zero, metavar="I", help="this process, from 0")
    devices.add_argument("--num-processes", type=options.at_least_one, metavar="N", help="how many there are")


def _add_train_ae(commands: Any) -> None:
    train = _add_training(commands, "train-ae", "an autoencoder", "--data DATA", "DATA-KIND")
    train.add_argument(
        "--data",
        metavar="DATA",
        help="a CSV file of prices; eurusd, googl or stocks, which come with packages; or an environment",
    )
    options.add_fields(train, AutoencoderConfig, AUTOENCODER_HELP)
    train.set_defaults(command=_train_ae)


def _add_training(commands: Any, name: str, what: str, words: str, folder: str) -> options.Parser:
    """A command that trains `what`, with the options that all of them have."""
    train: options.Parser = commands.add_parser(
        name,
        help=f"train {what}",
        usage=f"btnn-jax {name} {words} [OPTION ...]",
        description=f"Train {what}. Ctrl-C ends the run with a checkpoint that --resume goes on from.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32),
        argument_default=argparse.SUPPRESS,  # what is not given must be known, for --resume
        allow_abbrev=False,
    )
    train.add_argument(
        "--env-param",
        metavar="NAME=VALUE",
        action="append",
        type=options.assignment,
        dest="env_params",
        help="parameter of the environment; may be repeated",
    )
    train.add_argument(
        "--seed", type=options.seed, metavar="N", help=_("the same seed gives the same run", 0)
    )
    files = train.add_argument_group("run")
    where = files.add_mutually_exclusive_group()
    where.add_argument(
        "--run", metavar="FOLDER", help=f"where to keep it (default: runs/{folder}-seedN-DATE-TIME)"
    )
    where.add_argument("--resume", metavar="RUN", help="go on with this run from its newest checkpoint")
    files.add_argument(
        "--checkpoint-minutes",
        type=options.positive,
        default=5.0,
        metavar="X",
        help=_("time between checkpoints; there is always one at the end", 5),
    )
    files.add_argument(
        "--keep",
        type=options.at_least_one,
        default=2,
        metavar="N",
        help=_("newest checkpoints to keep, besides the best", 2),
    )
    files.add_argument(
        "--checkpoint",
        type=options.at_least_zero,
        default=None,
        metavar="N",
        help="with --resume: go on from this checkpoint; newer ones are moved aside (default: the newest)",
    )
    files.add_argument(
        "--max-skipped",
        type=options.at_least_zero,
        default=1000,
        metavar="N",
        help=_("gradient steps that were not finite, and left out, after which the run gives up", 1000),
    )
    files.add_argument(
        "--profile",
        action="store_true",
        default=False,
        help="say where time and memory of the first updates go, and write a trace of some for TensorBoard",
    )
    return train


def _train(given: argparse.Namespace) -> int:
    fields, loop = _settings(given, UnrealConfig)
    devices = _use_devices(given)
    if "resume" in given:
        from btnn_jax.training.run import resume

        result = resume(given.resume, devices=devices, **loop)
    else:
        from btnn_jax.training.run import train

        env = getattr(given, "env", DEFAULT_ENV)
        env_params = dict(getattr(given, "env_params", []))
        if env == "trading" and "part" not in env_params:
            print("learns from the first part of the time (part=train); evaluate looks at the last (test)")
            env_params["part"] = "train"
            given.env_params = list(env_params.items())
        if "pc_weight" not in fields and not _has_image(env, env_params):
            print(f"{env} shows no image: no pixel control")
            fields["pc_weight"] = 0.0
        pretrained = None
        if "encoder" in given:
            from btnn_jax.training.autoencode_run import pretrained_encoder

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
    from btnn_jax.training.processes import connect

    connect(given.coordinator, given.process_id, given.num_processes)
    return devices


def _train_ae(given: argparse.Namespace) -> int:
    fields, loop = _settings(given, AutoencoderConfig)
    from btnn_jax.extras import import_extra

    import_extra("sklearn.decomposition", "comparing with PCA")  # not only after all the training
    if "resume" in given:
        from btnn_jax.training.autoencode_run import resume_autoencoder

        result = resume_autoencoder(given.resume, **loop)
    else:
        from btnn_jax.training.autoencode_run import train_autoencoder

        if "data" not in given:
            raise UsageError("the following arguments are required: --data")
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
    "seed": "--seed",
    "seeds": "--seeds",
}


def _new_run(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "seed": getattr(given, "seed", 0),
        "folder": getattr(given, "run", None),
        "env_params": dict(getattr(given, "env_params", [])),
    }


def _configure(config: Callable[..., _C], fields: dict[str, Any]) -> _C:
    try:
        return config(**fields)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _has_image(env: str, env_params: dict[str, Any]) -> bool:
    import jax

    from btnn_jax.training.run import make_env

    return any(len(stream.shape) > 1 for stream in jax.tree.leaves(make_env(env, env_params).observation))


def _conclude(result: Any, given: argparse.Namespace) -> int:
    """Says how a run ended, evaluates it if it came to its end, and returns the exit code."""
    from btnn_jax.training.processes import is_first

    if not is_first():
        return 0 if result.stopped is None else 128 + int(result.stopped)
    if code := _told(result, "train", _places(given)):
        return code
    if "num_processes" in given:  # the others have gone, so that nothing can be computed with them any more
        print(f"evaluate: btnn-jax evaluate {result.folder}")
    elif given.evaluate_episodes and result.run.env == "trading":
        from btnn_jax.training.folder import RunError

        try:
            _print_backtests(result.folder)
        except RunError as error:  # it has learned on all of the time, or too little of it is left
            print(f"no backtest: {error}")
    elif given.evaluate_episodes:
        _print_scores(result.folder, episodes=given.evaluate_episodes)
    print(f"plot:     btnn-jax plot {result.folder}")
    return 0


def _conclude_ae(result: Any) -> int:
    """Says how a run ended, compares it with PCA and draws it if it came to its end, and returns the exit code."""
    code = _told(result, "train-ae")
    if not code:
        _print_errors(result.folder)
        _print_pictures(result.folder)
    return code


def _places(given: argparse.Namespace) -> str:
    """The options of devices and processes that a run was started with, as every process needs them again."""
    values = {**vars(given), **({"process_id": "I"} if "process_id" in given else {})}
    names = ("devices", "coordinator", "num_processes", "process_id")
    return "".join(f" {options.option_of(name)} {values[name]}" for name in names if name in values)


def _told(result: Any, command: str, places: str = "") -> int:
    """Says how far a run came, and how to go on where it was stopped; the exit code."""
    import jax

    from btnn_jax.training.progress import clock, short

    config = result.run.config
    steps = f"{short(result.steps)} of {short(config.num_updates * config.steps_per_update)} steps"
    print(f"trained {steps} in {clock(result.seconds)}; all of it is in {result.folder}")
    if skipped := int(jax.numpy.max(result.state.skipped)):
        print(f"{skipped} gradient steps were not finite and left out: try a smaller --learning-rate")
    if result.stopped is None:
        return 0
    print(f"go on:    btnn-jax {command} --resume {result.folder}{places}")
    print(f"evaluate: btnn-jax evaluate {result.folder}")
    print(f"plot:     btnn-jax plot {result.folder}")
    return 128 + int(result.stopped)


def _evaluate(given: argparse.Namespace) -> int:
    from btnn_jax.training.autoencode_run import is_autoencoder_run

    if is_autoencoder_run(given.run):
        _chosen(given, "an autoencoder", ())
        _print_errors(given.run)
    elif _trades(given.run):
        chosen = _chosen(given, "a trading run", ("part", "commission", "seed", "best"))
        _print_backtests(given.run, chosen.pop("commission", (None,)), **chosen)
    else:
        chosen = _chosen(given, "an agent's episodes", ("episodes", "max_steps", "seed", "best"))
        _print_scores(given.run, **chosen)
    return 0


def _chosen(given: argparse.Namespace, what: str, names: Sequence[str]) -> dict[str, Any]:
    """The options of `evaluate` that were given, all of which must be among `names`."""
    chosen = {name: value for name, value in vars(given).items() if name not in ("run", "command")}
    if others := [options.option_of(name) for name in chosen if name not in names]:
        raise UsageError(f"evaluating {what} takes no {', '.join(others)}")
    return chosen


def _print_scores(folder: Any, *, episodes: int = 128, **arguments: Any) -> None:
    from btnn_jax.training.scores import score_run, scores_table

    print(f"evaluating {episodes} episodes of each agent ...", flush=True)
    print(scores_table(score_run(folder, episodes=episodes, **arguments)))


def _trades(folder: Any) -> bool:
    from btnn_jax.training.folder import read_run

    return read_run(folder).env == "trading"


def _print_backtests(folder: Any, commissions: Sequence[float | None] = (None,), **arguments: Any) -> None:
    from btnn_jax.training.backtest import backtest_run, backtest_table, compare, write_backtests

    backtests = backtest_run(folder, commissions=commissions, **arguments)
    rows = [compare(backtest) for backtest in backtests]
    write_backtests(folder, backtests, rows)
    for backtest, accounts in zip(backtests, rows, strict=True):
        print(f"{backtest.part} part, commission {backtest.env.rules.commission:g}:")
        print(backtest_table(accounts))


def _print_errors(folder: Any) -> None:
    from btnn_jax.training.reconstruction import compare_run, errors_table

    print(errors_table(compare_run(folder)))


def _plot(given: argparse.Namespace) -> int:
    from btnn_jax.training.autoencode_run import is_autoencoder_run

    if len(given.runs) == 1 and is_autoencoder_run(given.runs[0]):
        if given.output is not None:
            raise UsageError("an autoencoder has several pictures, in its run's folder; leave out --output")
        _print_pictures(given.runs[0])
        return 0
    from btnn_jax.plots import plot_runs

    print(plot_runs(given.runs, given.output))
    if len(given.runs) == 1 and _trades(given.runs[0]):
        from btnn_jax.trading_plots import plot_backtest
        from btnn_jax.training.folder import RunError

        try:
            print(plot_backtest(given.runs[0]))
        except RunError as error:  # the curves that were asked for are there
            print(f"no picture of its trades: {error}")
    return 0


def _print_pictures(folder: Any) -> None:
    from btnn_jax.autoencoder_plots import plot_autoencoder

    for path in plot_autoencoder(folder):
        print(path)


@contextlib.contextmanager
def _plain_interrupt() -> Iterator[None]:
    """Lets Ctrl-C end the process at once, without a traceback, wherever no run handles it.

    Python would only see the signal after the compiler or the device is done, which takes minutes at worst.
    """
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
