"""`btnn-jax`: train an agent, evaluate it, plot how it learned.

Whatever takes long to import is imported inside of the command that needs it, so that help is there at once.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import signal
import sys
import threading
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from btnn_jax.training.config import ALGORITHMS, SCHEDULES, UnrealConfig

DEFAULT_ENV = "Breakout-MinAtar"

HELP: dict[str, dict[str, str]] = {
    "experience": {
        "total_steps": "environment steps of the whole run; the schedules end there",
        "num_envs": "environments stepped side by side",
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
        "num_filters": "channels of each convolution; none chooses by the observation's size",
        "hidden": "sizes of the dense layers after the convolutions",
        "lstm": "sizes of the recurrent layers; none for an agent without memory",
        "noisy": "NoisyNet heads, which explore by noise in their weights",
    },
}
"""What every field of `UnrealConfig` is called for on the command line, by topic."""

_OPTIONS = {"total_steps": "--steps"}
_CHOICES = {"algorithm": ALGORITHMS, "learning_rate_schedule": SCHEDULES}


class Parser(argparse.ArgumentParser):
    """Answers a mistake with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Prints the line and exits with 2."""
        print(f"btnn-jax: error: {message}", file=sys.stderr)
        raise SystemExit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `btnn-jax` with `arguments` (None takes the process's) and returns its exit code.

    It is 0 for success, 2 for a user's mistake, 128 plus the signal's number where a signal stopped the run.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    from btnn_jax.training.folder import RunError

    with _plain_interrupt():
        try:
            return options.command(options)
        except (RunError, UsageError, ModuleNotFoundError) as error:
            parser.error(str(error))


class UsageError(Exception):
    """The options make no sense together; the message is one line."""


def make_parser() -> Parser:
    """The parser of all commands; `options.command(options)` runs the one that was chosen."""
    parser = Parser(
        prog="btnn-jax",
        description="Train agents with UNREAL's auxiliary tasks on the device.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_train(commands)

    evaluate = commands.add_parser(
        "evaluate",
        help="play episodes with a trained agent and with a random one",
        description="Play episodes with the agent of a run's newest checkpoint, and with a random one.",
        allow_abbrev=False,
    )
    evaluate.add_argument("run", metavar="RUN", help="folder of the run")
    evaluate.add_argument(
        "--episodes", type=_at_least_one, default=128, metavar="N", help=_("of each agent", 128)
    )
    evaluate.add_argument("--seed", type=_seed, default=0, metavar="N", help=_("of the episodes", 0))
    evaluate.add_argument(
        "--max-steps",
        type=_at_least_one,
        default=10_000,
        metavar="N",
        help=_("where to cut an episode", 10_000),
    )
    evaluate.set_defaults(command=_evaluate)

    plot = commands.add_parser(
        "plot",
        help="draw the learning curve and the losses of one or several runs",
        description="Draw the learning curve, the losses and the learner's vital signs as one PNG.",
        allow_abbrev=False,
    )
    plot.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run; several are drawn together")
    plot.add_argument("--output", metavar="FILE.png", help="default: curves.png in the (first) run's folder")
    plot.set_defaults(command=_plot)
    return parser


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train an agent",
        usage="btnn-jax train [ENV] [OPTION ...]",
        description="Train an agent. Ctrl-C ends the run with a checkpoint that --resume goes on from.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32),
        argument_default=argparse.SUPPRESS,  # what is not given must be known, for --resume
        allow_abbrev=False,
    )
    train.add_argument(
        "env", metavar="ENV", nargs="?", help=_("environment: a probe, or one of gymnax", DEFAULT_ENV)
    )
    train.add_argument(
        "--env-param",
        metavar="NAME=VALUE",
        action="append",
        type=_assignment,
        dest="env_params",
        help="parameter of the environment; may be repeated",
    )
    train.add_argument("--seed", type=_seed, metavar="N", help=_("the same seed gives the same run", 0))
    files = train.add_argument_group("run")
    folder = files.add_mutually_exclusive_group()
    folder.add_argument(
        "--run", metavar="FOLDER", help="where to keep it (default: runs/ENV-ALGORITHM-seedN-DATE-TIME)"
    )
    folder.add_argument("--resume", metavar="RUN", help="go on with this run from its newest checkpoint")
    files.add_argument(
        "--checkpoint-minutes",
        type=_positive,
        default=5.0,
        metavar="X",
        help=_("time between checkpoints; there is always one at the end", 5),
    )
    files.add_argument(
        "--keep", type=_at_least_one, default=2, metavar="N", help=_("newest checkpoints to keep", 2)
    )
    files.add_argument(
        "--evaluate-episodes",
        type=_at_least_zero,
        default=128,
        metavar="N",
        help=_("episodes of the evaluation at the end; 0 for none", 128),
    )
    types = typing.get_type_hints(UnrealConfig)
    defaults = {field.name: field.default for field in dataclasses.fields(UnrealConfig)}
    for title, fields in HELP.items():
        group = train.add_argument_group(title)
        for name, text in fields.items():
            _add_field(group, name, types[name], _(text, defaults[name]))
    train.set_defaults(command=_train)


def _add_field(group: Any, name: str, kind: Any, text: str) -> None:
    """Adds the option of one field of `UnrealConfig`, typed as the field is."""
    option = _OPTIONS.get(name, "--" + name.replace("_", "-"))
    optional = type(None) in typing.get_args(kind)
    if optional:
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if kind is bool:
        group.add_argument(option, dest=name, action=argparse.BooleanOptionalAction, help=text)
        return
    if name in _CHOICES:
        group.add_argument(option, dest=name, choices=_CHOICES[name], help=text)
        return
    sizes = typing.get_origin(kind) is tuple
    parsers: dict[Any, Callable[[str], Any]] = {int: _whole, float: _number, str: str}
    parse = _sizes if sizes else parsers[kind]
    none: Any = None if optional else ()
    accepts_none = optional or (sizes and Ellipsis in typing.get_args(kind))
    metavar = "N,N" if sizes else {int: "N", float: "X", str: "NAME"}[kind]
    group.add_argument(
        option, dest=name, type=_or_none(parse, none) if accepts_none else parse, metavar=metavar, help=text
    )


def _train(options: argparse.Namespace) -> int:
    given = {
        name: value for name, value in vars(options).items() if name in UnrealConfig.__dataclass_fields__
    }
    loop = {"checkpoint_minutes": options.checkpoint_minutes, "keep": options.keep}
    if "resume" in options:
        chosen = [_OPTIONS.get(name, "--" + name.replace("_", "-")) for name in given]
        chosen += [word for name, word in _BEFORE_RUN.items() if name in options]
        if chosen:
            raise UsageError(f"--resume goes on with the run as it is; leave out {', '.join(chosen)}")
        from btnn_jax.training.run import resume

        result = resume(options.resume, **loop)
    else:
        from btnn_jax.training.run import train

        env = getattr(options, "env", DEFAULT_ENV)
        env_params = dict(getattr(options, "env_params", []))
        if "pc_weight" not in given and not _has_image(env, env_params):
            print(f"{env} shows no image: no pixel control")
            given["pc_weight"] = 0.0
        try:
            config = UnrealConfig(**given)
        except ValueError as error:
            raise UsageError(str(error)) from error
        result = train(
            env,
            config,
            seed=getattr(options, "seed", 0),
            folder=getattr(options, "run", None),
            env_params=env_params,
            **loop,
        )
    return _conclude(result, options.evaluate_episodes)


_BEFORE_RUN = {"env": "ENV", "env_params": "--env-param", "seed": "--seed"}


def _has_image(env: str, env_params: dict[str, Any]) -> bool:
    import jax

    from btnn_jax.training.run import make_env

    return any(len(stream.shape) > 1 for stream in jax.tree.leaves(make_env(env, env_params).observation))


def _conclude(result: Any, episodes: int) -> int:
    """Says how a run ended, evaluates it if it came to its end, and returns the exit code."""
    from btnn_jax.training.progress import clock, short

    config = result.run.config
    steps = f"{short(result.steps)} of {short(config.num_updates * config.steps_per_update)} steps"
    print(f"trained {steps} in {clock(result.seconds)}; all of it is in {result.folder}")
    if skipped := int(result.state.skipped):
        print(f"{skipped} gradient steps were not finite and left out: try a smaller --learning-rate")
    if result.stopped is not None:
        print(f"go on:    btnn-jax train --resume {result.folder}")
        print(f"evaluate: btnn-jax evaluate {result.folder}")
        print(f"plot:     btnn-jax plot {result.folder}")
        return 128 + int(result.stopped)
    if episodes:
        _print_scores(result.folder, episodes=episodes)
    print(f"plot: btnn-jax plot {result.folder}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    _print_scores(options.run, episodes=options.episodes, seed=options.seed, max_steps=options.max_steps)
    return 0


def _print_scores(folder: Any, *, episodes: int, **arguments: int) -> None:
    from btnn_jax.training.scores import score_run, scores_table

    print(f"evaluating {episodes} episodes of each agent ...", flush=True)
    print(scores_table(score_run(folder, episodes=episodes, **arguments)))


def _plot(options: argparse.Namespace) -> int:
    from btnn_jax.plots import plot_runs

    print(plot_runs(options.runs, options.output))
    return 0


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


def _(text: str, default: Any) -> str:
    """A help text with the default in the words that the option takes."""
    if default is None or default == ():
        default = "none"
    elif isinstance(default, bool):
        default = "yes" if default else "no"
    elif isinstance(default, tuple):
        default = ",".join(map(str, default))
    return f"{text} (default: {default})"


def _or_none(parse: Callable[[str], Any], none: Any) -> Callable[[str], Any]:
    return lambda text: none if text.lower() == "none" else parse(text)


def _whole(text: str) -> int:
    """A whole number, also written 2_000_000, 2e6, 2M or 500k."""
    digits, scale = (text[:-1], {"k": 1e3, "M": 1e6}[text[-1]]) if text[-1:] in ("k", "M") else (text, 1)
    try:
        value = float(digits) * scale
        if value.is_integer():
            return int(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(_whole(part) for part in text.split(","))


def _at_least_one(text: str) -> int:
    return _bounded(_whole(text), 1)


def _at_least_zero(text: str) -> int:
    return _bounded(_whole(text), 0)


def _seed(text: str) -> int:
    value = _whole(text)
    if not 0 <= value < 2**32:  # what a key is made of
        raise argparse.ArgumentTypeError(f"must be between 0 and {2**32 - 1}, got {text}")
    return value


def _bounded(value: int, least: int) -> int:
    if value < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
    return value


def _positive(text: str) -> float:
    value = _number(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value.capitalize() if value in ("true", "false") else value)
    except (ValueError, SyntaxError):
        return name, value
