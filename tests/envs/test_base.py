"""What is wrong with an environment is said in one line."""

import jax
import jax.numpy as jnp
import pytest

from btnn_jax import envs
from btnn_jax._errors import check_known
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.unreal import make_unreal

FLOAT, INT = jnp.float32(0), jnp.int32(0)
SEEN = {"a": jnp.zeros(2), "b": jnp.zeros((), jnp.uint8)}


class Fake:
    """An environment that keeps the protocol until a test changes an attribute."""

    def __init__(self):
        self.name, self.observation, self.action_depths = (
            "fake",
            jax.eval_shape(lambda: SEEN),
            {"x": {"y": 3}},
        )
        self.began = INT, SEEN
        self.moved = INT, envs.TimeStep(SEEN, FLOAT, FLOAT > 0, FLOAT > 0, SEEN)

    def reset(self, key):
        return self.began

    def step(self, key, state, action):
        assert action["x"]["y"].shape == state.shape == ()
        return self.moved

    def stepping(self, **fields):
        self.moved = self.moved[0], self.moved[1]._replace(**fields)


@pytest.mark.parametrize("name", ["CartPole-v1", "probe-memory", "trading"])
def test_those_of_the_library_keep_the_protocol(name):
    envs.check_environment(envs.make(name))


def test_what_keeps_the_protocol_is_accepted():
    envs.check_environment(Fake())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda env: setattr(env, "action_depths", (3, 2)), r"action_depths .* got \(3, 2\)"),
        (lambda env: setattr(env, "action_depths", {"x": 0}), r"action_depths .* got {'x': 0}"),
        (
            lambda env: setattr(env, "began", (SEEN, INT)),
            r"reset returns.* must be .*'float32\[2\]'.* got int32",
        ),
        (lambda env: setattr(env, "began", SEEN), r"reset .* must return \(state, observation\)"),
        (lambda env: setattr(env, "moved", env.moved[1]), r"step .* must return \(state, TimeStep\)"),
        (
            lambda env: setattr(env, "moved", (FLOAT, env.moved[1])),
            r"state .* must be int32\[\], got float32\[\]",
        ),
        (lambda env: env.stepping(reward=INT), r"reward .* must be float32\[\], got int32\[\]"),
        (lambda env: env.stepping(reward=FLOAT[None]), r"reward .* must be float32\[\], got float32\[1\]"),
        (lambda env: env.stepping(terminated=FLOAT), r"terminated .* must be bool\[\], got float32\[\]"),
        (lambda env: env.stepping(truncated=FLOAT), r"truncated .* must be bool\[\], got float32\[\]"),
        (
            lambda env: env.stepping(observation={**SEEN, "b": FLOAT}),
            r"observation .*uint8\[\].*got .*float32\[\]",
        ),
        (lambda env: env.stepping(final_observation=None), r"final_observation .* got None"),
    ],
)
def test_what_breaks_the_protocol_is_said(change, message):
    env = Fake()
    change(env)
    with pytest.raises(ValueError, match=message) as caught:
        make_unreal(UnrealConfig(pc_weight=0), env)
    assert "'fake'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_is_guessed_whatever_its_case():
    with pytest.raises(ValueError, match="did you mean 'gravity'"):
        check_known("parameter", ["GRVITY"], ["gravity", "mass"])
