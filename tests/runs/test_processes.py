"""Real processes: several that train together, one that goes on for another, and one that is killed all the time."""

import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import chex
import pytest

from btnn_jax.runs.agent import make_agent
from btnn_jax.runs.checkpoint import Checkpoints
from btnn_jax.runs.run import read_run

OPTIONS = [
    *("probe-memory", "--num-envs", "4", "--rollout-length", "8", "--hidden", "8", "--lstm", "8"),
    *("--pc-weight", "0", "--replay-length", "32", "--replay-batch", "2", "--rp-batch", "4"),
    *("--minibatches", "2"),
]


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "btnn_jax", "train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


def start_two(*arguments):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = ("--coordinator", f"localhost:{port}", "--num-processes", 2)
    return [start(*arguments, *together, "--process-id", index) for index in range(2)]


def end(process, timeout=400):
    try:
        output = process.communicate(timeout=timeout)[0]
    finally:
        process.kill()
    return process.returncode, output


def wait_for(path, minimum=1, seconds=300):
    """Waits for that many records of metrics."""
    until = time.monotonic() + seconds
    while not path.exists() or len(path.read_text().splitlines()) < minimum:
        assert time.monotonic() < until, f"nothing in {path}"
        time.sleep(0.1)


def newest(folder):
    with Checkpoints(folder / "checkpoints", create=False) as checkpoints:
        return checkpoints.restore(make_agent(read_run(folder)).state)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 1), (1, 2)])
def test_ten_updates_and_ten_in_another_process_are_twenty(tmp_path, raw, before, after):
    """With PPO's minibatches, replay, noise and memory; bit by bit on the same devices."""
    straight, halves = tmp_path / "straight", tmp_path / "halves"
    options = (*OPTIONS, "--shards", 2, "--steps", 64 * 20, "--checkpoint-minutes", 1e-9, "--keep", 20)
    code, output = end(start(*options, "--devices", before, "--run", straight))
    assert code == 0, output
    shutil.copytree(straight, halves)
    code, output = end(start("--resume", halves, "--checkpoint", 10, "--devices", after))
    assert code == 0, output
    assert "resumed at 640 steps" in output
    expected, found = newest(straight), newest(halves)
    assert found.update == 20
    if before == after:
        assert raw(found) == raw(expected)
    chex.assert_trees_all_close(found.params, expected.params, atol=1e-5)
    chex.assert_trees_all_close(found.replay, expected.replay, atol=1e-5)


@pytest.mark.slow
def test_two_processes_learn_what_one_with_two_devices_learns(tmp_path):
    options = (*OPTIONS, "--steps", 64 * 20)
    alone = start(*options, "--devices", 2, "--run", tmp_path / "one")
    code, output = end(alone)
    assert code == 0, output
    for process in start_two(*options, "--run", tmp_path / "two"):
        code, output = end(process)
        assert code == 0, output
        assert ("btnn-jax evaluate" in output) == ("--process-id 0" in " ".join(process.args)), output
    one, two = newest(tmp_path / "one"), newest(tmp_path / "two")
    assert one.update == two.update == 20
    chex.assert_trees_all_close(one.params, two.params, atol=1e-5)
    chex.assert_trees_all_close(one.replay, two.replay, atol=1e-4)


@pytest.mark.slow
def test_a_lost_process_ends_the_other_and_both_go_on(tmp_path):
    folder = tmp_path / "run"
    first, second = start_two(*OPTIONS, "--steps", 64 * 2000, "--run", folder, "--checkpoint-minutes", 0.02)
    wait_for(folder / "metrics.jsonl", 3)
    second.kill()
    killed = time.monotonic()
    end(second)
    code, output = end(first)
    assert time.monotonic() - killed < 60
    assert code == 1, output
    assert "has lost another process of this run" in output
    assert "--resume" in output

    pair = start_two("--resume", folder)
    before = len((folder / "metrics.jsonl").read_text().splitlines())
    time.sleep(5)
    wait_for(folder / "metrics.jsonl", before + 1)
    pair[0].send_signal(signal.SIGTERM)  # stops both
    for process in pair:
        code, output = end(process)
        assert code == 128 + signal.SIGTERM, output
        told = f"--resume {folder} --coordinator localhost:"
        assert (told in output) == (process is pair[0]), output
    assert newest(folder).update > 0


@pytest.mark.slow
def test_a_run_survives_being_killed_at_any_moment(tmp_path):
    """Every other kill falls anywhere from the process's start on, the others while it trains."""
    folder, metrics = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    process = start(*OPTIONS, "--steps", 32 * 100_000, "--run", folder)
    wait_for(folder / "config.json")
    moments = random.Random(0)
    for kill in range(int(os.environ.get("BTNN_JAX_KILLS", "6"))):
        before = len(_records(folder))
        if kill % 2:
            wait_for(metrics, before + 1)
        time.sleep(moments.uniform(0, 2 if kill % 2 else 8))
        process.kill()
        output = process.communicate()[0]
        assert "rror" not in output, output
        if before and kill % 2:
            assert "resumed at" in output, output
        process = start("--resume", folder, "--checkpoint-minutes", 0.005)
    wait_for(metrics, 1 + len(_records(folder)))
    process.send_signal(signal.SIGTERM)
    code, output = end(process)
    assert code == 128 + signal.SIGTERM, output
    assert "resumed at" in output
    recorded = _records(folder)
    assert recorded == sorted(set(recorded))  # no step is counted twice
    assert recorded[-1] == 32 * int(newest(folder).update)


def _records(folder):
    path = pathlib.Path(folder) / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line)["steps"] for line in path.read_text().split("\n")[:-1]]
