"""A trained agent as one file that acts without this library: a program of StableHLO, its arrays and their description.

The file is NumPy's `.npz`, which `np.load` opens without pickle. `docs/deploy.md` shows how it is used.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import unfreeze

from btnn_jax._errors import check_known, first_line, import_extra
from btnn_jax._types import PyTree
from btnn_jax.envs.base import AnyEnvironment
from btnn_jax.protocol import AgentInput, Policy
from btnn_jax.runs.acting import load_agent
from btnn_jax.runs.folder import Folder, RunError, version
from btnn_jax.runs.run import read_run
from btnn_jax.training.acting import apply_step, choose_action

__all__ = ["PLATFORMS", "export_agent", "make_act"]

PLATFORMS = ("cpu", "cuda", "tpu")

_MEANINGS = {
    "parameters": "the arrays of this file under parameters/",
    "state": "the memory: at first the arrays of this file under state/, repeated along the batch; then the output",
    "observation": "as the environment gives it, unscaled",
    "last_action": "the action taken before; anything where reset is true",
    "last_reward": "what that action earned; anything where reset is true",
    "reset": "whether the observation starts an episode",
    "key": "any two random numbers, new ones for each step, that sample is drawn with",
    "action": "the most likely action",
    "sample": "an action drawn by the probabilities",
    "probabilities": "of each action",
    "logits": "logarithms of the probabilities, up to a constant",
    "value": "the expected discounted return, in units of the rewards",
}


def export_agent(
    folder: Folder,
    path: Folder,
    *,
    best: bool = False,
    seed: int | None = None,
    platforms: Sequence[str] = PLATFORMS,
    env: AnyEnvironment | None = None,
) -> pathlib.Path:
    """Writes a run's agent into one file that acts without this library.

    The file holds `program`, the bytes of one step of the agent for any number of environments, which
    `jax.export.deserialize` reads; `about`, JSON that describes its inputs and outputs; and the arrays
    `parameters/...` and `state/...`, the memory of one environment before its first step. Scaling of observations is
    part of the program, and noisy layers use their means.

    Args:
      folder: the run's.
      path: file to write, replaced where there is one.
      best: take the checkpoint with the highest return in training rather than the newest.
      seed: which of several agents, by the seed that it was trained with; None for the first.
      platforms: what the program can be compiled for, of `PLATFORMS`.
      env: the environment, of a run that was started with an object.

    Returns:
      The file.

    Raises:
      RunError: as `load_agent`; or the network cannot be exported, or the file cannot be written.
      ValueError: a platform is unknown.
      ModuleNotFoundError: flatbuffers is not installed.
    """
    import_extra("flatbuffers", "exporting an agent", "export")
    check_known("platform", platforms, PLATFORMS)
    run, agent = read_run(folder, env), load_agent(folder, best=best, seed=seed, env=env)
    parameters, state = _by_path(agent.params), _by_path(agent.policy.initial_state(1))
    act = make_act(agent.policy)
    inputs = _inputs(agent.policy, parameters, state, agent.observation)
    try:
        exported = jax.export.export(jax.jit(act), platforms=tuple(platforms))(**inputs)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise RunError(f"the network of {folder} cannot be exported: {first_line(error)}") from error
    about = {
        "format": "btnn-jax agent",
        "version": 1,
        "environment": run.title,
        "seed": run.seed if seed is None else seed,
        "platforms": list(platforms),
        "jax": version("jax"),
        "inputs": _describe(inputs),
        "outputs": _describe(jax.eval_shape(act, **inputs)),
    }
    content: dict[str, Any] = {
        "program": np.frombuffer(exported.serialize(), np.uint8),
        "about": np.array(json.dumps(about)),
    }
    content |= {f"parameters/{name}": np.asarray(x) for name, x in parameters.items()}
    content |= {f"state/{name}": np.asarray(x[0]) for name, x in state.items()}
    path = pathlib.Path(path)
    try:
        new = path.with_name(path.name + ".new")
        with new.open("wb") as file:  # a name alone would get a suffix
            np.savez(file, **content)
        new.replace(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def make_act(policy: Policy) -> Any:
    """Binds one step of an agent as a function of arrays and dicts alone.

    `act(parameters, state, observation, last_action, last_reward, reset, key)` returns a dict of the action, a sample,
    their probabilities and logits, the value and the next state. Parameters and state are dicts by the paths of their
    leaves.
    """
    initial = policy.initial_state(1)
    state_tree, state_names = jax.tree.structure(initial), list(_by_path(initial))

    def act(
        parameters: dict[str, jax.Array],
        state: dict[str, jax.Array],
        observation: PyTree,
        last_action: PyTree,
        last_reward: jax.Array,
        reset: jax.Array,
        key: jax.Array,
    ) -> dict[str, Any]:
        output, after = apply_step(
            policy,
            _nested(parameters),
            AgentInput(observation, last_action, last_reward, reset),
            jax.tree.unflatten(state_tree, [state[name] for name in state_names]),  # JAX sorts a dict's names
        )
        random = jax.random.wrap_key_data(key, impl="threefry2x32")
        logits = unfreeze(output.logits)
        return {
            "action": choose_action(logits, random, greedy=True),
            "sample": choose_action(logits, random, greedy=False),
            "probabilities": jax.tree.map(jax.nn.softmax, logits),
            "logits": logits,
            "value": output.value,
            "state": _by_path(after),
        }

    return act


def _inputs(
    policy: Policy, parameters: dict[str, Any], state: dict[str, Any], observation: PyTree
) -> dict[str, PyTree]:
    """What `act` takes, of shapes only: those of one environment behind a symbolic `batch`."""
    (batch,) = jax.export.symbolic_shape("batch")

    def rows(*shape: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), dtype)

    return {
        "parameters": {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in parameters.items()},
        "state": {name: rows(*x.shape[1:], dtype=x.dtype) for name, x in state.items()},
        "observation": jax.tree.map(lambda x: rows(*x.shape, dtype=x.dtype), observation),
        "last_action": jax.tree.map(lambda _: rows(dtype=jnp.int32), unfreeze(policy.action_depths)),
        "last_reward": rows(dtype=jnp.float32),
        "reset": rows(dtype=bool),
        "key": jax.ShapeDtypeStruct((2,), jnp.uint32),
    }


def _describe(trees: dict[str, PyTree]) -> dict[str, Any]:
    def array(x: jax.ShapeDtypeStruct) -> dict[str, Any]:
        return {"shape": [n if isinstance(n, int) else str(n) for n in x.shape], "dtype": str(x.dtype)}

    return {
        name: {"meaning": _MEANINGS[name], "arrays": jax.tree.map(array, tree)}
        for name, tree in trees.items()
    }


def _by_path(tree: PyTree) -> dict[str, Any]:
    """A tree's leaves by their paths, such as `core/layer_0/kernel_x`, in its order."""
    leaves = jax.tree_util.tree_leaves_with_path(unfreeze(tree))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """The nested dict that `_by_path` made flat."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = leaf
    return tree
