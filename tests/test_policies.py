import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax.cores import GRUNetwork
from btnn_jax.layers import NoisyLinear
from btnn_jax.ops import categorical
from btnn_jax.ops.pixel_change import pixel_change_2d_estimator, pixel_change_shape
from btnn_jax.parameters import frozen_mask, with_pretrained
from btnn_jax.policies import AgentInput, UnrealPolicy, action_distribution, init_params, make_policy

IMAGE = jax.ShapeDtypeStruct((10, 10, 4), bool)
PHOTO = jax.ShapeDtypeStruct((42, 42, 3), jnp.uint8)
SIGNAL = jax.ShapeDtypeStruct((30, 5), jnp.float32)
ODD_SIGNAL = jax.ShapeDtypeStruct((32, 5), jnp.float32)  # of 15 cells
VECTOR = jax.ShapeDtypeStruct((7,), jnp.float32)
STREAMS = dict.fromkeys(("clock", "external", "internal"), VECTOR)


def draw(key, spec, lead):
    shape = (*lead, *spec.shape)
    if spec.dtype == bool:
        return jax.random.bernoulli(key, 0.3, shape)
    if spec.dtype == jnp.uint8:
        return jax.random.randint(key, shape, 0, 256, jnp.int32).astype(jnp.uint8)
    return jax.random.normal(key, shape)


def make_inputs(observation, depths, T=5, B=3, seed=0):
    key, action_key, reward_key, reset_key = jax.random.split(jax.random.key(seed), 4)
    leaves, structure = jax.tree.flatten(observation)
    keys = jax.random.split(key, len(leaves))
    return AgentInput(
        structure.unflatten([draw(k, spec, (T, B)) for k, spec in zip(keys, leaves, strict=True)]),
        jax.tree.map(lambda d: jax.random.randint(jax.random.clone(action_key), (T, B), 0, d), depths),
        jax.random.normal(reward_key, (T, B)),
        jax.random.bernoulli(reset_key, 0.2, (T, B)),
    )


def small(observation, depths=4, **fields):
    fields = {"hidden": (16,), "lstm": (8,), "num_filters": (4, 4), **fields}
    policy = make_policy(depths, observation, **fields)
    return policy, init_params(policy, jax.random.key(1), observation)


def means(policy, **fields):
    """`policy.apply` without noise, compiled as one."""
    return jax.jit(functools.partial(policy.apply, deterministic=True, **fields))


@pytest.mark.parametrize(
    "observation", [IMAGE, PHOTO, ODD_SIGNAL], ids=["image", "uint8", "signal of an odd number of cells"]
)
def test_the_pixel_control_grid_is_the_pixel_changes(observation):
    policy, params = small(observation, pc_cell=(2, 2) if observation is not PHOTO else (4, 4))
    inputs = make_inputs(observation, 4)
    frames = inputs.observation if len(observation.shape) == 3 else inputs.observation[..., None, :]
    change = pixel_change_2d_estimator(
        frames[1:], frames[:-1], stride=(2, 2) if observation is not PHOTO else (4, 4)
    )
    output, _ = means(policy)({"params": params}, inputs, policy.initial_state(3))
    q = means(policy, method=UnrealPolicy.pixel_control)({"params": params}, output.features)
    assert q.shape == (5, *change.shape[1:], 4)


def test_pixel_control_fits_frames_of_every_size():
    def grid(side, cell):
        policy = make_policy(2, jax.ShapeDtypeStruct((side, side + 1, 1), jnp.uint8), pc_cell=(cell, 1))
        q, _ = jax.eval_shape(policy.pc_head.init_with_output, jax.random.key(0), jnp.zeros((3, 8)))
        return q.shape

    for side in (3, 4, 5, 6, 9, 32, 84):
        for cell in (1, 2, 4):
            assert grid(side, cell) == (3, *pixel_change_shape((side, side + 1, 1), (cell, 1)), 2)


