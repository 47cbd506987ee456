"""What every core must hold to: a table of cores and a table of checks, each of which has a planted fault.

A new core joins with one row of `CORES`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from btnn_jax.cores import (
    NETWORKS,
    Core,
    GRUNetwork,
    GTrXLNetwork,
    LRUNetwork,
    MinGRUNetwork,
    StackedCores,
    make_core,
    state_bytes,
)
from btnn_jax.networks import LSTMNetwork

T, B, D = 9, 3, 4

CORES = {
    "lstm": functools.partial(LSTMNetwork, (5, 4)),
    "gru": functools.partial(GRUNetwork, (5, 4)),
    "mingru": functools.partial(MinGRUNetwork, (5, 4)),
    "lru": functools.partial(LRUNetwork, (4, 6)),
    "gtrxl": functools.partial(GTrXLNetwork, (4, 8), memory=3, heads=2),
    "gtrxl-long": functools.partial(GTrXLNetwork, (6,), memory=11, heads=2),
    "stack": lambda **types: StackedCores(
        (LRUNetwork((6,), **types), GTrXLNetwork((4,), memory=2, heads=2, **types), GRUNetwork((5,), **types))
    ),
}
NO_GRADIENT_THROUGH_STATE = {"gtrxl", "gtrxl-long", "stack"}  # in all of the state or in a part of it


def normal(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def some_resets():
    """At the first step, at two steps in a row, in the middle and at the last step; none in the last sequence."""
    resets = np.zeros((T, B), bool)
    resets[[0, 4, 5, 3, 8], [0, 0, 0, 1, 1]] = True
    return resets


def example(core):
    """Inputs, parameters away from where they start, and a state that the core came to by itself."""
    x, state = normal((T, B, D)), core.initial_state(B)
    params = jax.jit(core.init)(jax.random.key(0), x, state)
    leaves, structure = jax.tree.flatten(params)
    params = structure.unflatten(
        [leaf + 0.3 * normal(leaf.shape, k).astype(leaf.dtype) for k, leaf in enumerate(leaves)]
    )
    before = normal((4, B, D), 1).at[:, 2].multiply(2)
    resets = jnp.zeros((4, B), bool).at[2, 1].set(True)
    state = jax.jit(core.apply)(params, before, state, resets=resets)[1]
    return x, params, state


def weigh(outputs):
    """A scalar that depends on every floating number of `outputs` differently."""
    return sum(
        jnp.sum(
            np.sin(1 + np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape) * leaf.astype(jnp.float32)
        )
        for leaf in jax.tree.leaves(outputs)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    )


def assert_close(actual, expected, rtol=2e-4, atol=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected)


def with_gradients(f, *arguments):
    """`f(*arguments)`, and the gradient of its outputs, all weighed differently, by the arguments."""
    gradients = jax.grad(lambda *a: weigh(f(*a)), argnums=tuple(range(len(arguments))))
    return jax.jit(lambda *a: (f(*a), gradients(*a)))(*arguments)


def rows(state, b):
    return jax.tree.map(lambda leaf: leaf[b : b + 1], state)


def join(parts, axis=0):
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis), *parts)


def check_packed(core):
    """Several episodes in one sequence are each episode alone, in outputs, state and gradients."""
    x, params, state = example(core)
    resets = some_resets()

    def packed(x, params):
        return core.apply(params, x, state, resets=jnp.asarray(resets))

    def alone(x, params):
        outputs, after = [], []
        for b in range(B):
            starts = sorted({0, *np.flatnonzero(resets[:, b]).tolist()})
            pieces = []
            for start, end in zip(starts, [*starts[1:], T], strict=True):
                one = core.initial_state(1) if resets[start, b] else rows(state, b)
                y, one = core.apply(params, x[start:end, b : b + 1], one)
                pieces.append(y)
            outputs.append(jnp.concatenate(pieces))
            after.append(one)
        return jnp.concatenate(outputs, axis=1), join(after)

    assert_close(with_gradients(packed, x, params), with_gradients(alone, x, params))


def check_chunks(core, size=4):
    """Pieces with the state carried from one to the next are the whole."""
    x, params, state = example(core)
    resets = jnp.asarray(some_resets())
    whole = jax.jit(core.apply)(params, x, state, resets=resets)
    pieces = []
    step = jax.jit(core.apply)
    for start in range(0, T, size):
        y, state = step(params, x[start : start + size], state, resets=resets[start : start + size])
        pieces.append(y)
    assert_close((jnp.concatenate(pieces), state), whole)


def check_steps(core):
    """A loop of single steps is the whole."""
    check_chunks(core, size=1)


def check_no_gradient_across_a_reset(core):
    """What comes before a reset has no influence on what comes after it, and has some where there is none."""
    x, params, state = example(core)
    resets = jnp.zeros((T, B), bool).at[4, 1].set(True)

    def after(x, state):
        y, final = core.apply(params, x, state, resets=resets)
        return weigh((y[4:], final))

    dx, dstate = jax.jit(jax.grad(after, argnums=(0, 1), allow_int=True))(x, state)
    assert not dx[:4, 1].any()
    assert dx[4:].any(-1).all()
    assert dx[2:4, ::2].any(-1).all()
    for leaf in jax.tree.leaves(dstate):
        if leaf.dtype != jax.dtypes.float0:
            assert not leaf[1].any()


def check_lengths(core):
    """A padded batch is every sequence alone, in outputs, state and gradients, whatever the padding is."""
    x, params, state = example(core)
    resets, lengths = some_resets(), np.array([T, 0, 5])
    past = np.arange(T)[:, None, None] >= lengths[None, :, None]

    def padded(x, params):
        return core.apply(params, x, state, resets=jnp.asarray(resets), lengths=jnp.asarray(lengths))

    def alone(x, params):
        outputs, after = [], []
        for b, length in enumerate(lengths):
            y, one = jnp.zeros((0, 1, 0)), rows(state, b)
            if length:
                y, one = core.apply(
                    params, x[:length, b : b + 1], one, resets=jnp.asarray(resets[:length, b : b + 1])
                )
                width = y.shape[-1]
            outputs.append((y, length))
            after.append(one)
        outputs = [
            jnp.zeros((T, 1, width)).at[:length].set(y) if length else jnp.zeros((T, 1, width))
            for y, length in outputs
        ]
        return jnp.concatenate(outputs, axis=1), join(after)

    expected = with_gradients(alone, x, params)
    assert_close(with_gradients(padded, x, params), expected)
    assert_close(with_gradients(padded, jnp.where(past, jnp.nan, x), params), expected)


def check_burn_in(core, burn_in=4):
    """Steps that only refresh the state change no output after them, and get no gradient."""
    x, params, state = example(core)
    resets = jnp.asarray(some_resets())

    def refreshed(x):
        _, fresh = core.apply(params, x[:burn_in], state, resets=resets[:burn_in])
        fresh = jax.lax.stop_gradient(fresh)
        return core.apply(params, x[burn_in:], fresh, resets=resets[burn_in:])

    outputs, (dx,) = with_gradients(refreshed, x)
    y, final = jax.jit(core.apply)(params, x, state, resets=resets)
    assert_close(outputs, (y[burn_in:], final))
    assert not dx[:burn_in].any()
    assert dx[burn_in:].any(-1).all()


def check_state(core):
    """The state is a tuple of arrays `[B, ...]` whose shapes and types stay, as the rollout's loop needs it."""
    x, params, state = example(core)
    assert isinstance(state, tuple)

    def kinds(state):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)

    assert kinds(state) == kinds(core.initial_state(B))
    assert all(leaf.shape[0] == B for leaf in jax.tree.leaves(state))
    reset = jax.jit(core.apply)(params, x, state, resets=jnp.ones((T, B), bool))
    fresh = jax.jit(core.apply)(params, x[-1:], core.initial_state(B))
    assert_close((reset[0][-1:], reset[1]), fresh)


