"""The loop on the host: files, resumption, signals. One tiny agent is compiled once and shared."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
from urllib.error import URLError

import chex
import jax
import numpy as np
import pytest

from btnn_jax.runs import agent as runs
from btnn_jax.runs import loop
from btnn_jax.runs.agent import resume, train
from btnn_jax.runs.checkpoint import Checkpoints
from btnn_jax.runs.folder import RunError
from btnn_jax.runs.metrics import read_metrics
from btnn_jax.runs.progress import Silent
from btnn_jax.runs.run import Run, create_run, read_run
from btnn_jax.runs.scores import read_scores, score_run, scores_table
from btnn_jax.runs.sources import make_env
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.unreal import make_unreal

UPDATES = 8
TINY = UnrealConfig(
    algorithm="a2c",
    num_envs=2,
    rollout_length=4,
    total_steps=8 * UPDATES,
    replay_length=8,
    replay_batch=2,
    hidden=(4,),
    lstm=(4,),
    pc_weight=0.0,
    rp_weight=0.0,
)


@pytest.fixture(scope="module", autouse=True)
def compile_once():
    """All runs here have one configuration: hands the first one's agent and executable on to the others."""
    patch = pytest.MonkeyPatch()
    compiled, make_agent, compile_step = {}, runs.make_agent, loop._compile

    def cached_agent(run, pretrained=None, *, devices=1):
        key = repr(dataclasses.replace(run, seed=0)) + str(devices)
        if key not in compiled:
            compiled[key] = make_agent(run, pretrained, devices=devices)
        return compiled[key]

    def cached_compile(program, reporter):
        if id(program.step) not in compiled:
            compiled[id(program.step)] = compile_step(program, reporter)
        return compiled[id(program.step)]

    patch.setattr(runs, "make_agent", cached_agent)
    patch.setattr(loop, "_compile", cached_compile)
    yield
    patch.undo()


class Recording(Silent):
    """Remembers what it is told, and sends a signal after some updates."""

    def __init__(self, signals=None):
        self.notes, self.progress, self._signals = [], [], signals or {}

    def note(self, text):
        self.notes.append(text)

    def update(self, progress):
        self.progress.append(progress)
        for signum in self._signals.get(len(self.progress), ()):
            os.kill(os.getpid(), signum)


def start(folder, *, seed=0, reporter=None, **arguments):
    return train(
        "probe-memory",
        TINY,
        seed=seed,
        folder=folder,
        reporter=reporter or Silent(),
        log_seconds=0,
        **arguments,
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory, compile_once):
    """A run from start to end."""
    reporter = Recording()
    return start(tmp_path_factory.mktemp("runs") / "straight", reporter=reporter), reporter


def curve(folder):
    """All that is recorded but the time it took, as text, so that NaN equals NaN."""
    return {name: str(x.tolist()) for name, x in read_metrics(folder).items() if "second" not in name}


def test_a_run_leaves_all_about_it_in_its_folder(straight, raw):
    result, reporter = straight
    assert (result.steps, result.stopped, int(result.state.update)) == (TINY.total_steps, None, UPDATES)
    assert read_run(result.folder) == Run("probe-memory", TINY, 0)
    stored = json.loads((result.folder / "config.json").read_text())
    assert stored["versions"]["jax"] == jax.__version__
    assert "cpu" in stored["device"]
    assert read_metrics(result.folder)["steps"].tolist() == [8 * (i + 1) for i in range(UPDATES)]
    assert list((result.folder / "tensorboard").iterdir())
    assert [p.steps for p in reporter.progress] == [8 * (i + 1) for i in range(UPDATES)]
    assert reporter.progress[-1].left == 0
    with Checkpoints(result.folder / "checkpoints", create=False) as checkpoints:
        assert checkpoints.latest() == UPDATES
        assert raw(checkpoints.restore(result.state)) == raw(result.state)


