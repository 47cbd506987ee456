"""Metrics survive the way from the device to the files and back."""

import json
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax.runs.folder import RunError
from btnn_jax.runs.metrics import MetricsWriter, add_metrics, read_means, read_metrics, zero_sums


def updates():
    """Three updates; an episode has finished before the last two."""
    columns = {
        "entropy": [1.0, 2.0, 6.0],
        "episode_return": [0.0, 4.0, 6.0],
        "episode_length": [0.0, 10.0, 20.0],
        "skipped": [0.0, 2.0, 3.0],
        "learning_rate": [0.3, 0.2, 0.1],
    }
    return [{name: jnp.float32(column[i]) for name, column in columns.items()} for i in range(3)]


def test_means_over_updates_and_the_latest_where_a_mean_says_nothing():
    means = zero_sums(updates()[0])
    for metrics in updates():
        means = jax.jit(add_metrics)(means, metrics)
    expected = {
        "entropy": 3.0,
        "episode_return": 5.0,
        "episode_length": 15.0,
        "skipped": 3.0,
        "learning_rate": np.float32(0.1),
    }
    assert read_means(means) == pytest.approx(expected)


def test_returns_are_unknown_until_an_episode_has_finished():
    known = read_means(add_metrics(zero_sums(updates()[0]), updates()[0]))
    assert "episode_return" not in known
    assert known["entropy"] == 1.0


def test_reads_what_was_written(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(64, 0.5, {"entropy": 1.25, "value_loss": math.inf})
        writer.write(128, 1.0, {"entropy": 1.0, "value_loss": 0.5, "episode_return": 2.0})
    read = read_metrics(tmp_path)
    assert {name: values.tolist() for name, values in read.items() if np.isfinite(values).all()} == {
        "steps": [64, 128],
        "seconds": [0.5, 1.0],
        "entropy": [1.25, 1.0],
    }
    np.testing.assert_array_equal(read["value_loss"], [np.nan, 0.5])
    np.testing.assert_array_equal(read["episode_return"], [np.nan, 2.0])
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # NaN and Infinity are not JSON


def test_tensorboard_reads_the_events(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(64, 0.5, {"entropy": 1.25})
        writer.write(128, 1.0, {"entropy": 1.0})
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    (file,) = (tmp_path / "tensorboard").iterdir()
    events = [event for event in loader.LegacyEventFileLoader(str(file)).Load() if event.summary.value]
    found = [(e.summary.value[0].tag, e.step, e.summary.value[0].simple_value) for e in events]
    assert found == [("entropy", 64, 1.25), ("entropy", 128, 1.0)]


def test_going_on_drops_what_came_after_the_checkpoint(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for steps in (64, 128, 192):
            writer.write(steps, steps / 64, {"entropy": 1.0})
    with MetricsWriter(tmp_path, resume_from=128) as writer:
        assert writer.seconds == 2.0
        writer.write(256, 2.5, {"entropy": 1.0})
    assert read_metrics(tmp_path)["steps"].tolist() == [64, 128, 256]


@pytest.mark.parametrize(("resume_from", "kept"), [(0, []), (128, [64, 128])])
def test_tensorboard_drops_what_came_after_the_checkpoint(tmp_path, monkeypatch, resume_from, kept):
    with MetricsWriter(tmp_path) as writer:
        for steps in (64, 128, 192):
            writer.write(steps, steps / 64, {"entropy": 1.0})
    later = time.time() + 60  # the files are named by the second
    monkeypatch.setattr(time, "time", lambda: later)
    with MetricsWriter(tmp_path, resume_from=resume_from) as writer:
        writer.write(256, 5.0, {"entropy": 2.0})
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("entropy")] == [*kept, 256]


def test_a_record_cut_short_by_a_kill_is_dropped(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(64, 0.5, {"entropy": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"steps": 128, "entr')
    assert read_metrics(tmp_path)["steps"].tolist() == [64]
    with MetricsWriter(tmp_path, resume_from=64) as writer:
        writer.write(128, 1.0, {"entropy": 1.0})
    assert read_metrics(tmp_path)["steps"].tolist() == [64, 128]


def test_damage_is_a_clear_error(tmp_path):
    with pytest.raises(RunError, match="has no metrics"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"steps": 1}\nnonsense\n{"steps": 2}\n')
    with pytest.raises(RunError, match="line 2 is not a record"):
        read_metrics(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"\xff\xfe", b"[1]", b"[" * 100_000, b"{}", b'{"steps": null}', b'{"steps": "x"}'),
        *(b'{"steps": 1e999}', b'{"steps": 1, "seconds": "x"}', b'{"steps": 1, "entropy": [1]}'),
        b'{"steps": ' + b"9" * 500 + b"}",
    ],
)  # fmt: skip
def test_a_line_of_something_else_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"steps": 1, "seconds": 1.0}\n' + line + b"\n")
    with pytest.raises(RunError, match="line 2 is not a record"):
        read_metrics(tmp_path)
    with pytest.raises(RunError, match="line 2 is not a record"):
        MetricsWriter(tmp_path, resume_from=1)


def test_a_seed_is_unknown_until_an_episode_of_its_own_has_finished():
    values = [(jnp.nan, 1.0), (2.0, 3.0), (4.0, 8.0)]
    names = ("episode_return_seed0", "episode_return_seed1")
    sums = zero_sums([*names, "episode_length"])
    for row in values:
        metrics = dict(zip(names, map(jnp.float32, row), strict=True))
        sums = add_metrics(sums, {**metrics, "episode_length": jnp.float32(5)})
    assert read_means(sums) == {
        "episode_return_seed0": 3.0,
        "episode_return_seed1": 4.0,
        "episode_length": 5.0,
    }
