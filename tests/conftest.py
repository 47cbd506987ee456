"""The strict set-up every test runs under, the golden files of BTGym, and what the tests of runs share."""

import contextlib
import json
import os
import pathlib
import resource
from types import SimpleNamespace

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
# Compiling is most of what the tests do. The command line's and the notebooks' own processes, and the slow learning
# runs, have all optimizations.
jax.config.update("jax_disable_most_optimizations", True)


def pytest_configure(config):
    """Leaves XLA's newer emitters out of the fast tests: they take twice as long; jax 0.11 knows no others."""
    if config.option.markexpr == "not slow" and jax.__version_info__ < (0, 11):
        with pytest.MonkeyPatch.context() as patch:  # processes that tests start are as a user's
            patch.setenv(
                "XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
            )
            jax.devices()  # which is when the flags are read


GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture
def golden():
    """Reads one golden case: `golden("net_lstm")` has `cfg inputs noise variables outputs cotangents gradients`."""

    def read(name):
        with np.load(GOLDEN / f"{name}.npz") as file:
            arrays = {key: file[key] for key in file.files}

        def group(prefix):
            return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

        noise = group("noise/")
        return SimpleNamespace(
            cfg=json.loads(str(arrays["cfg"])),
            inputs=group("in/"),
            noise=[noise[str(i)] for i in range(len(noise))],
            variables=group("var/"),
            outputs=group("out/"),
            cotangents=group("cot/"),
            gradients=group("grad/"),
        )

    return read


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
