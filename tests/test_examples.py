"""The examples, each run as a user runs it."""

import os
import pathlib
import re
import socket
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "docs" / "examples"
ON_DEVICES = ("pmap", "shard_map", "mesh")


def start(name, *arguments):
    # Compiling is most of what they do here.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    return subprocess.Popen(
        [sys.executable, EXAMPLES / f"{name}.py", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def output(process):
    try:
        out, err = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out


def number(pattern, text):
    found = re.search(pattern + r" (-?\d+\.?\d*)", text)
    assert found, text
    return float(found[1])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_is_short(path):
    assert (
        sum(bool(line.strip()) for line in path.read_text().splitlines()) < 60
    )  # blank lines are the formatter's


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jit", "seeds", *ON_DEVICES])
def test_learns_to_catch(name):
    text = output(start(name))
    assert number(f"{name}: return", text) > 0.8
    if name in ON_DEVICES:
        assert {
            "pmap": "on 8 devices, parameters 0.0 apart",
            "shard_map": "on 8 devices; whole on each: {'params': True, 'actors': False}",
            "mesh": "24 of 36 moments divided",
        }[name] in text


@pytest.mark.slow
def test_an_environment_of_ones_own_is_learned():
    assert (
        number("environment: return", output(start("environment"))) > 5
    )  # of about 7; at random it is about 0


@pytest.mark.slow
def test_the_best_of_a_population_is_better_than_the_worst():
    worst, best = output(start("population")).splitlines()
    assert number("mean return", best) > number("mean return", worst) + 0.3
    assert number("learning_rate", best) != number("learning_rate", worst)


@pytest.mark.slow
def test_two_processes_learn_together():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = [start("processes", f"localhost:{port}", index, 2) for index in range(2)]
    first, second = (number("of 2 devices, return", output(process)) for process in both)
    assert first == second > 0.8


@pytest.mark.slow
def test_a_loop_of_ones_own_learns_with_memory():
    assert number("ppo_loop: return", output(start("ppo_loop"))) > 150


@pytest.mark.slow
def test_pixel_control_learns_what_actions_change():
    assert number("then", output(start("pixel_control"))) < 0.1


@pytest.mark.slow
def test_an_environment_of_gymnasium_is_learned():
    pytest.importorskip("gymnasium")
    assert number("return", output(start("gymnasium_env")).splitlines()[-1]) > 15
