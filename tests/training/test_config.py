import dataclasses
import json
import math
import random

import jax
import numpy as np
import pytest

from btnn_jax import envs
from btnn_jax.cores import NETWORKS
from btnn_jax.training.config import CORES, AutoencoderConfig, UnrealConfig
from btnn_jax.training.unreal import make_unreal


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"discount": 1.5}, "discount must be between 0 and 1, got 1.5"),
        ({"pc_discount": 1.5}, "pc_discount must be between 0 and 1, got 1.5"),
        ({"max_grad_norm": 0.0}, r"max_grad_norm must be above 0, got 0\.0"),
        ({"learning_rate": 0.0}, r"learning_rate must be above 0, got 0\.0"),
        ({"vr_weight": -1.0}, r"vr_weight must be at least 0, got -1\.0"),
        ({"algorithm": "dqn"}, "algorithm must be one of a2c, ppo, got 'dqn'"),
        (
            {"learning_rate_schedule": "step"},
            "learning_rate_schedule must be one of constant, linear, cosine, got 'step'",
        ),
        ({"autoencoder": "vae"}, "autoencoder must be None or one of conv2d, .*, got 'vae'"),
        ({"ae_weight": 1.0}, r"ae_weight must be 0 without an autoencoder, got 1\.0"),
        ({"minibatches": 3}, "minibatches must be a divisor of num_envs=64, got 3"),
        ({"replay_length": 100}, "replay_length must be a multiple of rollout_length=32, got 100"),
        ({"replay_length": 32}, "replay_length must be at least .* = 64, got 32"),
        ({"replay_length": 64, "replay_burn_in": 8}, "replay_length must be at least .* = 72, got 64"),
        ({"replay_burn_in": 32}, "replay_burn_in must be at least 0 and below rollout_length=32, got 32"),
        ({"rp_frames": 513}, "rp_frames must be at most replay_length=512, got 513"),
        (
            {"core": "gur"},
            r"core must be one of lstm, gru, mingru, lru, gtrxl, or several joined by '\+', got 'gur'",
        ),
        ({"core": "gru+"}, r"core must be one of .*, got 'gru\+'"),
        ({"core_size": ()}, r"core_size must be None or at least one size, got \(\)"),
        ({"core": "gru", "core_size": (0,)}, r"core_size must be sizes of at least 1, got \(0,\)"),
        ({"core": "gru", "lstm": ()}, r"lstm must be at least one size for core 'gru', got \(\)"),
        (
            {"core": "gru+lru", "core_size": (1, 2, 3)},
            r"core_size must be one size, or 2 for core 'gru\+lru', got \(1, 2, 3\)",
        ),
        ({"core_memory": 0}, "core_memory must be at least 1, got 0"),
        ({"replay_state": "old"}, "replay_state must be one of stored, zero, got 'old'"),
    ],
)
def test_a_bad_value_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        UnrealConfig(**fields)


def test_without_tasks_the_replay_does_not_matter():
    off = {"pc_weight": 0, "vr_weight": 0, "rp_weight": 0}
    assert not UnrealConfig(**off, replay_length=1).replays
    assert all(UnrealConfig(**off | {task: 0.1}).replays for task in off)


def test_it_survives_json():
    config = UnrealConfig(lstm=(8, 4), entropy_beta_final=0.0, num_filters=(4,))
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in config.to_dict().items()}
    assert UnrealConfig.from_dict(fields) == config
    with pytest.raises(ValueError, match="unknown fields \\['speed'\\]"):
        UnrealConfig.from_dict({**fields, "speed": 1})
    layers = AutoencoderConfig(layer_config=((4, (3, 1), (2, 1)),))
    assert AutoencoderConfig.from_dict(json.loads(json.dumps(layers.to_dict()))) == layers


def test_the_cores_are_those_that_there_are():
    assert tuple(NETWORKS) == CORES


@pytest.mark.parametrize(
    ("fields", "sizes"),
    [
        ({}, (128,)),
        ({"lstm": (64, 32)}, (64, 32)),
        ({"lstm": ()}, ()),
        ({"core_size": (16,)}, (16,)),
        ({"core": "gru"}, (128,)),
        ({"core": "gru", "lstm": (), "core_size": (8, 4)}, (8, 4)),
        ({"core": "lru+gru", "core_size": (8, 4)}, (8, 4)),
    ],
)
def test_sizes_of_the_core(fields, sizes):
    assert UnrealConfig(**fields).core_sizes == sizes