def check_vmap(core):
    """Many agents side by side in a scan, as seeds are trained, are each of them alone."""
    x, params, state = example(core)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.5 * leaf]), params)
    resets = jnp.asarray(some_resets())
    gradient = jax.grad(lambda params: weigh(core.apply(params, x, state, resets=resets)))

    def descend(params, _):
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, jax.vmap(gradient)(params)), None

    after = jax.jit(lambda many: jax.lax.scan(descend, many, length=1)[0])(many)
    for k in range(2):
        one = jax.tree.map(lambda leaf, k=k: leaf[k], many)
        one = jax.tree.map(lambda p, g: p - 0.01 * g, one, jax.jit(gradient)(one))
        assert_close(jax.tree.map(lambda leaf, k=k: leaf[k], after), one)


CHECKS = [
    check_packed,
    check_chunks,
    check_steps,
    check_no_gradient_across_a_reset,
    check_lengths,
    check_burn_in,
    check_state,
    check_vmap,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", CORES)
def test_conforms(name, check):
    check(CORES[name]())


@pytest.mark.parametrize("name", CORES)
def test_bfloat16_rounds_the_products_alone(name):
    core, small = CORES[name](), CORES[name](dtype=jnp.bfloat16)
    x, params, _ = example(core)

    def run(core):
        resets = jnp.asarray(some_resets())
        return lambda x, params: core.apply(params, x, core.initial_state(B), resets=resets)

    (y, after), gradients = with_gradients(run(small), x, params)
    assert y.dtype == jnp.bfloat16
    memory = {"gtrxl", "gtrxl-long", "stack"}  # GTrXL keeps its memory in the type of computation
    assert name in memory or all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(after))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradients))
    expected = with_gradients(run(core), x, params)
    as_float32 = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)  # noqa: E731
    for a, b in zip(
        jax.tree.leaves(as_float32(((y, after), gradients))),
        jax.tree.leaves(as_float32(expected)),
        strict=True,
    ):
        assert jnp.linalg.norm(a - b) <= 0.2 * jnp.linalg.norm(b)  # a rounded relu may be another one


