"""One train step, many mappings: all of them learn the same."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from btnn_jax import envs
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.mapping import make_mapped, state_prefix, with_shardings
from btnn_jax.training.unreal import hyperparameters, make_unreal

CONFIG = UnrealConfig(
    shards=8,
    num_envs=2,
    rollout_length=8,
    total_steps=8 * 16 * 20,
    epochs=1,
    minibatches=2,
    entropy_beta_final=0.0,
    hidden=(8,),
    lstm=(8,),
    pc_weight=0,
    replay_length=32,
    replay_batch=2,
    rp_batch=4,
)
BARE = dataclasses.replace(CONFIG, lstm=(), vr_weight=0, rp_weight=0)
ENV = envs.make("probe-memory")


def trained(mapped, updates=10):
    state, step = jax.jit(mapped.init)(jax.random.key(0)), jax.jit(mapped.step, donate_argnums=0)
    curve = []
    for _ in range(updates):
        state, metrics = step(state)
        curve.append(jax.device_get(metrics))
    return jax.device_get(state.params), curve, state


@pytest.fixture(scope="module")
def one_device():
    return trained(make_mapped(CONFIG, ENV))


def test_eight_devices_learn_what_one_learns(one_device):
    assert jax.device_count() == 8
    params, curve, state = trained(make_mapped(CONFIG, ENV, devices=jax.devices()))
    chex.assert_trees_all_close(params, one_device[0], atol=1e-5)
    chex.assert_trees_all_close(curve, one_device[1], atol=1e-5)
    parts = state.replay.steps.observation.addressable_shards
    assert len({part.device for part in parts}) == 8
    assert {part.data.shape[0] for part in parts} == {1}
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves((state.params, state.opt_state)))


@pytest.mark.slow
def test_eight_devices_learn_what_one_learns_with_pixels_too():
    config = dataclasses.replace(CONFIG, pc_weight=0.1, num_filters=(2,))
    env = envs.make("probe-pixels")
    expected, mapped = (trained(make_mapped(config, env, devices=jax.devices()[:n])) for n in (1, 8))
    chex.assert_trees_all_close(mapped[:2], expected[:2], atol=1e-5)


def test_pmap_learns_what_vmap_learns(one_device):
    init, step, *_ = make_unreal(CONFIG, ENV, axis_name="devices")
    keys = jnp.broadcast_to(jax.random.key(0), 8)
    state, step = jax.pmap(init, axis_name="devices")(keys), jax.pmap(step, axis_name="devices")
    for _ in range(10):
        state, metrics = step(state)
    for device in range(8):
        params, last = jax.tree.map(lambda x, d=device: x[d], jax.device_get((state.params, metrics)))
        chex.assert_trees_all_close(params, one_device[0], atol=1e-5)
        chex.assert_trees_all_close(last, one_device[1][-1], atol=1e-5)


def test_a_compiler_that_divides_the_program_itself_learns_the_same():
    """`jit` over a mesh: environments sharded, parameters replicated, the optimizer's state sharded too."""
    mapped = make_mapped(dataclasses.replace(BARE, hidden=(16,)), ENV)
    expected = trained(mapped)
    mesh = Mesh(np.asarray(jax.devices()), ("devices",))

    def first_axis(leaf):
        divisible = leaf.ndim and leaf.shape[0] % 8 == 0
        return NamedSharding(mesh, P("devices") if divisible else P())

    state = jax.jit(mapped.init)(jax.random.key(0))
    sharded, replicated = NamedSharding(mesh, P("devices")), NamedSharding(mesh, P())
    where = state_prefix(each=sharded, all_=replicated).replace(
        opt_state=jax.tree.map(first_axis, state.opt_state)
    )
    state = jax.device_put(state, where)
    step = jax.jit(mapped.step, out_shardings=(where, replicated))
    for _ in range(10):
        state, _ = step(state)
    chex.assert_trees_all_close(jax.device_get(state.params), expected[0], atol=1e-5)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim and leaf.shape[0] == 16]
    assert moments
    assert not any(leaf.is_fully_replicated for leaf in moments)


def test_shards_do_not_share_a_stream():
    mapped = make_mapped(BARE, ENV)
    state = jax.jit(mapped.init)(jax.random.key(0))
    for keys, count in ((state.actors.keys, 8 * BARE.num_envs), (state.key, 8)):
        assert len(np.unique(jax.random.key_data(keys).reshape(count, -1), axis=0)) == count


def test_without_devices_the_first_one_is_used(one_device):
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(one_device[2]))


def test_hyperparameters_may_be_given():
    given = hyperparameters(dataclasses.replace(BARE, entropy_beta=0.7))
    state = jax.jit(make_mapped(BARE, ENV).init)(jax.random.key(0), given)
    chex.assert_trees_all_close(state.hyper, given)


def test_seeds_lead_and_shards_are_divided_after_them():
    mapped = make_mapped(BARE, ENV, devices=jax.devices())
    shapes = jax.eval_shape(jax.vmap(mapped.init), jax.random.split(jax.random.key(0), 3))
    state = with_shardings(shapes, mapped.shardings, lead=1)
    assert state.key.shape == (3, 8)
    assert state.key.sharding.shard_shape((3, 8)) == (3, 1)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))


def test_a_population_learns_as_its_members_do_alone():
    """Learning rates, entropy weights and weights of tasks as values of one program."""
    config = dataclasses.replace(
        BARE, shards=1, algorithm="a2c", vr_weight=0.5, learning_rate_schedule="constant"
    )
    members = [config, dataclasses.replace(config, learning_rate=0.01, entropy_beta=0.1, vr_weight=2.0)]
    init, step, *_ = make_unreal(config, ENV)
    hyper = jax.tree.map(lambda *x: jnp.asarray(x, jnp.float32), *map(hyperparameters, members))
    state = jax.jit(jax.vmap(init))(jnp.broadcast_to(jax.random.key(0), 2), hyper)
    step = jax.jit(jax.vmap(step))
    for _ in range(4):
        state, metrics = step(state)
    for index, member in enumerate(members):
        init_one, step_one, *_ = make_unreal(member, ENV)
        alone, step_one = jax.jit(init_one)(jax.random.key(0)), jax.jit(step_one)
        for _ in range(4):
            alone, one_metrics = step_one(alone)
        part = jax.tree.map(lambda x, i=index: x[i], (state.params, metrics))
        chex.assert_trees_all_close(part, (alone.params, one_metrics), rtol=1e-4, atol=1e-5)
    first, second = (jax.tree.leaves(state.params)[0][i] for i in range(2))
    assert not np.allclose(first, second, atol=1e-4)


def test_shards_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match="8 shards cannot be divided equally among 3 devices"):
        make_mapped(BARE, ENV, devices=jax.devices()[:3])
    with pytest.raises(ValueError, match="8 shards need an axis_name"):
        jax.eval_shape(make_unreal(BARE, ENV)[0], jax.random.key(0))
    init, _, *_ = make_unreal(BARE, ENV, axis_name="x")
    with pytest.raises(ValueError, match="must be the size of the axis 'x', 4, got 8"):
        jax.eval_shape(jax.vmap(init, axis_name="x", axis_size=4, in_axes=None), jax.random.key(0))