def test_sizes_of_a_run():
    config = UnrealConfig(num_envs=4, rollout_length=8, total_steps=100, epochs=3, minibatches=2)
    assert (config.steps_per_update, config.num_updates, config.gradients_per_update) == (32, 4, 6)
    assert dataclasses.replace(config, algorithm="a2c").gradients_per_update == 1
    shards = dataclasses.replace(config, shards=2)
    assert (shards.steps_per_update, shards.num_updates) == (64, 2)
    assert AutoencoderConfig(steps=100, steps_per_update=30).num_updates == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rollout_length": 1.5}, "rollout_length must be a whole number, got 1.5"),
        ({"rollout_length": 32.0}, "rollout_length must be a whole number, got 32.0"),
        ({"total_steps": math.inf}, "total_steps must be a whole number, got inf"),
        ({"total_steps": 10**30}, "total_steps must be a whole number, got 1000"),
        ({"total_steps": 10**15}, "total_steps must be at most 2\\^31 updates, got"),
        ({"learning_rate": math.inf}, "learning_rate must be a finite number, got inf"),
        ({"learning_rate": math.nan}, "learning_rate must be a finite number, got nan"),
        ({"learning_rate": 1e39}, "learning_rate must be a finite number, got 1e"),
        ({"noisy": "no"}, "noisy must be True or False, got 'no'"),
        ({"noisy": 1}, "noisy must be True or False, got 1"),
        ({"num_envs": "8"}, "num_envs must be a whole number, got '8'"),
        ({"num_envs": True}, "num_envs must be a whole number, got True"),
        ({"frozen": "encoder"}, "frozen must be a tuple of strings, got 'encoder'"),
        ({"hidden": None}, "hidden must be a tuple of whole numbers, got None"),
        ({"lstm": [8]}, r"lstm must be a tuple of whole numbers, got \[8\]"),
        ({"lstm": (8, 0)}, r"lstm must be sizes of at least 1, got \(8, 0\)"),
        ({"pc_cell": (2,)}, r"pc_cell must be a tuple of 2 whole numbers, got \(2,\)"),
        ({"num_filters": ()}, "num_filters must be None or at least one size"),
        ({"algorithm": None}, "algorithm must be a string, got None"),
        ({"entropy_beta_final": "low"}, "entropy_beta_final must be None or a finite number, got 'low'"),
        ({"ae_layers": ((4, 3, 1),)}, "ae_layers must be None or a tuple of layers, each"),
        ({"ae_layers": ((4, (3, 3), (0, 1)),)}, "ae_layers must be layers of sizes of at least 1"),
        ({"ae_layers": ()}, "ae_layers must be None or at least one layer"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(fields, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        UnrealConfig(**fields)


@pytest.mark.parametrize("content", [[], None, "config", 3])
def test_what_is_no_dict_is_no_configuration(content):
    with pytest.raises(ValueError, match=f"must be a dict of fields, got {type(content).__name__}"):
        UnrealConfig.from_dict(content)


def test_numpy_numbers_are_numbers():
    config = UnrealConfig(num_envs=np.int64(8), learning_rate=np.float32(0.5), hidden=(np.int32(4),))
    assert (config.num_envs, config.learning_rate, config.hidden) == (8, 0.5, (4,))


def test_a_configuration_of_an_earlier_version_means_what_it_meant():
    fields = UnrealConfig().to_dict()
    assert fields.pop("normalize_returns") is True
    assert UnrealConfig.from_dict(fields).normalize_returns is False


POOL = [
    0,
    1,
    2,
    4,
    8,
    16,
    -1,
    3,
    0.0,
    0.5,
    1.0,
    1.5,
    1e-3,
    1e39,
    math.inf,
    -math.inf,
    math.nan,
    "",
    "ppo",
    "a2c",
    "no",
]
POOL += [
    "linear",
    "bfloat16",
    "conv2d",
    "encoder",
    None,
    True,
    False,
    (),
    (2,),
    (2, 2),
    (0,),
    (1.5,),
    ("core",),
    [2],
    {},
]
SMALL = {
    "num_envs": 4, "rollout_length": 4, "minibatches": 2, "epochs": 1, "total_steps": 64, "hidden": (4,), "lstm": (4,),
    "num_filters": (2,), "replay_length": 16, "replay_batch": 2, "rp_batch": 2,
}  # fmt: skip


def attempt(make):
    """What `make` gives, or the message of the ValueError that it raises."""
    try:
        return make()
    except ValueError as error:
        return str(error)


def random_configurations(count, seed):
    """Configurations of which some fields are drawn from good and bad values, and the refusals of the others."""
    draw = random.Random(seed)
    names = [field.name for field in dataclasses.fields(UnrealConfig)]
    made, refused = [], []
    for _ in range(count):
        fields = SMALL | {name: draw.choice(POOL) for name in draw.sample(names, draw.randint(1, 3))}
        result = attempt(lambda fields=fields: UnrealConfig(**fields))
        (refused if isinstance(result, str) else made).append(result)
    for message in refused:
        assert message.partition(" must be ")[0] in names
        assert ", got " in message
    return made, refused


def test_random_configurations_are_refused_by_name_or_can_be_written_down():
    made, refused = random_configurations(2000, seed=0)
    assert min(len(made), len(refused)) > 100
    for config in made:
        assert UnrealConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def built(configs):
    """The train steps of those of the configurations that fit the environment, with the shapes of their states."""
    env = envs.make("probe-pixels")
    for config in configs:
        made = attempt(lambda config=config: make_unreal(dataclasses.replace(config, shards=1), env))
        state = (
            made
            if isinstance(made, str)
            else attempt(lambda made=made: jax.eval_shape(made.init, jax.random.key(0)))
        )
        if isinstance(state, str):
            assert "\n" not in state
        else:
            yield made, state


def two_finite_steps(configs):
    """How many of these configurations make two finite steps; the others do not fit the environment."""
    count = 0
    for made, _ in built(configs):
        state, step = jax.jit(made.init)(jax.random.key(0)), jax.jit(made.step)
        for _ in range(2):
            state, metrics = step(state)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, metrics)))
        count += 1
    return count


def test_what_is_accepted_makes_two_finite_steps():
    assert two_finite_steps(random_configurations(200, seed=1)[0][:2]) == 2


def test_what_is_accepted_has_a_train_step_that_keeps_the_shapes_of_its_state():
    count = 0
    for made, state in built(random_configurations(400, seed=3)[0][:20]):
        after, metrics = jax.eval_shape(made.step, state)
        before, now = (jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (state, after))
        assert before == now
        assert all(x.shape == () for x in metrics.values())
        count += 1
    assert count >= 15


@pytest.mark.slow
def test_what_is_accepted_makes_two_finite_steps_of_many():
    assert two_finite_steps(random_configurations(500, seed=2)[0][:30]) >= 20
