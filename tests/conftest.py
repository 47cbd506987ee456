"""The strict set-up every test runs under, and the golden files of BTGym."""

import json
import os
import pathlib
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
