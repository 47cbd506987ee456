"""The command line of `btnn-jax`: every command, option and word of help.

It imports neither JAX nor anything that does, so that help is there at once.
"""

from __future__ import annotations

import argparse
from typing import Any

from btnn_jax.cli import arguments as options
from btnn_jax.cli.arguments import with_default as _
from btnn_jax.training.config import AutoencoderConfig, UnrealConfig

__all__ = ["DEFAULT_ENV", "make_parser"]

DEFAULT_ENV = "Breakout-MinAtar"

EVALUATION: dict[str, Any] = {"episodes": 128, "max_steps": 10_000, "seed": 0, "best": False}
"""How the episodes of an agent are evaluated by default."""


def make_parser() -> options.Parser:
    """The parser of all commands; `given.command` is the name of the chosen one."""
    parser = options.Parser(
        prog="btnn-jax",
        description="Train agents with UNREAL's auxiliary tasks, and autoencoders, on the device.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_train_ae(commands)
    _add_sweep(commands)
    _add_data(commands)
    environments = commands.add_parser(
        "envs",
        help="list the environments that can be trained with",
        description="List the libraries of environments, or the environments of one, as train takes their names.",
        allow_abbrev=False,
    )
    environments.add_argument("suite", metavar="SUITE", nargs="?", help="a library, such as gymnasium")

    evaluate = commands.add_parser(
        "evaluate",
        help="play greedy, sampled and random episodes of a trained agent, or compare an autoencoder with PCA",
        description="Evaluate a run's newest checkpoint. An agent plays episodes with its most likely actions (greedy) "
        "and with samples (sampled), beside a random agent. A trading agent trades time that it has not learned on, "
        "beside simple strategies. An autoencoder's reconstructions are compared with those of PCA.",
        argument_default=argparse.SUPPRESS,  # what is not given must be known: each kind of run has its own
        allow_abbrev=False,
    )
    evaluate.add_argument("run", metavar="RUN", help="folder of the run")
    evaluate.add_argument(
        "--episodes",
        type=options.at_least_one,
        metavar="N",
        help=_("episodes of each agent", EVALUATION["episodes"]),
    )
    evaluate.add_argument(
        "--seed", type=options.seed, metavar="N", help=_("seed of the episodes", EVALUATION["seed"])
    )
    evaluate.add_argument(
        "--max-steps",
        type=options.at_least_one,
        metavar="N",
        help=_("where to cut an episode", EVALUATION["max_steps"]),
    )
    evaluate.add_argument(
        "--best",
        action="store_true",
        help="the checkpoint with the highest return in training rather than the newest",
    )
    evaluate.add_argument(
        "--part",
        choices=("train", "validation", "test"),
        help=_("of a trading run: the part of the time to trade, one that it has not learned on", "test"),
    )
    evaluate.add_argument(
        "--commission",
        type=options.fractions,
        metavar="X,X",
        help="of a trading run: commissions to trade at, in place of the one it learned with",
    )

    _add_export(commands)

    plot = commands.add_parser(
        "plot",
        help="draw the learning curve and the losses of one or several runs, or what an autoencoder does",
        description="Draw the learning curve, the losses and the learner's vital signs of agents as one picture, "
        "or an autoencoder's reconstructions, traversals and kernels as one PNG each.",
        allow_abbrev=False,
    )
    plot.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run; several are drawn together")
    plot.add_argument(
        "--output",
        metavar="FILE",
        help="picture of the learning curves of agents, .png, .pdf or what else matplotlib writes "
        "(default: curves.png in the first run's folder)",
    )
    return parser


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="write a trained agent into one file that acts without this library",
        description="Write a run's agent into one file, a program of StableHLO with its parameters, that JAX runs "
        "without this library; docs/deploy.md shows how.",
        allow_abbrev=False,
    )
    export.add_argument("run", metavar="RUN", help="folder of the run")
    export.add_argument("file", metavar="FILE", help="the file to write, such as agent.npz")
    export.add_argument(
        "--best",
        action="store_true",
        help="the checkpoint with the highest return in training rather than the newest",
    )
    export.add_argument(
        "--seed",
        type=options.seed,
        metavar="N",
        help="of several agents the one that was trained with this seed (default: the first)",
    )
    export.add_argument(
        "--platforms",
        type=options.words,
        default=None,
        metavar="X,X",
        help=_("what the file is to run on", "cpu,cuda,tpu"),
    )


