import dataclasses
import json

import pytest

from btnn_jax.training.config import AutoencoderConfig, UnrealConfig


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


def test_sizes_of_a_run():
    config = UnrealConfig(num_envs=4, rollout_length=8, total_steps=100, epochs=3, minibatches=2)
    assert (config.steps_per_update, config.num_updates, config.gradients_per_update) == (32, 4, 6)
    assert dataclasses.replace(config, algorithm="a2c").gradients_per_update == 1
    shards = dataclasses.replace(config, shards=2)
    assert (shards.steps_per_update, shards.num_updates) == (64, 2)
    assert AutoencoderConfig(steps=100, steps_per_update=30).num_updates == 4