def test_the_seed_decides_the_run(straight, tmp_path, raw):
    result, _ = straight
    again, other = start(tmp_path / "again"), start(tmp_path / "other", seed=1)
    assert raw(again.state) == raw(result.state)
    assert raw(other.state)[".key"] != raw(result.state)[".key"]
    assert curve(tmp_path / "again") == curve(result.folder)
    assert curve(tmp_path / "other") != curve(result.folder)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(straight, tmp_path, signum, raw):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    reporter = Recording({3: [signum]})
    stopped = start(tmp_path / "run", reporter=reporter)
    assert stopped.stopped == signum
    assert 3 <= stopped.steps // 8 < UPDATES
    assert stopped.seconds == pytest.approx(read_metrics(stopped.folder)["seconds"][-1])
    assert any("stopping" in note for note in reporter.notes)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers

    finished = resume(tmp_path / "run", reporter=Silent(), log_seconds=0)
    result, _ = straight
    assert (finished.steps, finished.stopped) == (TINY.total_steps, None)
    assert raw(finished.state) == raw(result.state)
    assert curve(tmp_path / "run") == curve(result.folder)
    assert finished.seconds > stopped.seconds


def test_a_second_signal_has_its_usual_effect(tmp_path):
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path / "run", reporter=Recording({2: [signal.SIGINT, signal.SIGINT]}))
    finally:
        signal.signal(signal.SIGINT, previous)
    # Aborted before the checkpoint at the end, so the run goes on from the one at its start.
    with Checkpoints(tmp_path / "run" / "checkpoints", create=False) as checkpoints:
        assert checkpoints.latest() == 0


def test_a_run_that_was_killed_goes_on_from_its_newest_checkpoint(straight, tmp_path, raw):
    class KilledError(Exception):
        pass

    class Killer(Silent):
        def update(self, progress):
            if progress.steps == 40:
                raise KilledError

    with pytest.raises(KilledError):
        start(tmp_path / "run", reporter=Killer(), checkpoint_minutes=1e-9)
    finished = resume(tmp_path / "run", reporter=Silent(), log_seconds=0)
    assert raw(finished.state) == raw(straight[0].state)
    assert curve(tmp_path / "run") == curve(straight[0].folder)


def test_what_a_run_started_from_is_not_replaced_by_chance(tmp_path):
    """A run with pretrained parameters that is killed before its first checkpoint."""
    create_run(tmp_path / "run", Run("probe-memory", TINY, pretrained=True))
    with pytest.raises(RunError, match="no checkpoint yet, and only there were the parameters"):
        resume(tmp_path / "run", reporter=Silent())


def test_keeps_the_newest_checkpoints(tmp_path):
    start(tmp_path / "run", checkpoint_minutes=1e-9, keep=3)
    found = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert found >= {str(UPDATES - i) for i in range(3)}
    with Checkpoints(tmp_path / "run" / "checkpoints", create=False) as checkpoints:
        best = str(checkpoints.best())
    assert found & {str(i) for i in range(UPDATES - 2)} <= {best}


def test_records_means_between_two_logs(straight, tmp_path):
    train("probe-memory", TINY, folder=tmp_path / "run", reporter=Silent(), log_seconds=1e9)
    mean, each = read_metrics(tmp_path / "run"), read_metrics(straight[0].folder)
    assert mean["steps"].tolist() == [TINY.total_steps]
    np.testing.assert_allclose(mean["entropy"], np.mean(each["entropy"]), rtol=1e-5)
    np.testing.assert_allclose(mean["episode_return"], np.nanmean(each["episode_return"]), rtol=1e-5)
    np.testing.assert_allclose(mean["learning_rate"], each["learning_rate"][-1])