@pytest.mark.parametrize("name", CORES)
def test_parameters_may_be_bfloat16(name):
    core = CORES[name](param_dtype=jnp.bfloat16)
    x, state = jnp.zeros((T, B, D), jnp.bfloat16), core.initial_state(B)
    params = core.init(jax.random.key(0), x, state)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(params))
    y, after = jax.jit(core.apply)(params, x, state)
    assert y.dtype == jnp.bfloat16
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, state)


class Faulty(nn.Module):
    """A GRU with a fault, one for each check."""

    fault: str

    @nn.nowrap
    def initial_state(self, batch_size):
        return GRUNetwork((5,)).initial_state(batch_size)

    @nn.compact
    def __call__(self, x, state, *, resets=None, lengths=None, deterministic=True):
        fault = self.fault
        core = GRUNetwork((5,))
        given = resets
        if fault == "resets are ignored":
            resets = None
        if fault == "resets are a step late" and resets is not None:
            resets = jnp.concatenate([jnp.zeros_like(resets[:1]), resets[:-1]])
        if fault == "the reset of the first step is forgotten" and resets is not None:
            resets = resets.at[0].set(False)
        if fault == "lengths are ignored":
            lengths = None
        y, after = core(x, state, resets=resets, lengths=lengths)
        if fault == "a reset lets a little through" and given is not None:
            before = jnp.concatenate([jnp.zeros_like(y[:1]), y[:-1]])
            y = y + 0.01 * jnp.where(given[..., None], before, 0)
        if fault == "a reset lets gradients through" and given is not None:
            before = jnp.concatenate([jnp.zeros_like(y[:1]), y[:-1]])
            leak = jnp.where(given[..., None], before, 0)
            y = y + (leak - jax.lax.stop_gradient(leak))
        if fault == "a sequence starts anew":
            y, after = core(x, self.initial_state(x.shape[1]), resets=resets, lengths=lengths)
        if fault == "the state is the one before the last step":
            after = (
                core(x[:-1], state, resets=None if resets is None else resets[:-1])[1]
                if len(x) > 1
                else state
            )
        if fault == "padding leaks into the mean" and lengths is not None:
            y = y - 0.1 * x.mean((0, 2))[None, :, None]
        if fault == "outputs follow the future":
            y = y + 0.1 * jnp.concatenate([y[1:], jnp.zeros_like(y[:1])])
        if fault == "no gradient flows at all":
            y, after = jax.lax.stop_gradient((y, after))
        if fault == "the state is rounded":
            after = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), after)
        if fault == "a batch is one agent":
            after = jax.tree.map(
                lambda leaf: jnp.broadcast_to(leaf.mean(0, keepdims=True), leaf.shape), after
            )
        return y, after


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        (check_packed, "resets are ignored"),
        (check_packed, "resets are a step late"),
        (check_packed, "the reset of the first step is forgotten"),
        (check_packed, "a reset lets a little through"),
        (check_packed, "a reset lets gradients through"),
        (check_packed, "a batch is one agent"),
        (check_chunks, "a sequence starts anew"),
        (check_chunks, "the state is the one before the last step"),
        (check_chunks, "outputs follow the future"),
        (check_steps, "a sequence starts anew"),
        (check_steps, "the state is the one before the last step"),
        (check_no_gradient_across_a_reset, "resets are ignored"),
        (check_no_gradient_across_a_reset, "a reset lets gradients through"),
        (check_no_gradient_across_a_reset, "no gradient flows at all"),
        (check_lengths, "lengths are ignored"),
        (check_lengths, "padding leaks into the mean"),
        (check_burn_in, "a sequence starts anew"),
        (check_burn_in, "no gradient flows at all"),
        (check_state, "resets are ignored"),
        (check_state, "the state is rounded"),
    ],
)
def test_each_check_finds_a_planted_fault(check, fault):
    check(Faulty("none"))
    with pytest.raises(AssertionError):
        check(Faulty(fault))


