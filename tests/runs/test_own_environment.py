"""Environments of one's own: by module:Class, and as objects."""

import sys

import jax
import numpy as np
import pytest

from btnn_jax import cli, envs, load_agent
from btnn_jax.plots.agent import plot_runs
from btnn_jax.runs.agent import resume, train
from btnn_jax.runs.folder import RunError
from btnn_jax.runs.progress import Silent
from btnn_jax.runs.run import read_run
from btnn_jax.runs.scores import score_run
from btnn_jax.training.config import UnrealConfig

CONFIG = UnrealConfig(
    num_envs=2, rollout_length=4, total_steps=16, epochs=1, minibatches=1, hidden=(4,), lstm=(), pc_weight=0,
    vr_weight=0, rp_weight=0,
)  # fmt: skip
MODULE = """
import dataclasses
from btnn_jax import envs

@dataclasses.dataclass(frozen=True)
class Corridor:
    num_actions: int = 2

    @property
    def name(self): return "corridor"
    @property
    def inner(self): return envs.make("probe-choice", num_actions=self.num_actions)
    @property
    def observation(self): return self.inner.observation
    @property
    def action_depths(self): return self.inner.action_depths
    def reset(self, key): return self.inner.reset(key)
    def step(self, key, state, action): return self.inner.step(key, state, action)

class Plain:
    pass

number = 3
"""
SMALL = [
    "--num-envs",
    "2",
    "--rollout-length",
    "4",
    "--steps",
    "16",
    "--epochs",
    "1",
    "--minibatches",
    "1",
    "--hidden",
]
SMALL += ["4", "--lstm", "none", "--vr-weight", "0", "--rp-weight", "0", "--evaluate-episodes", "2"]


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_corridor.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("own_corridor", None)


def test_from_the_command_line_to_the_plot(own):
    words = ["train", "own_corridor:Corridor", "--env-param", "num_actions=3", "--run", "run", *SMALL]
    assert cli.main(words) == 0
    assert cli.main(["evaluate", "run", "--episodes", "2"]) == 0
    assert cli.main(["plot", "run"]) == 0
    assert cli.main(["train", "--resume", "run"]) == 0
    assert "own_corridor:Corridor (num_actions=3)" in read_run("run").title
    assert load_agent("run").policy.action_depths == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_missing:Corridor", "cannot import 'own_missing': No module named"),
        (
            "own_corridor:Coridor",
            "unknown name in the module own_corridor 'Coridor'; did you mean 'Corridor'?",
        ),
        ("own_corridor:number", "must be a class or a function, got int"),
        ("own_corridor:Plain", "has no name, observation, action_depths, reset, step"),
    ],
)
def test_a_mistake_is_one_line(own, capsys, name, message):
    with pytest.raises(SystemExit):
        cli.main(["train", name, *SMALL])
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_parameter_that_it_does_not_have_is_one_line(own):
    sys.path.insert(0, str(own))
    with pytest.raises(ValueError, match="unexpected keyword argument 'length'"):
        envs.make("own_corridor:Corridor", length=3)


def test_an_object_of_plain_values_is_found_again(own):
    sys.path.insert(0, str(own))
    import own_corridor

    run = train(own_corridor.Corridor(num_actions=4), CONFIG, folder=own / "run", reporter=Silent())
    assert (run.run.env, run.run.env_params) == ("own_corridor:Corridor", {"num_actions": 4})
    assert resume(own / "run", reporter=Silent()).steps == 16
    assert score_run(own / "run", episodes=2)["greedy"].episodes == 2


class Wrapped:
    """Not found again: it holds another object."""

    def __init__(self, env):
        self.env, self.name = env, "wrapped"
        self.observation, self.action_depths = env.observation, env.action_depths
        self.reset, self.step = env.reset, env.step


def test_an_object_is_passed_again(tmp_path):
    env = Wrapped(envs.make("probe-choice"))
    state = train(env, CONFIG, folder=tmp_path / "run", reporter=Silent()).state
    for again in (resume, score_run, load_agent):
        with pytest.raises(
            RunError, match="the environment 'wrapped' of this run was an object: pass it again"
        ):
            again(tmp_path / "run")
    resumed = resume(tmp_path / "run", env=env, reporter=Silent())
    jax.tree.map(np.testing.assert_array_equal, resumed.state.params, state.params)
    assert score_run(tmp_path / "run", env=env, episodes=2)["greedy"].episodes == 2
    assert load_agent(tmp_path / "run", env=env).act(np.zeros(env.observation.shape, np.float32)).shape == ()
    assert plot_runs([tmp_path / "run"]).is_file()


def test_an_object_takes_no_parameters(tmp_path):
    with pytest.raises(RunError, match="an object has no env_params, got"):
        train(Wrapped(envs.make("probe-choice")), CONFIG, env_params={"length": 3}, folder=tmp_path / "run")
