"""Recurrent cores against flax's cells, and, where it is installed, memorax's: whole sequences and the acting step.

Every core has one layer of 256. `python -m benchmarks --only cores`; memorax (`pip install memorax`) is not among the
packages of the extras.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.harness import Case, Program
from btnn_jax.cores import make_core

SIZE = 256
MEMORY = 64  # steps that the transformers look back
LENGTHS = (16, 128, 1024)
BATCHES = (1, 16, 64)
MEMORAX = importlib.util.find_spec("memorax") is not None

Call = Callable[[Any, jax.Array, jax.Array], jax.Array]  # (params, x, resets) -> y
Made = tuple[Any, Any, Call]  # parameters, the state before the first step, and how to run


def _ours(name: str, B: int) -> tuple[Any, Callable[..., tuple[jax.Array, Any]]]:
    core = make_core(name, (SIZE,), memory=MEMORY)
    state = core.initial_state(B)
    params = core.init(jax.random.key(1), jnp.zeros((1, B, SIZE)), state)

    def run(params: Any, x: jax.Array, resets: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        return core.apply(params, x, state, resets=resets)

    return (params, state), run


def _flax(cell: type[nn.RNNCellBase], B: int) -> tuple[Any, Callable[..., tuple[jax.Array, Any]]]:
    """`nn.RNN`, which knows no resets."""
    rnn = nn.RNN(cell(SIZE), time_major=True, return_carry=True)
    params = rnn.init(jax.random.key(1), jnp.zeros((1, B, SIZE)))
    state = cell(SIZE).initialize_carry(jax.random.key(0), (B, SIZE))

    def run(params: Any, x: jax.Array, resets: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        carry, y = rnn.apply(params, x, initial_carry=state)
        return y, carry

    return (params, state), run


class _MemoraxLRU(nn.Module):
    """Memorax's recurrence in the block that ours is."""

    @nn.compact
    def __call__(self, x: jax.Array, resets: jax.Array, state: Any) -> tuple[Any, jax.Array]:
        """Runs over `[B, T, D]`."""
        from memorax.networks.sequence_models import LRUCell, Memoroid

        state, y = Memoroid(LRUCell(SIZE, SIZE))(nn.LayerNorm()(x), resets, state)
        left, right = jnp.split(nn.Dense(2 * SIZE)(nn.gelu(y)), 2, axis=-1)
        return state, x + left * nn.sigmoid(right)


class _MemoraxMinGRU(nn.Module):
    """Memorax's recurrence, bare as ours is."""

    @nn.compact
    def __call__(self, x: jax.Array, resets: jax.Array, state: Any) -> tuple[Any, jax.Array]:
        """Runs over `[B, T, D]`."""
        from memorax.networks.sequence_models import Memoroid, MinGRUCell

        return Memoroid(MinGRUCell(SIZE))(x, resets, state)


class _MemoraxGTrXL(nn.Module):
    """Memorax's attention, gated as ours; it attends to all of a sequence, for it cuts none into windows."""

    context: int

    def attention(self) -> Any:
        """The part that has a state."""
        from memorax.networks.blocks import SegmentRecurrence
        from memorax.networks.sequence_models import SelfAttention

        types = {"dtype": jnp.float32, "param_dtype": jnp.float32}
        inits = {"kernel_init": nn.initializers.lecun_normal(), "bias_init": nn.initializers.zeros}
        attention = SelfAttention(SIZE, 4, self.context, **types, **inits)
        return SegmentRecurrence(attention, MEMORY, SIZE, dtype=jnp.float32)

    @nn.compact
    def __call__(self, x: jax.Array, resets: jax.Array, state: Any) -> tuple[Any, jax.Array]:
        """Runs over `[B, T, D]`."""
        state, y = self.attention()(nn.LayerNorm()(x), resets, state)
        cell = functools.partial(nn.GRUCell, SIZE)
        x, _ = cell()(x, nn.relu(y))
        y = nn.Dense(SIZE)(nn.relu(nn.Dense(4 * SIZE)(nn.LayerNorm()(x))))
        return state, cell()(x, nn.relu(y))[0]


def _memorax(name: str, T: int, B: int) -> tuple[Any, Callable[..., tuple[jax.Array, Any]]]:
    from memorax.networks.sequence_models import LRUCell, Memoroid, MinGRUCell

    key, shape = jax.random.key(0), (B, SIZE)
    module: nn.Module
    if name == "lru":
        module, state = _MemoraxLRU(), Memoroid(LRUCell(SIZE, SIZE)).initialize_carry(key, shape)
    elif name == "mingru":
        module, state = _MemoraxMinGRU(), Memoroid(MinGRUCell(SIZE)).initialize_carry(key, shape)
    else:
        module = _MemoraxGTrXL(T)
        state = module.attention().initialize_carry(key, shape)
    params = module.init(jax.random.key(1), jnp.zeros((B, T, SIZE)), jnp.zeros((B, T)), state)

    def run(params: Any, x: jax.Array, resets: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        # Ours and flax's lead with time: the peer's order is made outside of what is measured.
        carry, y = module.apply(params, x, resets, state)
        return y, carry

    return (params, state), run


def _program(
    made: tuple[Any, Callable[..., Any]], x: jax.Array, resets: jax.Array, gradient: bool
) -> Program:
    (params, state), run = made
    if gradient:

        def loss(params: Any, x: jax.Array, resets: jax.Array) -> jax.Array:
            return jnp.sum(jnp.square(run(params, x, resets, state)[0]))

        compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        return lambda: compiled(params, x, resets)
    acting = jax.jit(run)
    return lambda: acting(params, x, resets, state)


def case(name: str, peer: str, T: int, B: int, gradient: bool) -> tuple[Program, Program]:
    x = jax.random.normal(jax.random.key(0), (T, B, SIZE))
    resets = jnp.zeros((T, B), bool).at[T // 2].set(True)
    ours = _program(_ours(name, B), x, resets, gradient)
    if peer == "memorax":
        x, mask = jnp.swapaxes(x, 0, 1), resets.T.astype(jnp.float32)
        return ours, _program(_memorax(name, T, B), x, mask, gradient)
    if peer == "flax":
        cell = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}[name]
        return ours, _program(_flax(cell, B), x, resets, gradient)
    return ours, _program(_ours(peer, B), x, resets, gradient)


def _case(name: str, peer: str, T: int, B: int, gradient: bool, floor: float | None = None) -> Case:
    what = f"T={T}, B={B}, forward + backward" if gradient else f"acting, B={B}"
    peers = {
        "flax": {"lstm": "flax RNN(OptimizedLSTMCell)", "gru": "flax RNN(GRUCell)"}.get(name, ""),
        "memorax": "memorax",
        "lstm": "our LSTM",
    }
    return Case(
        f"{name} {SIZE}, {what}", peers[peer], functools.partial(case, name, peer, T, B, gradient), floor
    )


PEERS = {"lstm": "flax", "gru": "flax", "mingru": "memorax", "lru": "memorax", "gtrxl": "memorax"}
RUN = {name: peer for name, peer in PEERS.items() if peer == "flax" or MEMORAX}

CASES = [
    *(_case(name, peer, T, B, True) for name, peer in RUN.items() for T in LENGTHS for B in BATCHES),
    *(_case(name, peer, 1, B, False) for name, peer in RUN.items() for B in (1, 64)),
    *(_case(name, "lstm", 1024, B, True) for name in ("mingru", "lru", "gru", "gtrxl") for B in BATCHES),
    *(_case(name, "lstm", 1, 64, False) for name in ("mingru", "lru", "gru", "gtrxl")),
]