def test_resuming_a_finished_run_changes_nothing(straight, raw):
    result, _ = straight

    def files():
        return {path: path.stat().st_mtime_ns for path in result.folder.rglob("*") if path.is_file()}

    before = files()
    again = resume(result.folder, reporter=Silent())
    assert raw(again.state) == raw(result.state)
    assert (again.steps, again.stopped) == (result.steps, None)
    assert again.seconds == read_metrics(result.folder)["seconds"][-1]
    assert files() == before


def test_trains_outside_of_the_main_thread(straight, tmp_path, raw):
    """A notebook's or a server's thread gets no signals."""
    results = []
    thread = threading.Thread(target=lambda: results.append(start(tmp_path / "run")))
    thread.start()
    thread.join()
    assert raw(results[0].state) == raw(straight[0].state)


def test_a_folder_in_use_is_left_alone(straight, tmp_path):
    result, _ = straight
    with pytest.raises(RunError, match="already holds a run"):
        start(result.folder)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="already holds other files"):
        start(tmp_path)
    with pytest.raises(RunError, match="is a file"):
        start(tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path, monkeypatch):
    run = Run("probe-memory", TINY)
    with pytest.raises(RunError, match=r"cannot use the folder a+: File name too long$"):
        create_run("a" * 300, run)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    for name in ("iterdir", "mkdir", "write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(pathlib.Path, name, refuse)
            with pytest.raises(RunError, match=r"Permission denied$"):
                create_run(tmp_path, run)


def test_a_file_of_prices_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "make_agent", lambda *_, **__: None)
    monkeypatch.setattr(runs, "_run_program", lambda folder, *_, **__: folder)
    monkeypatch.chdir(tmp_path)
    for name in ("prices.csv", "sine"):
        (tmp_path / name).touch()
    whole = str(tmp_path.resolve() / "prices.csv")
    for data, kept in [
        ("prices.csv", whole),
        (pathlib.Path("prices.csv"), whole),
        ("sine", "sine"),
        ("a", "a"),
    ]:
        run = read_run(train("trading", TINY, env_params={"data": data}, folder=tmp_path / f"run-{data!r}"))
        assert run.env_params == {"data": kept}
    assert Run("trading", TINY, env_params={"data": whole}).title == "trading (data=prices.csv), UNREAL (A2C)"


