"""The command line's options: every field of a configuration has one, with its type, its default and help."""

import dataclasses
import inspect
import re
import subprocess
import sys

import pytest

from btnn_jax.cli import arguments as options
from btnn_jax.cli.parser import EVALUATION, make_parser
from btnn_jax.runs.loop import LoopOptions, run_loop
from btnn_jax.runs.scores import score_run
from btnn_jax.training.config import AutoencoderConfig, UnrealConfig

COMMANDS = {"train": UnrealConfig, "train-ae": AutoencoderConfig}


def parse(*arguments, command="train"):
    return make_parser().parse_args([command, *arguments])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_field_of_the_configuration_has_an_option_and_help(command):
    shown = make_parser()._subparsers._group_actions[0].choices[command].format_help()
    for field in dataclasses.fields(COMMANDS[command]):
        assert re.search(rf"{options.option_of(field.name)}[ ,]", shown)
        assert field.metadata["text"]


def spelled(value):
    if value is None or value == ():
        return "none"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize(
    ("command", "field"),
    [(command, field) for command, config in COMMANDS.items() for field in dataclasses.fields(config)],
    ids=lambda value: getattr(value, "name", value),
)
def test_an_option_takes_its_own_default(command, field):
    option = options.option_of(field.name)
    words = [option, spelled(field.default)]
    if isinstance(field.default, bool):
        words = [option if field.default else option.replace("--", "--no-", 1)]
    value = getattr(parse(*words, command=command), field.name)
    assert value == field.default
    assert type(value) is type(field.default)


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--lstm 128,64", "lstm", (128, 64)),
        ("--lstm none", "lstm", ()),
        ("--lstm None", "lstm", ()),
        ("--core gtrxl", "core", "gtrxl"),
        ("--core lru+gru", "core", "lru+gru"),
        ("--core-size 64,32", "core_size", (64, 32)),
        ("--core-size none", "core_size", None),
        ("--core-memory 8", "core_memory", 8),
        ("--replay-state zero", "replay_state", "zero"),
        ("--num-filters 8,16", "num_filters", (8, 16)),
        ("--num-filters none", "num_filters", None),
        ("--pc-cell 4,2", "pc_cell", (4, 2)),
        ("--entropy-beta-final 0.001", "entropy_beta_final", 0.001),
        ("--no-noisy", "noisy", False),
        ("--steps 2e6", "total_steps", 2_000_000),
        ("--steps 2M", "total_steps", 2_000_000),
        ("--steps 1_500k", "total_steps", 1_500_000),
        ("--seed 4294967295", "seed", 2**32 - 1),
        ("--env-param length=3", "env_params", [("length", 3)]),
        ("--env-param flag=true", "env_params", [("flag", True)]),
        ("--env-param name=a=b", "env_params", [("name", "a=b")]),
    ],
)
def test_values(words, name, value):
    assert getattr(parse(*words.split()), name) == value


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--layers 32:3x1:2x1,4:5x5:1x2", "layer_config", ((32, (3, 1), (2, 1)), (4, (5, 5), (1, 2)))),
        ("--columns High,Low", "columns", ("High", "Low")),
        ("--data prices.csv", "data", "prices.csv"),
        ("--steps 5k", "steps", 5000),
    ],
)
def test_values_of_an_autoencoder(words, name, value):
    assert getattr(parse(*words.split(), command="train-ae"), name) == value


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_not_given_is_not_there(command):
    config = COMMANDS[command]
    assert not vars(parse(command=command)).keys() & {field.name for field in dataclasses.fields(config)}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_goes_as_it_does_from_python(command):
    defaults = {name: x.default for name, x in inspect.signature(run_loop).parameters.items()}
    given = vars(parse(command=command))
    names = LoopOptions.__annotations__.keys() & given
    assert {name: given[name] for name in names} == {name: defaults[name] for name in names}
    assert names >= {"checkpoint_minutes", "keep", "max_skipped"}


def test_an_agent_is_evaluated_as_it_is_from_python():
    defaults = {name: x.default for name, x in inspect.signature(score_run).parameters.items()}
    assert {name: defaults[name] for name in EVALUATION} == EVALUATION


def test_help_shows_every_default(capsys):
    with pytest.raises(SystemExit) as caught:
        make_parser().parse_args(["train", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    topics = [field.metadata["topic"] for field in dataclasses.fields(UnrealConfig)]
    assert len([title for title in topics if title]) >= 6
    for title in filter(None, topics):
        assert f"{title}:" in text
    for option, default in [
        ("--steps N", str(UnrealConfig().total_steps)),
        ("--lstm N,N", "128"),
        ("--core NAME", "lstm"),
        ("--noisy, --no-noisy", "yes"),
        ("--pc-stream NAME", "none"),
    ]:
        start = text.rindex(option)
        assert re.search(r"\(default: ([^)]*)\)", text[start:])[1] == default
    assert "Breakout-MinAtar" in text


def test_help_and_mistakes_do_not_wait_for_jax():
    program = (
        "import sys; from btnn_jax import cli; cli.make_parser().format_help(); print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
