"""What the tests of runs and of checkpoints share."""

import contextlib
import resource

import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def raw():
    """`state -> {path: (dtype, shape, bytes)}`: two states are the same bit by bit, NaN and keys included."""

    def bits(x):
        data = jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        return x.dtype, x.shape, np.asarray(data).tobytes()

    return lambda state: {
        jax.tree_util.keystr(path): bits(x) for path, x in jax.tree_util.tree_leaves_with_path(state)
    }


@pytest.fixture(scope="session")
def compiled():
    """A list that every program is added to that XLA compiles from now on."""
    programs = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            programs.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield programs
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def optimized():
    """Compiles as a user's process does."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def files_below():
    """A block in which no file can grow beyond some bytes: writing fails as on a disk that is full."""

    @contextlib.contextmanager
    def limit(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