@pytest.mark.parametrize(
    ("observation", "depths"),
    [
        (VECTOR, 3),
        ({"external": SIGNAL, "internal": VECTOR}, {"EUR": 4, "USD": 4}),
        ({"frame": IMAGE, "scalar": jax.ShapeDtypeStruct((), jnp.float32)}, {"arm": {"left": 2, "right": 3}}),
    ],
    ids=["vector", "streams", "nested"],
)
def test_outputs_have_the_structure_of_the_spaces(observation, depths):
    policy, params = small(observation, depths, pixel_control=False)
    inputs = make_inputs(observation, depths)
    output, core = policy.apply({"params": params}, inputs, policy.initial_state(3), deterministic=True)
    assert jax.tree.map(lambda x: x.shape, output.logits) == jax.tree.map(lambda d: (5, 3, d), depths)
    assert output.value.shape == (5, 3)
    assert jax.tree.map(lambda x: x.shape, core) == (((3, 8), (3, 8)),)
    frames = jax.tree.map(lambda x: jnp.swapaxes(x[:3], 0, 1), inputs.observation)
    logits = policy.apply(
        {"params": params}, frames, deterministic=True, method=UnrealPolicy.reward_prediction
    )
    assert logits.shape == (3, 3)


KINDS = [
    ("unreal", "lstm"),
    ("stacked_lstm", "lstm"),
    ("unreal", "lru+gtrxl"),
    ("stacked_lstm", "gtrxl+gru"),
    ("stacked_lstm", "lru"),
]


@pytest.mark.parametrize(("kind", "core"), KINDS)
def test_step_by_step_equals_all_at_once(kind, core):
    policy, params = small(
        STREAMS, kind=kind, core=core, core_memory=3, pixel_control=False, reward_prediction=False
    )
    inputs, apply = make_inputs(STREAMS, 4), means(policy)
    whole, last = apply({"params": params}, inputs, policy.initial_state(3))
    core, values = policy.initial_state(3), []
    for t in range(5):
        now = jax.tree.map(lambda x, t=t: x[t : t + 1], inputs)
        output, core = apply({"params": params}, now, core)
        values.append(output.value[0])
    np.testing.assert_allclose(whole.value, jnp.stack(values), rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), last, core)


@pytest.mark.parametrize(("kind", "core"), KINDS)
def test_an_episodes_first_step_sees_nothing_of_the_one_before(kind, core):
    policy, params = small(
        STREAMS, kind=kind, core=core, core_memory=3, pixel_control=False, reward_prediction=False
    )
    inputs, apply = make_inputs(STREAMS, 4), means(policy)
    inputs = inputs._replace(reset=jnp.zeros((5, 3), bool).at[2].set(True))

    def values(inputs):
        return apply({"params": params}, inputs, policy.initial_state(3))[0].value

    def changed(t):
        return inputs._replace(
            observation=jax.tree.map(lambda x: x.at[t - 1].add(1.0), inputs.observation),
            last_action=inputs.last_action.at[t].set((inputs.last_action[t] + 1) % 4),
            last_reward=inputs.last_reward.at[t].add(1.0),
        )

    np.testing.assert_array_equal(values(inputs)[2:], values(changed(2))[2:])
    assert np.all(values(inputs)[3:] != values(changed(3))[3:])


def test_held_noise_repeats_and_new_noise_differs():
    policy, params = small(VECTOR, pixel_control=False)
    inputs = make_inputs(VECTOR, 4)

    def logits(seed):
        rngs = {"noise": jax.random.key(seed)}
        return policy.apply({"params": params}, inputs, policy.initial_state(3), rngs=rngs)[0].logits

    np.testing.assert_array_equal(logits(0), logits(0))
    assert np.all(logits(0) != logits(1))


def test_bfloat16_computes_but_answers_in_float32():
    policy, params = small(IMAGE, dtype=jnp.bfloat16)
    inputs = make_inputs(IMAGE, 4)
    output, core = means(policy)({"params": params}, inputs, policy.initial_state(3))
    assert {x.dtype for x in jax.tree.leaves((output.logits, output.value, core, params))} == {
        jnp.dtype("float32")
    }
    assert output.features.dtype == jnp.bfloat16
    exact, _ = means(small(IMAGE)[0])({"params": params}, inputs, policy.initial_state(3))
    np.testing.assert_allclose(output.value, exact.value, atol=0.05)


