"""Ctrl-C in every phase of a real process."""

import os
import signal
import subprocess
import sys

import pytest

START = "import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu"}


def start(program, *words):
    command = [sys.executable, "-u", "-c", START + program, *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )


def wait_for(process, words):
    while words not in (line := process.stdout.readline()):
        assert line, process.stderr.read()


OUTSIDE = """
from btnn_jax.runs.interrupt import say_on_interrupt, watch_interrupts
with watch_interrupts():
    say_on_interrupt("all is kept")
    print("ready")
    time.sleep(60)
"""
INSIDE = """
from btnn_jax.runs.interrupt import one_interrupt_is_handled, say_on_interrupt, watch_interrupts
with watch_interrupts(), one_interrupt_is_handled():
    say_on_interrupt("all is kept")
    before = signal.signal(signal.SIGINT, lambda *_: (signal.signal(signal.SIGINT, before), print("handled")))
    print("ready")
    while True:
        time.sleep(0.05)
"""


def test_the_process_ends_at_once_with_one_line():
    process = start(OUTSIDE)
    wait_for(process, "ready")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors.strip()) == (130, "btnn-jax: stopped: all is kept")


def test_the_first_interrupt_of_a_loop_is_the_loops_and_the_second_ends_it():
    process = start(INSIDE)
    wait_for(process, "ready")
    process.send_signal(signal.SIGINT)
    wait_for(process, "handled")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors.strip()) == (130, "btnn-jax: stopped: all is kept")


def test_whoever_handles_interrupts_keeps_them():
    process = start(
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(7))\n"
        + OUTSIDE.replace("sum(range(10**12))", "time.sleep(60)")
    )
    wait_for(process, "ready")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 7


TRAIN = """
from btnn_jax.cli.commands import main
sys.exit(main([
    "train", "probe-memory", "--run", sys.argv[1], "--steps", "64", "--num-envs", "2", "--rollout-length", "4",
    "--minibatches", "1", "--epochs", "1", "--hidden", "4", "--pc-weight", "0", "--vr-weight", "0", "--rp-weight", "0",
]))
"""


@pytest.mark.parametrize(
    ("phase", "kept"),
    [
        ("compiling", "every checkpoint so far is kept; go on: btnn-jax train --resume {}"),
        ("evaluating", "the trained agent is kept; evaluate: btnn-jax evaluate {}"),
    ],
)
def test_a_run_says_what_is_kept_and_how_to_go_on(tmp_path, phase, kept):
    folder = tmp_path / "run"
    process = start(TRAIN, folder)
    wait_for(process, phase)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.strip()) == (130, f"btnn-jax: stopped: {kept.format(folder)}")
