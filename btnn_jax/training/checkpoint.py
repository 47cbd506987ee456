"""Checkpoints: the whole state of a run, written by Orbax and read back bit by bit."""

from __future__ import annotations

import pathlib
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from btnn_jax.extras import import_extra
from btnn_jax.training.folder import Folder, RunError, first_line

PyTree = Any


class CheckpointError(RunError):
    """A checkpoint is missing, damaged, or not one of this run's."""


class Checkpoints:
    """The newest checkpoints of a run, numbered by the updates they hold; a context manager.

    A checkpoint counts only once it is whole, so that a run killed at any moment leaves one that can be read.

    Args:
      folder: where they lie.
      keep: how many to keep.
      create: make the folder; otherwise it must exist.

    Raises:
      CheckpointError: the folder does not exist.
      ModuleNotFoundError: Orbax is not installed.
    """

    def __init__(self, folder: Folder, *, keep: int = 2, create: bool = True) -> None:
        self._ocp = import_extra("orbax.checkpoint", "writing and reading checkpoints")
        self._folder = pathlib.Path(folder).absolute()
        if not create and not self._folder.is_dir():
            raise CheckpointError(f"no checkpoint in {folder}")
        self._manager = self._ocp.CheckpointManager(
            self._folder,
            options=self._ocp.CheckpointManagerOptions(
                create=create,
                max_to_keep=keep,
                # The arrays must leave the device before the next step overwrites them; what could be left to
                # do in the background then is too little to be worth a thread.
                enable_async_checkpointing=False,
                cleanup_tmp_directories=create,
            ),
        )

    def save(self, update: int, state: PyTree) -> None:
        """Writes `state`, any pytree of arrays and typed keys, as checkpoint `update`, and waits for it."""
        arrays, keys = to_arrays(state)
        self._manager.save(
            update,
            args=self._ocp.args.Composite(
                state=self._ocp.args.StandardSave(arrays), keys=self._ocp.args.JsonSave(keys)
            ),
        )

    def latest(self) -> int | None:
        """The number of the newest checkpoint; None where there is none."""
        return self._manager.latest_step()

    def restore(self, like: PyTree, update: int | None = None) -> PyTree:
        """Reads a checkpoint.

        Args:
          like: a state of the same structure, shapes and dtypes, or the `jax.eval_shape` of one.
          update: which checkpoint; None for the newest.

        Returns:
          The state that was saved, bit by bit, on the default device, whatever devices it was saved from.

        Raises:
          CheckpointError: there is none, it cannot be read, or it holds another kind of state.
        """
        update = self.latest() if update is None else update
        if update is None:
            raise CheckpointError(f"no checkpoint in {self._folder}")
        where = self._folder / str(update)
        try:
            stored = self._manager.restore(
                update,
                args=self._ocp.args.Composite(
                    state=self._ocp.args.StandardRestore(), keys=self._ocp.args.JsonRestore()
                ),
            )
            arrays, keys = stored["state"], stored["keys"]
        except Exception as error:  # a damaged file can raise anything, from JSON's errors to TensorStore's
            raise CheckpointError(f"cannot read the checkpoint {where}: {first_line(error)}") from error
        try:
            return from_arrays(like, arrays, keys)
        except ValueError as error:
            raise CheckpointError(f"the checkpoint {where} is not of this run: {error}") from error

    def __enter__(self) -> Checkpoints:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes Orbax's manager."""
        self._manager.close()


def to_arrays(state: PyTree) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Takes a state off the device.

    Returns:
      `name -> array` of every leaf that has elements, `name -> implementation` of those that are typed keys.
    """
    arrays, keys = {}, {}
    for name, leaf in _named(state).items():
        if _is_key(leaf):
            keys[name] = str(jax.random.key_impl(leaf))
        arrays[name] = _storable(leaf)
    return {name: np.asarray(leaf) for name, leaf in jax.device_get(arrays).items() if leaf.size}, keys


def from_arrays(like: PyTree, arrays: dict[str, np.ndarray], keys: dict[str, str]) -> PyTree:
    """Puts a state together again from what `to_arrays` gave.

    Raises:
      ValueError: something is missing, left over, or of another shape, dtype or kind of key than in `like`.
    """
    shapes = _named(like)
    stored_shapes = {name: jax.eval_shape(_storable, leaf) for name, leaf in shapes.items()}
    stored_shapes = {name: leaf for name, leaf in stored_shapes.items() if leaf.size}
    if missing := sorted(stored_shapes.keys() - arrays.keys()):
        raise ValueError(f"it lacks {missing[0]!r}" + _and_more(missing))
    if unknown := sorted(arrays.keys() - stored_shapes.keys()):
        raise ValueError(f"it has {unknown[0]!r} too" + _and_more(unknown))
    for name, shape in stored_shapes.items():
        array = arrays[name]
        if (array.shape, array.dtype) != (shape.shape, shape.dtype):
            raise ValueError(
                f"{name!r} is {array.dtype}{list(array.shape)}, expected {shape.dtype}{list(shape.shape)}"
            )

    def leaf(name: str, like: Any) -> jax.Array:
        if name not in arrays:
            return jnp.zeros(like.shape, like.dtype)
        array = jnp.array(arrays[name])  # a copy: the next step overwrites it in place
        if name in keys:
            array = jax.random.wrap_key_data(array, impl=keys[name])
        if array.dtype != like.dtype:
            raise ValueError(f"{name!r} is of dtype {array.dtype}, expected {like.dtype}")
        return array

    return jax.tree.unflatten(jax.tree.structure(like), [leaf(name, like) for name, like in shapes.items()])


def _storable(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _named(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
