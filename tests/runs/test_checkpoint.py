"""Checkpoints give back what was saved, bit by bit, or say in one line why not."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax.runs.checkpoint import CheckpointError, Checkpoints
from btnn_jax.runs.processes import ProcessLostError


class Core(NamedTuple):
    h: jax.Array
    nothing: tuple = ()


def make_state(seed, *, impl="threefry2x32"):
    random = np.random.default_rng(seed)
    size = {"threefry2x32": 2, "rbg": 4}[impl]
    return {
        "key": jax.random.key(seed, impl=impl),
        "keys": jax.random.wrap_key_data(random.integers(9, size=(4, size), dtype=np.uint32), impl=impl),
        "weights": [jnp.asarray(random.normal(size=(2, 3)), jnp.float32), jnp.full((2,), 0.1, jnp.bfloat16)],
        "core": Core(jnp.float32(jnp.nan)),
        "flags": jnp.array([True, False]),
        "pixels": jnp.arange(6, dtype=jnp.uint8).reshape(1, 2, 3),
        "update": jnp.int32(seed),
        "replay": None,
        "empty": jnp.zeros((0, 5)),
    }


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_restores_what_was_saved_bit_by_bit(tmp_path, impl, raw):
    state = make_state(7, impl=impl)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(7, state)
    with Checkpoints(tmp_path / "c", create=False) as checkpoints:
        restored = checkpoints.restore(make_state(0, impl=impl))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert raw(restored) == raw(state)


def test_the_restored_keys_go_on_with_the_same_stream(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, make_state(3))
        key = checkpoints.restore(make_state(0))["key"]
    np.testing.assert_array_equal(jax.random.normal(key, (4,)), jax.random.normal(make_state(3)["key"], (4,)))


def test_keeps_the_newest_and_restores_any_kept(tmp_path, raw):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() is None
        for update in (1, 2, 10):
            checkpoints.save(update, make_state(update))
        assert checkpoints.latest() == 10
        assert raw(checkpoints.restore(make_state(0), 2)) == raw(make_state(2))
        with pytest.raises(CheckpointError, match="cannot read"):
            checkpoints.restore(make_state(0), 1)


def test_a_restored_state_may_be_donated_while_the_first_copy_lives(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, {"x": jnp.arange(4.0)})
        first, second = (checkpoints.restore({"x": jnp.zeros(4)}) for _ in range(2))
    jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)(first)
    np.testing.assert_array_equal(second["x"], np.arange(4.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"new": jnp.zeros(2)}, "lacks 'new'"),
        (lambda s: {k: v for k, v in s.items() if k != "flags"}, "has 'flags' too"),
        (lambda s: s | {"update": jnp.zeros((3,), jnp.int32)}, r"'update' is int32\[\], expected int32\[3\]"),
        (lambda s: s | {"flags": jnp.zeros(2)}, r"'flags' is bool\[2\], expected float32\[2\]"),
        (lambda s: s | {"key": jax.random.key(0, impl="rbg")}, "'key' is"),
    ],
)
def test_another_state_is_a_clear_error(tmp_path, change, message):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, make_state(0))
        with pytest.raises(CheckpointError, match=message) as caught:
            checkpoints.restore(change(make_state(0)))
    assert "not of this run" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_empty_folder_is_a_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        Checkpoints(tmp_path / "missing", create=False)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError, match="no checkpoint in"):
        checkpoints.restore({})


def test_a_damaged_checkpoint_is_a_clear_error(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, make_state(0))
    for file in (tmp_path / "0" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    with (
        Checkpoints(tmp_path, create=False) as checkpoints,
        pytest.raises(CheckpointError, match="cannot read"),
    ):
        checkpoints.restore(make_state(0))


def test_a_checkpoint_that_was_being_written_does_not_count(tmp_path, raw):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1))
        checkpoints.save(2, make_state(2))
    # What a kill in the middle of writing leaves: no mark that the checkpoint is whole.
    (tmp_path / "2" / "commit_success.txt").unlink(missing_ok=True)
    (tmp_path / "2").rename(tmp_path / "2.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        assert raw(checkpoints.restore(make_state(0))) == raw(make_state(1))


def test_the_best_outlives_the_sessions_of_its_run(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), score=9.0)
    with Checkpoints(tmp_path) as checkpoints:
        for update in (2, 3, 4):
            checkpoints.save(update, make_state(update), score=1.0)
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.best(), checkpoints.latest()) == (1, 4)
        checkpoints.save(5, make_state(5), score=10.0)
        checkpoints.save(6, make_state(6))
        checkpoints.wait()
        assert checkpoints.best() == 5
        checkpoints.save(7, make_state(7), score=10.0)
        checkpoints.wait()
        assert checkpoints.best() == 7  # the newest of several
    assert {path.name for path in tmp_path.iterdir()} == {"6", "7"}


def test_a_checkpoint_in_anothers_place_does_not_have_its_score(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        checkpoints.save(1, make_state(1), score=1.0)
        checkpoints.save(2, make_state(2), score=9.0)
        checkpoints.wait()
        checkpoints.drop_after(1)
        checkpoints.save(2, make_state(3))
        checkpoints.wait()
        assert (checkpoints.best(), checkpoints.latest()) == (1, 2)


def test_a_score_that_is_not_finite_is_none(tmp_path):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for update, score in [(1, np.nan), (2, 5.0), (3, np.inf)]:
            checkpoints.save(update, make_state(update), score=score)
        checkpoints.wait()
        assert checkpoints.best() == 2


def test_a_write_that_fails_in_the_background_is_one_line_and_leaves_nothing(tmp_path, files_below, capfd):
    state = {"x": jnp.asarray(np.random.default_rng(0).normal(size=100_000), jnp.float32)}
    with Checkpoints(tmp_path) as checkpoints:
        with files_below(50_000):
            checkpoints.save(1, state)
            with pytest.raises(CheckpointError, match="cannot write the checkpoint") as caught:
                checkpoints.wait()
        assert "\n" not in str(caught.value)
        assert "Traceback" not in capfd.readouterr().err
        assert list(tmp_path.iterdir()) == []
        checkpoints.save(2, state)
        checkpoints.wait()
        assert checkpoints.latest() == 2


def test_a_failed_write_does_not_cost_the_next_one(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        failures, wait = [OSError("disk full")], checkpoints._manager.wait_until_finished

        def fail_once():
            wait()
            if failures:
                raise failures.pop()

        monkeypatch.setattr(checkpoints._manager, "wait_until_finished", fail_once)
        with pytest.raises(CheckpointError, match="disk full"):
            checkpoints.save(2, make_state(2))
        checkpoints.wait()
        assert checkpoints.latest() == 2


@pytest.mark.parametrize("told", ["by the computation", "by who waited for it"])
def test_a_lost_process_is_not_a_failed_write(tmp_path, monkeypatch, told):
    def lose():
        lost = jax.errors.JaxRuntimeError("connection reset by peer")
        if told == "by the computation":
            raise lost
        raise TimeoutError("barrier") from lost

    with Checkpoints(tmp_path) as checkpoints, monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "wait_until_finished", lose)
        with pytest.raises(CheckpointError, match="cannot write"):  # alone there is none to lose
            checkpoints.wait()
        patch.setattr(jax, "process_count", lambda: 2)
        with pytest.raises(ProcessLostError, match=r"connection reset by peer.*--resume"):
            checkpoints.save(1, make_state(1))


def test_a_damaged_checkpoint_is_not_the_best(tmp_path):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for update, score in [(1, 5.0), (2, 9.0), (3, 7.0)]:
            checkpoints.save(update, make_state(update), score=score)
    for file in (tmp_path / "2" / "about").rglob("*"):
        file.unlink()
    with Checkpoints(tmp_path, create=False) as checkpoints:
        assert checkpoints.best() == 3


def test_going_back_twice_keeps_all_that_was_newer(tmp_path):
    folder = tmp_path / "checkpoints"
    for _ in range(2):
        with Checkpoints(folder) as checkpoints:
            for update in (1, 2):
                if checkpoints.latest() != 1 or update == 2:
                    checkpoints.save(update, make_state(update))
            checkpoints.wait()
            checkpoints.drop_after(1)
            assert checkpoints.latest() == 1
    assert (tmp_path / "checkpoints-after-1" / "2").is_dir()
    assert (tmp_path / "checkpoints-after-1-2" / "2").is_dir()


@pytest.mark.parametrize("keep", [0, -1])
def test_at_least_one_checkpoint_is_kept(tmp_path, keep):
    with pytest.raises(ValueError, match=f"keep must be at least 1, got {keep}"):
        Checkpoints(tmp_path, keep=keep)