@pytest.mark.parametrize("name", sorted(CORES.keys() - NO_GRADIENT_THROUGH_STATE))
def test_gradients_flow_through_the_state(name):
    core = CORES[name]()
    x, params, state = example(core)
    _, (dstate,) = with_gradients(lambda state: core.apply(params, x, state)[0], state)
    assert all(leaf.any(-1).all() for leaf in jax.tree.leaves(dstate))


def test_no_gradient_flows_into_gtrxls_memory():
    core = CORES["gtrxl"]()
    x, params, state = example(core)
    gradient = jax.grad(lambda state: weigh(core.apply(params, x, state)), allow_int=True)(state)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient) if leaf.dtype != jax.dtypes.float0)


@pytest.mark.parametrize("name", NETWORKS)
def test_cores_are_made_by_name(name):
    core = make_core(name, (8, 4), memory=5)
    assert isinstance(core, Core)
    assert core.layers == (8, 4)
    assert (
        state_bytes(core)
        == {
            "lstm": 2 * 12 * 4,
            "gru": 12 * 4,
            "mingru": 12 * 4,
            "lru": 2 * 12 * 4,
            "gtrxl": 5 * 12 * 4 + 2 * 4,
        }[name]
    )


def test_several_cores_are_stacked_by_name():
    core = make_core("lru+gtrxl+lstm", (8, 4, 6), memory=5)
    assert [part.layers for part in core.cores] == [(8,), (4,), (6,)]
    assert core.cores[1].memory == 5
    assert [part.layers for part in make_core("gru+lru", (7,)).cores] == [(7,), (7,)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_core("gur", (8,)), "one of lstm, gru, mingru, lru, gtrxl, got 'gur'"),
        (lambda: make_core("gru+", (8,)), "got ''"),
        (lambda: make_core("gru", ()), r"'gru' needs 1 sizes, got \(\)"),
        (lambda: make_core("gru+lru", (8, 8, 8)), r"'gru\+lru' needs 2 sizes, got \(8, 8, 8\)"),
        (
            lambda: GTrXLNetwork((6,)).init(jax.random.key(0), *inputs(GTrXLNetwork((6,)))),
            "heads must divide",
        ),
        (lambda: GTrXLNetwork((8,), memory=0).initial_state(1), "memory must be at least 1 step, got 0"),
        (
            lambda: MinGRUNetwork((4,), max_timescale=2.0).init(
                jax.random.key(0), *inputs(MinGRUNetwork((4,)))
            ),
            "max_timescale must be None or above 2 steps, got 2.0",
        ),
        (lambda: LRUNetwork((4,), r_max=1.0).init(jax.random.key(0), *inputs(LRUNetwork((4,)))), "r_max < 1"),
        (lambda: run(GRUNetwork((4,)), state=()), "state must be as initial_state gives it"),
        (lambda: run(GRUNetwork((4,)), x=jnp.zeros((T, D))), "time-major"),
        (lambda: run(GRUNetwork((4,)), x=jnp.zeros((T, B, D), jnp.int32)), "x must be floating, got int32"),
        (lambda: run(LRUNetwork((4,)), resets=jnp.zeros((B, T), bool)), r"resets must have shape \(9, 3\)"),
        (lambda: run(LRUNetwork((4,)), resets=jnp.zeros((T, B))), "resets must be bool"),
        (lambda: run(MinGRUNetwork((4,)), lengths=jnp.zeros(T, int)), r"lengths must have shape \(3,\)"),
        (lambda: run(MinGRUNetwork((4,)), lengths=jnp.zeros(B)), "lengths must be integers"),
        (
            lambda: StackedCores((GRUNetwork((4,)),)).init(jax.random.key(0), jnp.zeros((T, B, D)), ()),
            "1 cores",
        ),
    ],
)
def test_what_a_core_cannot_be_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def inputs(core):
    return jnp.zeros((T, B, D)), core.initial_state(B)