def test_the_distribution_over_a_dict_of_actions_adds_up():
    logits = {
        "a": jax.random.normal(jax.random.key(0), (6, 3)),
        "b": jax.random.normal(jax.random.key(1), (6, 2)),
    }
    distribution = action_distribution(logits)
    actions = distribution.sample(seed=jax.random.key(2))
    np.testing.assert_allclose(
        distribution.log_prob(actions), categorical.log_prob(logits, actions), rtol=1e-5
    )
    np.testing.assert_allclose(distribution.entropy(), categorical.entropy(logits), rtol=1e-5)
    chex.assert_trees_all_equal(distribution.mode(), jax.tree.map(lambda x: x.argmax(-1), logits))
    with jax.enable_x64(True):
        sample = distribution.sample(seed=jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(sample)} == {jnp.dtype(jnp.int32)}


def test_what_cannot_fit_is_said():
    with pytest.raises(ValueError, match=r"\(7,\); pixel control needs frames, leave it out"):
        make_policy(4, VECTOR, pixel_control=True)
    with pytest.raises(ValueError, match=r"H >= 3.* got \(2, 7, 1\).*leave it out"):
        make_policy(4, jax.ShapeDtypeStruct((2, 7, 1), bool), pixel_control=True)
    with pytest.raises(ValueError, match=r"streams must be arrays, got \{'inner': .*\} as 'arm'"):
        make_policy(4, {"arm": {"inner": VECTOR}, "leg": VECTOR}, pixel_control=False)
    with pytest.raises(ValueError, match=r"streams must be arrays, got \[.*\] as 'stream'"):
        make_policy(4, [VECTOR], pixel_control=False)
    with pytest.raises(ValueError, match="'one', 'other'"):
        make_policy(4, {"one": SIGNAL, "other": SIGNAL}, pixel_control=True)
    policy, params = small(VECTOR, pixel_control=False, reward_prediction=False)
    with pytest.raises(ValueError, match="pc_head"):
        policy.apply({"params": params}, jnp.zeros((2, 8)), method=UnrealPolicy.pixel_control)
    inputs = make_inputs(VECTOR, 4)
    for name, x in (("last_reward", jnp.zeros((1, 1))), ("last_action", jnp.zeros((5, 1), jnp.int32))):
        wrong = re.escape(f"{name} must have shape (5, 3) like reset, got {x.shape}")
        with pytest.raises(ValueError, match=wrong):
            policy.apply({"params": params}, inputs._replace(**{name: x}), policy.initial_state(3))
    with pytest.raises(ValueError, match="last_action must be integers, got float32"):
        policy.apply(
            {"params": params}, inputs._replace(last_action=jnp.zeros((5, 3))), policy.initial_state(3)
        )
    with pytest.raises(ValueError, match=r"last_action of the structure of action_depths, .*, got .*'leg'"):
        policy.apply({"params": params}, make_inputs(VECTOR, {"leg": 4}), policy.initial_state(3))
    with pytest.raises(ValueError, match="rp_head"):
        policy.apply({"params": params}, jnp.zeros((2, 3, 7)), method=UnrealPolicy.reward_prediction)


def test_no_two_noisy_layers_share_noise():
    """With weights of zero and deviations of the biases of one, each layer answers with its own noise."""
    policy, params = small(IMAGE)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.ones_like(x) if path[-1].key == "bias_sigma" else jnp.zeros_like(x), params
    )
    inputs = make_inputs(IMAGE, 4)
    _, state = policy.apply(
        {"params": params}, inputs, policy.initial_state(3), 3, rngs={"noise": jax.random.key(0)},
        method="init_heads", capture_intermediates=lambda module, _: isinstance(module, NoisyLinear),
        mutable=["intermediates"],
    )  # fmt: skip
    noises = [np.unique(x) for x in jax.tree.leaves(state["intermediates"])]
    assert sorted(len(noise) for noise in noises)[:3] == [1, 3, 4]
    assert len(noises) == 5
    assert len(np.unique(np.concatenate(noises))) == sum(map(len, noises))


