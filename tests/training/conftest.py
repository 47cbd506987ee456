"""What the tests of runs and of checkpoints share."""

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