def run(core, **changes):
    arguments = dict(zip(("x", "state"), inputs(core), strict=True)) | changes
    return core.init(jax.random.key(0), **arguments)


def test_dropout_is_between_the_layers():
    core = GRUNetwork((8,), dropout_rate=0.5)
    x, params, state = example(core)
    kept = core.apply(params, x, state)[0]
    dropped = core.apply(params, x, state, deterministic=False, rngs={"dropout": jax.random.key(0)})[0]
    where = dropped != 0
    assert 0.3 < where.mean() < 0.7
    np.testing.assert_allclose(dropped[where], 2 * kept[where], rtol=1e-6)


def test_mingrus_start_with_memories_of_all_lengths():
    def start(max_timescale):
        core = MinGRUNetwork((512,), max_timescale=max_timescale)
        return core.init(jax.random.key(0), *inputs(core))["params"]["layer_0"]

    time = jnp.exp(-start(30.0)["bias"][:512])
    assert 1 < time.min() < 2
    assert 28 < time.max() < 29
    paper = start(None)
    for x in (paper["bias"], paper["kernel"], start(30.0)["bias"][512:], start(30.0)["kernel"]):
        assert 0.45 < jnp.abs(x).max() < D**-0.5


def test_lrus_eigenvalues_start_on_their_ring():
    core = LRUNetwork((512,), r_min=0.5, r_max=0.8, max_phase=0.1)
    layer = core.init(jax.random.key(0), *inputs(core))["params"]["layer_0"]
    size, phase = jnp.exp(-jnp.exp(layer["nu_log"])), jnp.exp(layer["theta_log"])
    assert 0.5 < size.min() < 0.52
    assert 0.79 < size.max() < 0.8
    np.testing.assert_allclose((size**2).mean(), (0.25 + 0.64) / 2, atol=0.02)  # uniform on the ring's area
    assert 0 < phase.min() < 0.01
    assert 0.09 < phase.max() < 0.1
    np.testing.assert_allclose(jnp.exp(layer["gamma_log"]), jnp.sqrt(1 - size**2), rtol=1e-5)
    np.testing.assert_allclose(layer["kernel_in"].std(), (2 * 512) ** -0.5, rtol=0.02)
    np.testing.assert_allclose(layer["kernel_out"].std(), 512**-0.5, rtol=0.02)


def test_gtrxls_gates_start_near_the_identity():
    core = GTrXLNetwork((64,), gate_bias=20.0)
    x = normal((T, B, 64))
    y, _ = core.init_with_output(jax.random.key(0), x, core.initial_state(B))[0]
    np.testing.assert_allclose(y, x, atol=1e-5)
    y, _ = GTrXLNetwork((64,)).init_with_output(jax.random.key(0), x, core.initial_state(B))[0]
    assert 0.05 < jnp.abs(y - x).mean() < 0.5


def test_gtrxl_sees_its_memory_and_nothing_before_it():
    core = GTrXLNetwork((8,), memory=3, heads=2)
    x, params, _ = example(core)
    state = core.initial_state(B)
    dx = jax.grad(lambda x: weigh(core.apply(params, x, state)[0][6]))(x)
    assert dx.any((1, 2)).tolist() == [False, False, False, True, True, True, True, False, False]