def test_pretrained_parameters_must_fit():
    _, params = small(IMAGE)
    kernel = params["actor_critic"]["value"]["kernel_mu"]
    changed = with_pretrained(params, {"actor_critic": {"value": {"kernel_mu": kernel + 1}}})
    np.testing.assert_array_equal(changed["actor_critic"]["value"]["kernel_mu"], kernel + 1)
    chex.assert_trees_all_equal(changed["encoder"], params["encoder"])
    with pytest.raises(ValueError, match=r"no parameter actor_critic/value/kernel$"):
        with_pretrained(params, {"actor_critic": {"value": {"kernel": kernel}}})
    with pytest.raises(ValueError, match=r"actor_critic/value/kernel_mu has shape \(8, 1\), the .* \(9, 1\)"):
        with_pretrained(params, {"actor_critic": {"value": {"kernel_mu": jnp.zeros((9, 1))}}})
    with pytest.raises(ValueError, match=r"no parameters are in \['encode'\]"):
        frozen_mask(params, ("encode", "core"))


def test_reward_prediction_sees_as_many_frames_as_it_is_made_for():
    policy = make_policy(3, VECTOR, hidden=(4,), lstm=(), pixel_control=False)
    params = init_params(policy, jax.random.key(0), VECTOR, rp_frames=5)
    see = functools.partial(policy.apply, method=UnrealPolicy.reward_prediction, deterministic=True)
    assert see({"params": params}, jnp.zeros((2, 5, *VECTOR.shape))).shape == (2, 3)


def test_the_first_lstm_follows_the_world_and_the_second_the_agent_in_it():
    policy, params = small(STREAMS, kind="stacked_lstm", pixel_control=False, reward_prediction=False)
    inputs, apply = make_inputs(STREAMS, 4), means(policy)
    inputs = inputs._replace(reset=jnp.zeros((5, 3), bool))

    def states(**changed):
        return apply({"params": params}, inputs._replace(**changed), policy.initial_state(3))[1]

    first, second = states()

    def sees(**changed):
        after = states(**changed)
        return [
            not np.array_equal(one[1], other[1]) for one, other in zip((first, second), after, strict=True)
        ]

    def shifted(name):
        return {**inputs.observation, name: inputs.observation[name] + 1}

    assert sees(observation=shifted("external")) == [True, True]
    assert sees(last_reward=inputs.last_reward + 1) == [True, True]
    assert sees(observation=shifted("internal")) == [False, True]
    assert sees(observation=shifted("clock")) == [False, True]
    assert sees(last_action=(inputs.last_action + 1) % 4) == [False, True]


@pytest.mark.parametrize(
    ("heads", "trunk", "lstm"), [("shared", 5, (6, 8)), ("separate", 5, (8,)), ("split", 0, (8,))]
)
def test_stacked_lstms_learn_with_all_their_parameters(heads, trunk, lstm):
    depths = {"EUR": 3, "USD": 2}
    observation = {"external": SIGNAL, "internal": SIGNAL}
    fields = {
        "kind": "stacked_lstm",
        "heads": heads,
        "trunk": trunk,
        "lstm": lstm,
        "shared": ("external", "internal"),
    }
    policy, params = small(observation, depths, **fields)
    inputs = make_inputs(observation, depths)
    frames = jax.tree.map(lambda x: jnp.swapaxes(x[:3], 0, 1), inputs.observation)

    def answers(module, inputs, frames):
        output, core = module(inputs, module.initial_state(3))
        return output, core, module.pixel_control(output.features), module.reward_prediction(frames)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(params):
        out = policy.apply(
            {"params": params}, inputs, frames, rngs={"noise": jax.random.key(2)}, method=answers
        )
        leaves = jax.tree.leaves(out)
        weights = [draw(jax.random.key(k), x, ()) for k, x in enumerate(leaves)]
        return sum(jnp.vdot(weight, x) for weight, x in zip(weights, leaves, strict=True)), out

    gradients, (output, core, q, rp) = gradient(params)
    assert jax.tree.map(lambda x: x.shape, output.logits) == {"EUR": (5, 3, 3), "USD": (5, 3, 2)}
    assert (output.value.shape, output.features.shape, rp.shape) == ((5, 3), (5, 3, 8), (3, 3))
    assert jax.tree.map(lambda x: x.shape, q) == {"EUR": (5, 3, 14, 1, 3), "USD": (5, 3, 14, 1, 2)}
    assert jax.tree.map(lambda x: x.shape, core) == (((3, lstm[0]),) * 2, ((3, 8),) * 2)
    without = [
        jax.tree_util.keystr(path)
        for path, x in jax.tree_util.tree_leaves_with_path(gradients)
        if not x.any()
    ]
    assert without == []


