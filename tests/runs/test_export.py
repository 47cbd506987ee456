"""An exported agent acts as the agent does, where there is no btnn_jax."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest

from btnn_jax import cli, export_agent, load_agent
from btnn_jax.runs.agent import train
from btnn_jax.runs.folder import RunError
from btnn_jax.runs.progress import Silent
from btnn_jax.training.config import UnrealConfig

STEPS = 1000
DOCS = (pathlib.Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
LOADER = next(
    block for block in re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL) if "class" in block
)

ALONE = f"""
import sys
sys.modules["btnn_jax"] = sys.modules["flax"] = sys.modules["distrax"] = None  # importing them fails
{LOADER}

class Loaded(Exported):
    def step(self, *inputs):
        out = self.act(*(x[None] for x in inputs))
        return out["action"][0], out["value"][0]
"""
WITH = """
import sys
import numpy as np
from btnn_jax import load_agent

class Loaded:
    def __init__(self, folder):
        self.agent = load_agent(folder)

    def step(self, *inputs):
        value = self.agent.value(*inputs)  # before the memory moves on
        return self.agent.act(*inputs), value
"""
LOOP = """
for number, source in enumerate(sys.argv[1:]):
    agent, inputs = Loaded(source), np.load("inputs.npz")
    steps = [agent.step(*x) for x in zip(inputs["observation"], inputs["reward"], inputs["first"])]
    np.save(f"{OUTPUT}{number}.npy", np.array(steps, np.float32))
"""


def config(**fields):
    return UnrealConfig(
        num_envs=4, rollout_length=8, total_steps=32 * 4, epochs=1, minibatches=1, hidden=(8,), pc_weight=0,
        rp_weight=0, replay_length=16, replay_batch=2, learning_rate=0.05, **fields,
    )  # fmt: skip


CORES = {"lstm": {"lstm": (8,)}, "gtrxl": {"core": "gtrxl", "core_size": (8,)}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A trained agent of each core."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        train(
            "probe-memory", config(**fields), seed=2, folder=folder / name, reporter=Silent(),
            env_params={"length": 5},
        )
        for name, fields in CORES.items()
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(runs):
    return runs[0]


def act(program, name, sources, folder):
    """Actions and values `[sources, STEPS, 2]` in a process of their own: how XLA rounds depends on its flags."""
    code = f"OUTPUT = {name!r}\n{program}{LOOP}"
    subprocess.run([sys.executable, "-c", code, *sources], check=True, cwd=folder)
    return np.stack([np.load(folder / f"{name}{number}.npy") for number in range(len(sources))])


def test_it_acts_bit_for_bit_where_btnn_jax_cannot_be_imported(runs, tmp_path):
    draw = np.random.default_rng(0)
    first = draw.random(STEPS) < 0.02
    first[0] = True
    shape = load_agent(runs[0].folder).observation.shape
    np.savez(
        tmp_path / "inputs.npz",
        observation=5 * draw.normal(size=(STEPS, *shape)).astype(np.float32),
        reward=draw.normal(size=STEPS).astype(np.float32),
        first=first,
    )
    files = [export_agent(run.folder, tmp_path / f"{run.folder.name}.npz") for run in runs]
    found = act(ALONE, "alone", files, tmp_path)
    np.testing.assert_array_equal(found, act(WITH, "with", [run.folder for run in runs], tmp_path))
    for actions, values in found.transpose(0, 2, 1):
        assert len(np.unique(actions)) > 1
        assert len(np.unique(values)) > STEPS / 2


def test_it_exports_from_the_command_line_for_any_batch(run, tmp_path, capsys):
    path = tmp_path / "agent"
    assert cli.main(["export", str(run.folder), str(path), "--platforms", "cpu"]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    with np.load(path) as file:
        about = json.loads(str(file["about"]))
        program = jax.export.deserialize(bytearray(file["program"]))
        groups = {name.partition("/")[0] for name in file.files}
    assert (program.platforms, about["platforms"]) == (("cpu",), ["cpu"])
    assert about["inputs"]["observation"]["arrays"]["shape"][0] == "batch"
    assert [str(n) for n in program.out_avals[0].shape] == about["outputs"]["action"]["arrays"]["shape"]
    assert groups == {"program", "about", "parameters", "state"}


def test_samples_follow_the_probabilities(run, tmp_path):
    names = {}
    exec(LOADER, names)
    agent = names["Exported"](export_agent(run.folder, tmp_path / "agent.npz"), 4000)
    observation = np.ones((4000, *load_agent(run.folder).observation.shape), np.float32)
    out = agent.act(observation, np.zeros(4000), np.ones(4000, bool))
    shares = np.bincount(out["sample"], minlength=3) / 4000
    np.testing.assert_allclose(shares, out["probabilities"][0], atol=0.04)
    assert set(out) == set(agent.about["outputs"])


def test_an_unknown_platform_and_a_folder_that_is_missing_are_one_line(run, tmp_path):
    with pytest.raises(ValueError, match="unknown platform 'gpu'"):
        export_agent(run.folder, tmp_path / "agent.npz", platforms=["gpu"])
    with pytest.raises(RunError, match="cannot write"):
        export_agent(run.folder, tmp_path / "none" / "agent.npz", platforms=["cpu"])
