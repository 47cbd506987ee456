"""What a profile tells, and that it changes nothing."""

import re
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax.cli import commands
from btnn_jax.cli.parser import make_parser
from btnn_jax.runs import profiling as profile
from btnn_jax.runs.agent import make_agent, train
from btnn_jax.runs.checkpoint import to_arrays
from btnn_jax.runs.folder import create_folder
from btnn_jax.runs.loop import Program, run_loop
from btnn_jax.runs.profiling import Profile, profile_table
from btnn_jax.runs.progress import Silent
from btnn_jax.runs.run import Run
from btnn_jax.training.config import UnrealConfig

LEAST = profile.WARM + profile.TIMED + profile.TRACED + 1


class State(NamedTuple):
    count: jax.Array
    skipped: jax.Array


def step(state):
    return State(state.count + 1, state.skipped), {"count": state.count}


def counting(updates, act):
    state = State(jnp.zeros(()), jnp.zeros(()))
    metrics = jax.eval_shape(step, state)[1]
    return Program(
        "counting", lambda seed: state, step, jax.eval_shape(lambda: state), metrics, updates, 7,
        lambda metrics: "", lambda metrics: None, act=act,
    )  # fmt: skip


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def folder(tmp_path):
    return create_folder(tmp_path / "run", {"name": "counting"})


def go(folder, updates=LEAST + 2, act=None):
    reporter = Notes()
    outcome = run_loop(folder, counting(updates, act), seed=0, reporter=reporter, profile=True)
    assert outcome.state.count == updates
    return "\n".join(reporter.notes)


def seconds(name, told):
    found = re.search(rf"^ *{name} +([\d.e+-]+)", told, re.MULTILINE)
    assert found, told
    return float(found[1])


def traces(folder):
    return list((folder / "profile").glob("plugins/profile/*/*.xplane.pb"))


def test_tells_of_time_and_memory_and_leaves_a_trace(folder):
    told = go(folder, act=lambda state: state.count * 2)
    assert seconds("compiling", told) > 0
    whole, acting, learning = (seconds(name, told) for name in ("update", "acting", "learning"))
    assert whole == pytest.approx(acting + learning, abs=0.02 * max(whole, acting))  # they are rounded
    assert re.search(r"memory of a device: \d+ MB planned by the compiler", told)
    assert f"tensorboard --logdir {folder / 'profile'}" in told
    (trace,) = traces(folder)
    assert b"update" in trace.read_bytes()


def test_where_nothing_acts_there_is_no_such_row(folder):
    told = go(folder)
    assert seconds("update", told) > 0
    assert "acting" not in told
    assert "learning" not in told


def test_a_run_that_is_too_short_says_so(folder):
    assert f"no profile: the run ended after {LEAST - 1} updates, it takes {LEAST}" in go(folder, LEAST - 1)


def test_a_run_that_fails_while_it_is_traced_ends_the_trace(folder):
    class FailingError(Exception):
        pass

    class Failing(Notes):
        def update(self, progress):
            if progress.steps > 7 * (LEAST - 3):
                raise FailingError

    program = counting(LEAST + 2, None)
    with pytest.raises(FailingError):
        run_loop(folder, program, seed=0, reporter=Failing(), log_seconds=0, profile=True)
    assert len(traces(folder)) == 1
    with jax.profiler.trace(folder / "another"):  # there can only be one at a time
        pass


def test_a_trace_that_is_under_way_does_not_end_the_run(folder):
    with jax.profiler.trace(folder / "another"):
        told = go(folder)
    assert "no trace: " in told
    assert "tensorboard --logdir" not in told
    assert traces(folder) == []


def test_the_rate_is_that_of_the_part():
    lines = profile_table(Profile(1.0, 0.5, 0.125, 100, None, False)).splitlines()
    assert [line.split()[-2:] for line in lines[2:]] == [["100%", "200"], ["25%", "800"], ["75%", "267"]]
    assert "memory" not in "".join(lines)


CONFIG = UnrealConfig(
    shards=2, num_envs=2, rollout_length=4, total_steps=16 * (LEAST + 1), algorithm="a2c",
    hidden=(4,), lstm=(4,), noisy=False, pc_weight=0, vr_weight=0, rp_weight=0,
)  # fmt: skip


def test_all_shards_of_all_seeds_act():
    agent = make_agent(Run("probe-memory", CONFIG, seeds=3), devices=2)
    actors, record, last_value = jax.eval_shape(agent.act, agent.state)
    assert record.reward.shape == (3, 2, 4, 2)
    assert last_value.shape == (3, 2, 2)
    chex.assert_trees_all_equal_shapes_and_dtypes(actors, agent.state.actors)


@pytest.mark.slow
def test_what_is_measured_as_acting_is_what_the_step_does():
    agent = make_agent(Run("probe-memory", CONFIG, seeds=2), devices=2)
    state = jax.jit(agent.init)(np.uint32(0))
    acted = jax.jit(agent.act)(state)[0]
    stepped = jax.jit(agent.step)(state)[0].actors
    chex.assert_trees_all_close(to_arrays(acted)[0], to_arrays(stepped)[0], atol=1e-6)


@pytest.mark.slow
def test_agents_of_shards_and_seeds_are_profiled_and_learn_the_same(tmp_path):
    reporter, options = Notes(), {"devices": 2, "seeds": 2}
    profiled = train(
        "probe-memory", CONFIG, folder=tmp_path / "a", reporter=reporter, profile=True, **options
    )
    assert seconds("acting", "\n".join(reporter.notes)) > 0
    plain = train("probe-memory", CONFIG, folder=tmp_path / "b", reporter=Silent(), **options)
    chex.assert_trees_all_equal(profiled.state.params, plain.state.params)


@pytest.mark.parametrize(("words", "expected"), [([], False), (["--profile"], True)])
def test_the_command_line_hands_it_on(words, expected):
    given = make_parser().parse_args(["train", *words])
    assert commands._settings(given, UnrealConfig)[1]["profile"] is expected