def test_stacked_policies_take_any_two_cores():
    policy = make_policy(
        4,
        STREAMS,
        kind="stacked_lstm",
        core="lru+gtrxl",
        core_size=(4, 8),
        core_memory=2,
        pixel_control=False,
    )
    assert [type(core).__name__ for core in (policy.first, policy.core)] == ["LRUNetwork", "GTrXLNetwork"]
    assert [core.layers for core in (policy.first, policy.core)] == [(4,), (8,)]
    same = make_policy(4, STREAMS, kind="stacked_lstm", core="gru", core_size=(8,), pixel_control=False)
    assert same.first == same.core == GRUNetwork((8,))


def test_split_heads_take_the_logits_of_the_first_lstm():
    policy, params = small(
        STREAMS, kind="stacked_lstm", heads="split", pixel_control=False, reward_prediction=False
    )
    inputs, apply = make_inputs(STREAMS, 4), means(policy)
    changed = {**inputs.observation, "internal": inputs.observation["internal"] + 1}
    before, after = (
        apply({"params": params}, inputs._replace(observation=x), policy.initial_state(3))[0]
        for x in (inputs.observation, changed)
    )
    np.testing.assert_array_equal(before.logits, after.logits)
    assert np.all(before.value[1:] != after.value[1:])


def test_what_stacked_lstms_cannot_be_is_said():
    for observation, streams in (
        (SIGNAL, "one without a name"),
        ({"external": SIGNAL, "position": VECTOR}, r"\['external', 'position'\]"),
    ):
        with pytest.raises(ValueError, match=f"streams 'external' and 'internal', got {streams}"):
            make_policy(4, observation, kind="stacked_lstm")
    for fields, message in (
        ({"kind": "stacked"}, "kind must be 'unreal' or 'stacked_lstm', got 'stacked'"),
        ({"lstm": ()}, r"one or two sizes, got lstm=\(\)"),
        ({"core_size": (1, 2, 3)}, r"one or two sizes, got core_size=\(1, 2, 3\)"),
        ({"core": "gru+gru+lru"}, r"two cores, got core='gru\+gru\+lru'"),
        ({"heads": "two"}, "heads must be .*, got 'two'"),
        ({"heads": "separate"}, "size of their trunks, got trunk=0"),
        (
            {"heads": "split", "lstm": (6, 8)},
            r"one size, or a trunk, got outputs \(1, 1, 6\) and \(1, 1, 8\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            small(STREAMS, **{"kind": "stacked_lstm", "pixel_control": False, **fields})


@pytest.mark.parametrize("kind", ["unreal", "stacked_lstm"])
def test_a_last_action_of_8_bits_is_the_action_it_names(kind):
    observation = STREAMS if kind == "stacked_lstm" else VECTOR
    fields = {"lstm": (8, 8)} if kind == "stacked_lstm" else {}
    policy, params = small(
        observation, 300, kind=kind, pixel_control=False, reward_prediction=False, **fields
    )
    inputs = make_inputs(observation, 300)._replace(reset=jnp.zeros((5, 3), bool))
    outputs = [
        means(policy)(
            {"params": params},
            inputs._replace(last_action=jnp.broadcast_to(jnp.array([1, 200, 255], dtype), (5, 3))),
            policy.initial_state(3),
        )
        for dtype in (jnp.int32, jnp.uint8)
    ]
    chex.assert_trees_all_equal(*outputs)
