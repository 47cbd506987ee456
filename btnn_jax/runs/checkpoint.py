"""Checkpoints: the whole state of a run, written by Orbax and read back bit by bit."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from btnn_jax._errors import first_line, import_extra
from btnn_jax._types import PyTree
from btnn_jax.runs.folder import Folder, RunError, version
from btnn_jax.runs.processes import ProcessLostError, detect_lost_process, first_only, is_first

__all__ = ["CheckpointError", "Checkpoints", "from_arrays", "to_arrays"]

_FORMER_NAMES = {
    "core": "core_state",
    "holding": "units",
    "lost": "rounding_error",
    "stake": "unit_size",
}
"""Fields of a state as checkpoints of earlier versions name them, and their names now."""


class CheckpointError(RunError):
    """A checkpoint is missing, damaged, or not one of this run's."""


class Checkpoints:
    """The newest checkpoints of a run and its best one, numbered by the updates they hold; a context manager.

    They are written in the background. A checkpoint counts only once it is whole, so that a run killed at any moment
    leaves one that can be read. In a run of several processes, all of them call the same methods.

    Args:
      folder: where they lie.
      keep: how many of the newest to keep.
      create: make the folder; otherwise it must exist.
      settings: what makes the run, as JSON takes it. Each checkpoint carries it, and one that carries another is not
        read; None does not look at it.

    Raises:
      CheckpointError: the folder does not exist, or what lies in it cannot be read.
      ModuleNotFoundError: Orbax is not installed.
      ValueError: `keep` is less than 1.
    """

    def __init__(
        self,
        folder: Folder,
        *,
        keep: int = 2,
        create: bool = True,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self._ocp = import_extra("orbax.checkpoint", "writing and reading checkpoints")
        self._folder = pathlib.Path(folder).absolute()
        self._settings = settings
        if not create and not self._folder.is_dir():
            raise CheckpointError(f"no checkpoint in {folder}")
        self._scores: dict[int, float] = {}
        try:
            self._manager = self._ocp.CheckpointManager(
                self._folder,
                item_handlers={
                    "state": self._ocp.StandardCheckpointHandler(),
                    "about": self._ocp.JsonCheckpointHandler(),
                },
                options=self._ocp.CheckpointManagerOptions(
                    create=create,
                    cleanup_tmp_directories=create,
                    preservation_policy=_NewestAndBest(keep, self._scores),
                ),
            )
        except Exception as error:  # as in restore
            raise CheckpointError(
                f"cannot read the checkpoints in {self._folder}: {first_line(error)}"
            ) from error
        logging.getLogger("absl").addFilter(_without_traceback)
        for update in self._manager.all_steps():
            with contextlib.suppress(Exception):  # a damaged one has no score; `restore` says what it is
                self._set_score(update, self._about(update)["score"])

    def save(self, update: int, state: PyTree, *, score: float | None = None) -> None:
        """Copies `state` and begins to write it as checkpoint `update`.

        Args:
          update: above all that have been saved.
          state: any pytree of arrays and typed keys.
          score: how good it is; the highest is the best.

        Raises:
          CheckpointError: it cannot be written, or the one before it could not be, whose writing ends here.
          ProcessLostError: the writing has met the loss of another process.
        """
        before: CheckpointError | None = None
        try:
            self.wait()
        except CheckpointError as error:
            before = error
        arrays, keys = to_arrays(state)
        score = None if score is None or not math.isfinite(score) else score
        about = {"keys": keys, "settings": self._settings, "version": version("btnn-jax"), "score": score}
        self._set_score(update, score)  # what it outlives is deleted once it is whole
        with self._writing(update):
            self._manager.save(
                update,
                args=self._ocp.args.Composite(
                    state=self._ocp.args.StandardSave(arrays), about=self._ocp.args.JsonSave(about)
                ),
            )
        if before is not None:
            raise before

    def wait(self) -> None:
        """Waits until all is written.

        Raises:
          CheckpointError: the last checkpoint could not be written.
          ProcessLostError: as of `save`.
        """
        try:
            with self._writing(self.latest()):
                self._manager.wait_until_finished()
        except CheckpointError:
            if is_first():  # what has been written of it takes room where there may be little
                for part in self._folder.glob("*.orbax-checkpoint-tmp"):
                    shutil.rmtree(part, ignore_errors=True)
            raise

    def latest(self) -> int | None:
        """The number of the newest checkpoint; None where there is none."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The number of the kept checkpoint with the highest score, or the newest where none has a score."""
        return _best(self._manager.all_steps(), self._scores, default=self.latest())

    def _set_score(self, update: int, score: float | None) -> None:
        self._scores.pop(update, None)  # that of a checkpoint which was moved aside
        if score is not None:
            self._scores[update] = score

    def restore(self, like: PyTree, update: int | None = None) -> PyTree:
        """Reads a checkpoint.

        Args:
          like: a state of the same structure, shapes and dtypes, or the `jax.eval_shape` of one; leaves with a
            sharding are with_shardings by it, whatever devices they were saved from.
          update: which checkpoint; None for the newest.

        Returns:
          The state that was saved, bit by bit.

        Raises:
          CheckpointError: there is none, it cannot be read, or it is of another run; the message names the newest one
            before it.
        """
        update = self.latest() if update is None else update
        if update is None:
            raise CheckpointError(f"no checkpoint in {self._folder}")
        where = self._folder / str(update)
        try:
            about = self._about(update)
            found = self._manager.item_metadata(update)["state"]
            # As arrays of NumPy, or Orbax would ask for the devices that the checkpoint was written from.
            template = {name: np.empty(x.shape, x.dtype) for name, x in found.items()}
            state = self._ocp.args.StandardRestore(template)
            arrays = self._manager.restore(update, args=self._ocp.args.Composite(state=state))["state"]
        except Exception as error:  # a damaged file can raise anything, from JSON's errors to TensorStore's
            message = f"cannot read the checkpoint {where}: {first_line(error)}"
            raise CheckpointError(message + self._before(update)) from error
        try:
            _check_settings(self._settings, about["settings"])
            return from_arrays(like, *_renamed(like, arrays, about["keys"]))
        except ValueError as error:
            message = f"the checkpoint {where}, by version {about['version']}, is not of this run: {error}"
            raise CheckpointError(message + self._before(update)) from error

    def drop_after(self, update: int) -> None:
        """Moves checkpoints newer than `update` aside, into a folder beside: a run goes on from an earlier one.

        Raises:
          CheckpointError: they cannot be moved.
        """
        newer = [number for number in self._manager.all_steps() if number > update]
        if not newer:
            return
        with first_only("moving checkpoints aside") as first:
            if first:
                self._move_aside(newer, f"{self._folder.name}-after-{update}")
        self._manager.reload()

    def _move_aside(self, numbers: list[int], name: str) -> None:
        names = (name if again == 1 else f"{name}-{again}" for again in itertools.count(1))
        aside = next(path for path in map(self._folder.with_name, names) if not path.exists())
        try:
            aside.mkdir()
            for number in numbers:
                (self._folder / str(number)).rename(aside / str(number))
        except OSError as error:
            raise CheckpointError(f"cannot move checkpoints to {aside}: {error.strerror}") from error

    def _about(self, update: int) -> dict[str, Any]:
        about = self._ocp.args.JsonRestore()
        return self._manager.restore(update, args=self._ocp.args.Composite(about=about))["about"]

    def _before(self, update: int) -> str:
        earlier = [number for number in self._manager.all_steps() if number < update]
        return f"; the one before it is {max(earlier)}" if earlier else ""

    @contextlib.contextmanager
    def _writing(self, update: int | None) -> Iterator[None]:
        with detect_lost_process():  # another try would wait for a lost process
            try:
                yield
            except Exception as error:  # as for reading
                message = f"cannot write the checkpoint {self._folder / str(update)}: {first_line(error)}"
                raise CheckpointError(message) from error

    def __enter__(self) -> Checkpoints:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits until all is written and closes Orbax's manager."""
        logging.getLogger("absl").removeFilter(_without_traceback)
        if isinstance(error, ProcessLostError):
            return  # it would wait for that process
        with self._writing(self.latest()):
            self._manager.close()


class _NewestAndBest:
    """Orbax's rule of what to keep. Orbax's own rule for the best knows no scores of earlier sessions."""

    def __init__(self, keep: int, scores: Mapping[int, float]) -> None:
        self._keep, self._scores = keep, scores

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """For each of `checkpoints`, oldest first, whether it stays."""
        del context
        updates = [checkpoint.step for checkpoint in checkpoints]
        best = _best(updates, self._scores, default=None)
        return [update in updates[-self._keep :] or update == best for update in updates]


def _best(updates: Iterable[int], scores: Mapping[int, float], *, default: int | None) -> int | None:
    scored = ((scores[update], update) for update in updates if update in scores)
    return max(scored, default=(None, default))[1]


def _without_traceback(record: logging.LogRecord) -> bool:
    """Leaves out what Orbax logs of its threads' exceptions: they are raised here, as one line."""
    return record.exc_info is None


def _check_settings(expected: Mapping[str, Any] | None, stored: Mapping[str, Any] | None) -> None:
    if expected is None or stored is None:
        return
    ours, theirs = _flat(expected), _flat(stored)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise ValueError(f"its {name} is {theirs.get(name)!r}, expected {ours.get(name)!r}")


def _flat(settings: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in json.loads(json.dumps(settings)).items():
        flat |= _flat(value, f"{start}{name}.") if isinstance(value, dict) else {start + name: value}
    return flat


def to_arrays(state: PyTree) -> tuple[dict[str, Any], dict[str, str]]:
    """Copies a state: the next step overwrites it in place while it is being written.

    Returns:
      `name -> array` of every leaf that has elements, `name -> implementation` of those that are typed keys. The arrays
      are on the host, or, in a run of several processes, on the devices, where no host sees them whole.
    """
    arrays, keys = {}, {}
    for name, leaf in _named(state).items():
        if _is_key(leaf):
            keys[name] = str(jax.random.key_impl(leaf))
        if leaf.size:
            arrays[name] = _storable(leaf)
    if jax.process_count() > 1:
        return jax.tree.map(jnp.copy, arrays), keys
    return {name: np.array(leaf) for name, leaf in jax.device_get(arrays).items()}, keys


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
        array = _placed(arrays[name] if name in arrays else np.zeros(like.shape, like.dtype), like)
        if name in keys:
            array = jax.random.wrap_key_data(array, impl=keys[name])
        if array.dtype != like.dtype:
            raise ValueError(f"{name!r} is of dtype {array.dtype}, expected {like.dtype}")
        return array

    return jax.tree.unflatten(jax.tree.structure(like), [leaf(name, like) for name, like in shapes.items()])


def _renamed(
    like: PyTree, arrays: Mapping[str, Any], keys: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Arrays and keys by the names of today: a name that `like` lacks is read as one of an earlier version."""
    known = _named(like)

    def name_now(name: str) -> str:
        now = ".".join(_FORMER_NAMES.get(part, part) for part in name.split("."))
        return now if name not in known and now in known else name

    return {name_now(name): x for name, x in arrays.items()}, {name_now(name): x for name, x in keys.items()}


def _placed(array: np.ndarray, like: Any) -> jax.Array:
    """A copy on the devices where `like` is to be: the next step overwrites it in place."""
    if getattr(like, "sharding", None) is None:
        return jnp.array(array)
    return jax.make_array_from_callback(array.shape, like.sharding, lambda part: np.array(array[part]))


def _storable(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _named(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