def _add_train(commands: Any) -> None:
    train = _add_training(commands, "train", "an agent", "[ENV]", "ENV-ALGORITHM")
    train.add_argument(
        "env",
        metavar="ENV",
        nargs="?",
        action=options.StoreOnce,
        help=_(
            "environment: trading, one of gymnax, gymnasium:ID, ale:GAME, or module:Class for one of your own; "
            "the command envs lists them",
            DEFAULT_ENV,
        ),
    )
    train.add_argument(
        "--env", dest="env", metavar="ENV", action=options.StoreOnce, help="the same, as an option"
    )
    train.add_argument(
        "--evaluate-episodes",
        type=options.at_least_zero,
        metavar="N",
        help=_("episodes of the evaluation at the end; 0 for none", EVALUATION["episodes"]),
    )
    train.add_argument(
        "--encoder",
        metavar="RUN",
        help="start with the autoencoder of this run of train-ae as encoder; --frozen encoder/autoencoder keeps it",
    )
    _add_devices(train)
    options.add_fields(train, UnrealConfig)


def _add_devices(train: Any) -> None:
    devices = train.add_argument_group("devices and processes")
    devices.add_argument(
        "--devices",
        type=options.at_least_one,
        metavar="N",
        help=_("devices of each process that share the work; --shards has the same default", 1),
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
        help="a file of prices; eurusd, googl or stocks, which come with packages; or an environment",
    )
    options.add_fields(train, AutoencoderConfig)


def _add_sweep(commands: Any) -> None:
    sweep = commands.add_parser(
        "sweep",
        help="search for the hyperparameters that bring the highest return",
        usage="btnn-jax sweep [ENV] --vary NAME=VALUES ... --folder FOLDER [OPTION ...]",
        description="Train many agents that differ in what --vary names, in one program where that is possible, and "
        "show which did best. The same command goes on where it was stopped.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    sweep.add_argument(
        "env", metavar="ENV", nargs="?", default=DEFAULT_ENV, help=_("environment, as for train", DEFAULT_ENV)
    )
    sweep.add_argument(
        "--vary",
        metavar="NAME=VALUES",
        action="append",
        type=options.variation,
        required=True,
        help="an option of train and where to search: LOW:HIGH, LOW:HIGH:log, or choices A/B/C, such as "
        "learning_rate=1e-4:1e-2:log or core=lstm/gru; may be repeated",
    )
    sweep.add_argument("--folder", metavar="FOLDER", required=True, help="where to keep the search")
    for name, default, text in (
        ("trials", 32, "trials in all"),
        ("population", 8, "trials that begin together; those of the same shapes are one program"),
        ("seeds", 1, "agents of each trial, from --seed on"),
    ):
        sweep.add_argument(
            f"--{name}", type=options.at_least_one, default=default, metavar="N", help=_(text, default)
        )
    sweep.add_argument(
        "--seed", type=options.seed, default=0, metavar="N", help=_("of agents and sampler", 0)
    )
    sweep.add_argument(
        "--sampler",
        choices=("tpe", "random", "grid"),
        default="tpe",
        help=_("tpe learns from the trials before; grid needs choices", "tpe"),
    )
    sweep.add_argument(
        "--halvings",
        type=options.at_least_zero,
        default=0,
        metavar="N",
        help=_("how often the worse half of a program's trials is given up on the way", 0),
    )
    _add_env_param(sweep)
    options.add_fields(sweep, UnrealConfig)


def _add_data(commands: Any) -> None:
    data = commands.add_parser(
        "data",
        help="show how a file of prices is understood",
        description="Show how files of prices are understood: layout, columns, span, bar length, gaps and duplicates. "
        "Several files are several assets, joined at their times.",
        allow_abbrev=False,
    )
    data.add_argument("files", metavar="FILE", nargs="+", help="CSV, also gzipped, or Parquet")
    _add_data_option(data)
    data.add_argument("--plot", metavar="PICTURE", help="draw the prices into this file, .png or .pdf")


def _add_env_param(parser: Any) -> None:
    parser.add_argument(
        "--env-param",
        metavar="NAME=VALUE",
        action="append",
        type=options.assignment,
        dest="env_params",
        help="parameter of the environment; may be repeated",
    )


def _add_data_option(parser: Any) -> None:
    parser.add_argument(
        "--data-option",
        metavar="NAME=VALUE",
        action="append",
        type=options.assignment,
        dest="data_options",
        help="how to read prices, such as day_first=true, decimal=, or missing=drop; may be repeated",
    )


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
    _add_env_param(train)
    _add_data_option(train)
    train.add_argument(
        "--seed", type=options.seed, metavar="N", help=_("the same seed gives the same run", 0)
    )
    files = train.add_argument_group("run")
    where = files.add_mutually_exclusive_group()
    where.add_argument(
        "--run", metavar="FOLDER", help=f"where to keep it (default: runs/{folder}-seedN-DATE-TIME)"
    )
    where.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with this run from its newest checkpoint, up to the length it was started with",
    )
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