def test_an_environment_without_its_data_is_one_line(monkeypatch):
    def offline(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("gymnax.make", offline)
    with pytest.raises(RunError, match=r"^MNISTBandit-bsuite cannot be made: .*no route to host"):
        make_env("MNISTBandit-bsuite", {})


def test_what_cannot_run_leaves_no_folder(tmp_path):
    for env, params, message in [
        ("CartPole", {}, "unknown environment"),
        ("probe-memory", {"lenght": 3}, "did you mean 'length'"),
        ("probe-memory", {"length": 0}, "length must be at least"),
        ("probe-memory", {"length": "three"}, "makes no sense of its parameters"),
    ]:
        with pytest.raises(RunError, match=message):
            train(env, TINY, env_params=params, folder=tmp_path / "run", reporter=Silent())
    pixel_control = dataclasses.replace(TINY, pc_weight=1.0)
    with pytest.raises(RunError, match="no agent fits probe-memory"):
        train("probe-memory", pixel_control, folder=tmp_path / "run", reporter=Silent())
    unknown_to_json = {"length": np.int32(3)}
    with pytest.raises(RunError, match=r"cannot be written down.* int32"):
        train("probe-memory", TINY, env_params=unknown_to_json, folder=tmp_path / "run", reporter=Silent())
    assert not (tmp_path / "run").exists()


def test_a_step_that_cannot_be_traced_leaves_no_folder(tmp_path, monkeypatch):
    def make_broken(config, env, pretrained):
        def step(state):
            raise ValueError("no such step\nin detail")

        return make_unreal(config, env)._replace(step=step)

    monkeypatch.setattr(runs, "make_unreal", make_broken)
    config = dataclasses.replace(TINY, hidden=(3,))  # not one that the other tests share
    with pytest.raises(RunError, match=r"with this configuration: no such step$"):
        train("probe-memory", config, folder=tmp_path / "run", reporter=Silent())
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run_is_a_clear_error(tmp_path):
    with pytest.raises(RunError, match="no run folder"):
        resume(tmp_path / "missing")
    with pytest.raises(RunError, match=r"has no config\.json"):
        resume(tmp_path)
    for content in (
        "nonsense",
        "[]",
        "{}",
        '{"environment": {"name": "x", "params": {}}, "config": {"colour": 1}}',
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(RunError, match="does not describe a run"):
            resume(tmp_path)


def test_the_folder_remembers_the_whole_run(tmp_path):
    run = Run("probe-memory", dataclasses.replace(TINY, lstm=(), num_filters=(8, 16)), 5, {"length": 3})
    assert read_run(create_run(tmp_path / "a" / "b", run)) == run


def test_scores_the_newest_checkpoint(straight):
    folder = straight[0].folder
    scores = score_run(folder, episodes=6, seed=1)
    assert list(scores) == ["greedy", "sampled", "random"]
    for score in scores.values():
        assert (score.episodes, score.unfinished, score.mean_length) == (6, 0, 5.0)
        assert 0 <= score.mean_return <= 1
    assert read_scores(folder) == scores


def test_seeds_train_side_by_side_as_each_does_alone(straight, tmp_path):
    reporter = Recording()
    both, second = start(tmp_path / "both", seeds=2, reporter=reporter), start(tmp_path / "second", seed=1)
    assert reporter.notes[0] == f"probe-memory, UNREAL (A2C), seeds 0 to 1, in {both.folder}"
    alone = [straight[0], second]
    for index, one in enumerate(alone):
        params = jax.tree.map(lambda x, i=index: x[i], both.state.params)
        chex.assert_trees_all_close(params, one.state.params, atol=1e-5)
    entropies = [read_metrics(one.folder)["entropy"] for one in alone]
    np.testing.assert_allclose(read_metrics(both.folder)["entropy"], np.mean(entropies, axis=0), rtol=1e-4)
    scores = score_run(both.folder, episodes=6)
    assert list(scores) == ["greedy", "sampled", "random", "greedy, seed 0", "greedy, seed 1"]
    means = [scores[f"greedy, seed {seed}"].mean_return for seed in (0, 1)]
    assert scores["greedy"].mean_return == pytest.approx(np.mean(means))
    head, *rows, legend = scores_table(scores).splitlines()
    assert {len(row) for row in rows} == {len(head)}
    assert legend.endswith("; of all greedy and of all sampled agents, over agents")


CTRL_C = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests were started with
from btnn_jax.cli.commands import main
sys.exit(main([
    "train", "probe-memory", "--run", sys.argv[1], "--steps", "1M", "--algorithm", "a2c", "--num-envs", "2",
    "--rollout-length", "4", "--hidden", "4", "--lstm", "none", "--no-noisy",
    "--pc-weight", "0", "--vr-weight", "0", "--rp-weight", "0",
]))
"""


def test_ctrl_c_ends_a_real_process_with_a_checkpoint(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", CTRL_C, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    head = ""
    while "steps/s" not in head:  # the first line of progress
        line = process.stdout.readline()
        assert line, process.stderr.read()
        head += line
    process.send_signal(signal.SIGINT)
    tail, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == ""
    assert "compiled in" in head
    assert f"btnn-jax train --resume {tmp_path / 'run'}" in tail
    assert f"btnn-jax evaluate {tmp_path / 'run'}" in tail
    assert "\x1b" not in head + tail
    assert "\r" not in head + tail
    with Checkpoints(tmp_path / "run" / "checkpoints", create=False) as checkpoints:
        stopped_at = checkpoints.latest()
    assert stopped_at > 0
    assert read_metrics(tmp_path / "run")["steps"][-1] == 8 * stopped_at
