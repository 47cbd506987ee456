"""The loop on the host, around a train step of one addition."""

import contextlib
import errno
import fcntl
import json
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from btnn_jax.runs import loop
from btnn_jax.runs.checkpoint import CheckpointError, Checkpoints
from btnn_jax.runs.folder import RunError, create_folder, locked
from btnn_jax.runs.loop import Program, run_loop
from btnn_jax.runs.metrics import read_metrics
from btnn_jax.runs.progress import Silent

UPDATES = 12


class State(NamedTuple):
    count: jax.Array
    skipped: jax.Array


def make_program(*, score=lambda metrics: metrics["count"], bad=100):
    """Counts; from update `bad` on, every gradient step is skipped."""

    def step(state):
        finite = state.count < bad
        state = State(state.count + 1, state.skipped + jnp.where(finite, 0, 10))
        return state, {"count": state.count.astype(jnp.float32), "skipped": state.skipped.astype(jnp.float32)}

    def init(seed):
        del seed
        return State(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    state = jax.eval_shape(init, 0)
    metrics = jax.eval_shape(step, state)[1]
    return Program("counting", init, step, state, metrics, UPDATES, 1, lambda metrics: "", score)


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def folder(tmp_path):
    return create_folder(tmp_path / "run", {"name": "counting", "config": {"size": 3}})


def go(folder, program=None, **arguments):
    arguments = {"reporter": Silent(), "log_seconds": 0, "checkpoint_minutes": 0} | arguments
    return run_loop(folder, program or make_program(), seed=0, **arguments)


def kept(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def test_keeps_the_newest_and_the_best(folder):
    assert go(folder, make_program(score=lambda metrics: -abs(metrics["count"] - 4)), keep=2).steps == UPDATES
    assert len(kept(folder)) == 3
    assert kept(folder)[1:] == [UPDATES - 1, UPDATES]
    with Checkpoints(folder / "checkpoints", create=False) as checkpoints:
        # scores are those of the last record, one update old
        assert checkpoints.best() == kept(folder)[0] == 5
        assert checkpoints.restore(make_program().state, checkpoints.best()).count == 5


def test_a_score_that_is_not_known_is_not_the_best(folder):
    go(folder, make_program(score=lambda metrics: None if metrics["count"] > 3 else metrics["count"]))
    with Checkpoints(folder / "checkpoints", create=False) as checkpoints:
        assert checkpoints.best() == 4


def test_the_last_checkpoint_has_its_score(folder):
    program = make_program(score=lambda metrics: -metrics["count"])
    for end in (UPDATES // 2, UPDATES):
        go(folder, program._replace(num_updates=end), checkpoint_minutes=1e9)
    with Checkpoints(folder / "checkpoints", create=False) as checkpoints:
        assert (checkpoints.best(), checkpoints.latest()) == (UPDATES // 2, UPDATES)


@pytest.fixture
def ten_seconds(monkeypatch):
    """What every update takes."""
    max_over_processes, now = loop.max_over_processes, [0.0]

    def later(*values):
        now[0] += 10
        return max_over_processes(*values)

    monkeypatch.setattr(loop, "max_over_processes", later)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))


def test_checkpoints_are_minutes_apart(folder, ten_seconds):
    go(folder, checkpoint_minutes=0.5, keep=UPDATES)
    assert kept(folder) == [0, 4, 8, UPDATES]


def test_a_resumed_run_counts_the_time_on_and_the_rate_anew(folder, ten_seconds):
    told = []

    class Told(Silent):
        def update(self, progress):
            told.append(progress)

    for end in (UPDATES // 2, UPDATES):
        outcome = go(folder, make_program()._replace(num_updates=end), reporter=Told())
    assert outcome.seconds == 10 * UPDATES
    assert [progress.seconds for progress in told] == [10 * progress.steps for progress in told]
    assert [progress.left for progress in told] == pytest.approx([10 * (p.total - p.steps) for p in told])
    assert len(told) == UPDATES


def test_too_many_steps_that_are_not_finite_end_the_run(folder):
    with pytest.raises(RunError, match=r"50 gradient steps were not finite; the run stopped at 10 steps"):
        go(folder, make_program(bad=5), max_skipped=30)
    assert kept(folder)[-1] == 10
    # What was skipped before does not count again, so the run can go on.
    assert go(folder, make_program(bad=0), max_skipped=30).steps == UPDATES


def test_two_processes_cannot_write_into_one_folder(folder):
    with locked(folder), pytest.raises(RunError, match="another process is writing into"):
        go(folder)
    assert go(folder).steps == UPDATES


class Disk:
    """Lets Orbax's manager save some times, and then refuses."""

    def __init__(self, monkeypatch, room):
        self.room, self.full = room, OSError(errno.ENOSPC, "No space left on device")
        original = Checkpoints.__init__

        def init(checkpoints, *args, **kwargs):
            original(checkpoints, *args, **kwargs)
            save = checkpoints._manager.save
            checkpoints._manager.save = lambda *a, **k: self.write(save, *a, **k)

        monkeypatch.setattr(Checkpoints, "__init__", init)

    def write(self, save, *args, **kwargs):
        self.room -= 1
        if self.room < 0:
            raise self.full
        return save(*args, **kwargs)


def test_a_full_disk_at_the_start_is_an_error_at_once(folder, monkeypatch):
    Disk(monkeypatch, 0)
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*0: .*No space left on device$"):
        go(folder)


def test_a_full_disk_later_does_not_end_the_run(folder, monkeypatch):
    disk = Disk(monkeypatch, 3)

    class Cleaner(Notes):
        def update(self, progress):
            if progress.steps == 10:
                disk.room = 100

    reporter = Cleaner()
    assert go(folder, reporter=reporter).steps == UPDATES
    complaints = [note for note in reporter.notes if "No space left" in note]
    assert complaints
    assert all("the run goes on, and tries again in 0 minutes" in note for note in complaints)
    assert kept(folder)[-1] == UPDATES


def test_goes_on_from_the_checkpoint_before_a_damaged_one(folder):
    go(folder, keep=3)
    for file in (folder / "checkpoints" / str(UPDATES) / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .*; the one before it is 11$"):
        go(folder)
    reporter = Notes()
    assert go(folder, checkpoint=11, reporter=reporter).state.count == UPDATES
    assert "resumed at 11 steps" in reporter.notes
    assert (folder / "checkpoints-after-11" / "12").is_dir()
    steps = [json.loads(line)["steps"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, UPDATES + 1))


def test_the_checkpoint_of_another_run_is_refused(folder, tmp_path):
    other = create_folder(tmp_path / "other", {"name": "counting", "config": {"size": 4}})
    go(other)
    go(folder)
    (folder / "checkpoints").rename(tmp_path / "aside")
    (other / "checkpoints").rename(folder / "checkpoints")
    with pytest.raises(CheckpointError, match=r"not of this run: its config\.size is 4, expected 3"):
        go(folder)


def test_a_state_is_copied_before_the_next_step_overwrites_it(tmp_path):
    increment = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = {"x": jnp.zeros(1_000_000)}
    with Checkpoints(tmp_path, keep=10) as checkpoints:
        for update in range(5):
            checkpoints.save(update, state)
            state = increment(state)
        checkpoints.wait()
        for update in range(5):
            np.testing.assert_array_equal(checkpoints.restore(state, update)["x"], float(update))


def test_no_metrics_are_lost_on_a_disk_that_was_full_for_a_while(folder, files_below):
    with contextlib.ExitStack() as full:

        class Filler(Notes):
            def update(self, progress):
                if progress.steps == 3:
                    full.enter_context(files_below(300))
                if progress.steps == 10:
                    full.close()

        reporter = Filler()
        assert go(folder, reporter=reporter, checkpoint_minutes=1e9).steps == UPDATES
    assert any("cannot write the metrics yet: File too large" in note for note in reporter.notes)
    assert read_metrics(folder)["steps"].tolist() == list(range(1, UPDATES + 1))
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("count")] == list(range(1, UPDATES + 1))


def test_a_last_checkpoint_that_fails_is_tried_once_more(folder, monkeypatch):
    class Filler(Notes):
        def update(self, progress):
            if progress.steps == UPDATES:
                disk.room = 0

        def note(self, text):
            super().note(text)
            disk.room = 100

    disk = Disk(monkeypatch, 100)
    reporter = Filler()
    go(folder, reporter=reporter, checkpoint_minutes=1e9)
    assert "No space left on device; once more" in reporter.notes[-1]
    assert kept(folder)[-1] == UPDATES


def test_a_run_that_has_lost_its_checkpoints_does_not_start_again(folder):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        go(folder, checkpoint=3)
    go(folder)
    (folder / "checkpoints").rename(folder.with_name("elsewhere"))
    metrics = (folder / "metrics.jsonl").read_text()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*, where the run has left some$"):
        go(folder)
    assert (folder / "metrics.jsonl").read_text() == metrics


def test_a_folder_that_cannot_be_locked_is_one_line(folder, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RunError, match=r"cannot lock the folder .*: No locks available$"):
        go(folder)
