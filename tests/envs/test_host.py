"""Environments of the host: Gymnasium's in every autoreset mode, Atari, and what goes wrong in them."""

import itertools
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax import envs
from btnn_jax.envs import batched
from btnn_jax.runs.agent import _new_episodes, make_agent, resume, train
from btnn_jax.runs.folder import RunError
from btnn_jax.runs.run import Run
from btnn_jax.runs.scores import score_run
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.evaluate import make_evaluate_random

gymnasium = pytest.importorskip("gymnasium")
MODES = list(gymnasium.vector.AutoresetMode)
TINY = UnrealConfig(
    num_envs=4, rollout_length=8, total_steps=32 * 4, epochs=1, minibatches=1, hidden=(8,), lstm=(4,), noisy=False,
    pc_weight=0, vr_weight=0, rp_weight=0,
)  # fmt: skip


class Counter(gymnasium.Env):
    """Observes [episode, time]; episode e terminates after e + 2 steps, every third is truncated there."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3, start=5)

    def __init__(self):
        self.episode, self.time, self.actions = -1, 0, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return self._see(), {}

    def step(self, action):
        assert self.time < self.episode + 2, "stepped beyond the end"
        self.time += 1
        self.actions.append(int(action))
        over, cut = self.time == self.episode + 2, self.episode % 3 == 2
        return self._see(), float(10 * self.episode + self.time), over and not cut, over and cut, {}

    def _see(self):
        return np.array([self.episode, self.time], np.float32)


def roll(env, num_envs, length, seed=0):
    """Random actions: the first observation, then actions and time steps `[length, num_envs, ...]`."""
    many = batched(env, num_envs)

    def run(key):
        key, reset_key = jax.random.split(key)
        state, first = many.reset(jax.random.split(reset_key, num_envs))

        def step(state, key):
            act_key, step_key = jax.random.split(key)
            action = jax.random.randint(act_key, (num_envs,), 0, env.action_depths)
            state, time_step = many.step(jax.random.split(step_key, num_envs), state, action)
            return state, (action, time_step)

        return first, jax.lax.scan(step, state, jax.random.split(key, length))[1]

    return jax.tree.map(np.asarray, jax.jit(run)(jax.random.key(seed)))


@pytest.mark.parametrize("copy", [True, False], ids=["copies", "one memory"])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_every_autoreset_mode_gives_the_same_steps(mode, copy):
    vector = gymnasium.vector.SyncVectorEnv([Counter] * 2, autoreset_mode=mode, copy=copy)
    env = envs.from_gymnasium(vector)
    assert (env.name, env.action_depths) == ("SyncVectorEnv", 3)
    first, (action, step) = roll(env, 2, 12)
    env.close()
    np.testing.assert_array_equal(first, [[0, 0]] * 2)
    # Episodes of 2, 3 and 4 steps, the third truncated, then the fourth begins.
    after = [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (2, 4), (3, 1), (3, 2), (3, 3)]
    seen = [(0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (2, 3), (3, 0), (3, 1), (3, 2), (3, 3)]
    for i in range(2):
        np.testing.assert_array_equal(step.final_observation[:, i], after)
        np.testing.assert_array_equal(step.observation[:, i], seen)
        np.testing.assert_array_equal(step.reward[:, i], [10 * episode + time for episode, time in after])
        np.testing.assert_array_equal(np.flatnonzero(step.terminated[:, i]), [1, 4])
        np.testing.assert_array_equal(np.flatnonzero(step.truncated[:, i]), [8])
    for i, one in enumerate(vector.envs):
        assert one.actions == (action[:, i] + 5).tolist()  # no step is spent on a reset


def test_processes_give_the_same_episodes():
    def played(**params):
        env = envs.make("gymnasium:CartPole-v1", **params)
        out = roll(env, 2, 60)
        env.close()
        return out

    jax.tree.map(np.testing.assert_array_equal, played(), played(processes=True))


def test_cart_pole_equals_the_environment_driven_by_hand():
    env = envs.make("gymnasium:CartPole-v1")
    assert env.observation == jax.ShapeDtypeStruct((4,), jnp.float32)
    first, (action, step) = roll(env, 3, 80)
    assert step.terminated.sum() > 3
    for i in range(3):
        by_hand = gymnasium.make("CartPole-v1")
        # The seed is not told, so the state is set.
        by_hand.reset(seed=0)
        by_hand.unwrapped.state = first[i].astype(np.float64)
        for t in range(80):
            observation, reward, terminated, truncated, _ = by_hand.step(int(action[t, i]))
            np.testing.assert_allclose(step.final_observation[t, i], observation, rtol=1e-4, atol=1e-5)
            assert (reward, terminated, truncated) == (
                step.reward[t, i], step.terminated[t, i], step.truncated[t, i],
            )  # fmt: skip
            if terminated or truncated:
                by_hand.reset(seed=0)
                by_hand.unwrapped.state = step.observation[t, i].astype(np.float64)
    env.close()


def test_end_at_the_time_limit_is_an_end():
    class Both(Counter):
        def step(self, action):
            *moved, terminated, truncated, info = super().step(action)
            over = terminated or truncated
            return *moved, over, over, info

    env = envs.from_gymnasium(Both)
    _, (_, step) = roll(env, 1, 12)
    env.close()
    np.testing.assert_array_equal(np.flatnonzero(step.terminated), [1, 4, 8])
    assert not step.truncated.any()


def test_seeds_decide_the_episodes():
    def starts(seed):
        env = envs.make("gymnasium:CartPole-v1")
        return roll(env, 2, 30, seed)

    same, again, other = starts(1), starts(1), starts(2)
    jax.tree.map(np.testing.assert_array_equal, same, again)
    assert np.any(same[0] != other[0])
    assert np.any(same[0][0] != same[0][1])


class Spaces(gymnasium.Env):
    """Observations and actions of several kinds."""

    observation_space = gymnasium.spaces.Dict(
        image=gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8),
        choice=gymnasium.spaces.Discrete(3, start=1),
        pair=gymnasium.spaces.Tuple(
            (gymnasium.spaces.MultiBinary(2), gymnasium.spaces.Box(-1, 1, (1,), np.float32))
        ),
    )
    action_space = gymnasium.spaces.Dict(
        move=gymnasium.spaces.Discrete(2), grip=gymnasium.spaces.MultiDiscrete([2, 4], start=[0, 1])
    )

    def reset(self, *, seed=None, options=None):
        return {"image": np.full((4, 4, 3), 7, np.uint8), "choice": 2, "pair": (np.array([1, 0]), [0.5])}, {}

    def step(self, action):
        assert self.action_space.contains(action), action
        return self.reset()[0], float(action["move"] + 10 * action["grip"][1]), False, False, {}


def test_spaces_are_converted():
    env = envs.from_gymnasium(Spaces)
    assert env.action_depths == {"move": 2, "grip": {"0": 2, "1": 4}}
    many = batched(env, 2)

    @jax.jit
    def run(key):
        key, reset_key = jax.random.split(key)
        state, observation = many.reset(jax.random.split(reset_key, 2))
        action = {"move": jnp.array([1, 0]), "grip": {"0": jnp.array([0, 1]), "1": jnp.array([3, 0])}}
        return observation, many.step(jax.random.split(key, 2), state, action)[1].reward

    observation, reward = run(jax.random.key(0))
    assert observation["image"].shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(observation["choice"], [[0, 1, 0]] * 2)
    np.testing.assert_array_equal(observation["pair"]["0"], [[True, False]] * 2)
    np.testing.assert_array_equal(observation["pair"]["1"], [[0.5]] * 2)
    np.testing.assert_array_equal(reward, [41, 10])
    env.close()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("host") / "run"
    return folder, train("gymnasium:CartPole-v1", TINY, folder=folder)


def test_run_trains_is_evaluated_and_goes_on_with_new_episodes(run_folder, tmp_path, capsys):
    folder, result = run_folder
    assert result.stopped is None
    assert result.steps == TINY.total_steps
    scores = score_run(folder, episodes=3, max_steps=30)
    assert scores["sampled"].episodes == 3
    assert scores["random"].mean_length > 1
    for newer in (folder / "checkpoints").iterdir():
        if newer.name != "0":
            newer.rename(tmp_path / newer.name)
    again = resume(folder)
    assert again.steps == TINY.total_steps
    assert "new episodes" in capsys.readouterr().out


def test_seeds_and_shards_are_refused(tmp_path):
    for options in ({"seeds": 2}, {"config": {"shards": 2}}):
        config = UnrealConfig(**{"pc_weight": 0, **options.pop("config", {})})
        with pytest.raises(
            RunError, match="is stepped on the host, so that a run has one seed and one shard"
        ):
            train("gymnasium:CartPole-v1", config, folder=tmp_path / "run", **options)


def make_bad(where, what):
    """A class of environments that go wrong at `reset`, or at the fifth `step`."""

    class Bad(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)
        steps = 0

        def reset(self, *, seed=None, options=None):
            return what(np.zeros(2, np.float32), {}) if where == "reset" else (np.zeros(2, np.float32), {})

        def step(self, action):
            self.steps += 1
            good = (np.zeros(2, np.float32), 0.0, False, False, {})
            return what(*good) if where == "step" and self.steps == 5 else good

    return Bad


def throw(error):
    raise error


BAD = [
    ("reset", lambda o, info: throw(KeyError("lost")), "raised at reset: KeyError: '?lost"),
    ("reset", lambda o, info: None, "raised at reset: TypeError"),
    ("reset", lambda o, info: o, "raised at reset: "),
    ("reset", lambda o, info: (np.zeros(3, np.float32), info), "raised at reset: "),
    ("reset", lambda o, info: (None, info), "raised at reset: "),
    ("reset", lambda o, info: (np.full(2, np.nan, np.float32), info), "an observation that is not finite"),
    ("reset", lambda o, info: (o + np.inf, info), "an observation that is not finite"),
    ("reset", lambda o, info: ("ab", info), "raised at reset: ValueError"),
    (
        "step",
        lambda o, r, *end: throw(ZeroDivisionError("by zero\nsecond line")),
        "ZeroDivisionError: by zero",
    ),
    ("step", lambda o, r, *end: throw(SystemExit(3)), "raised at step: SystemExit"),
    ("step", lambda o, r, *end: (o, float("nan"), *end), "gave a reward of nan"),
    ("step", lambda o, r, *end: (o, float("inf"), *end), "gave a reward of inf"),
    ("step", lambda o, r, *end: (o, "1x", *end), "raised at step: ValueError"),
    ("step", lambda o, r, *end: (o, None, *end), "gave a reward of nan|raised at step"),
    ("step", lambda o, r, *end: (o, np.zeros(2), *end), "raised at step"),
    ("step", lambda o, r, *end: (o[:1], r, *end), "raised at step"),
    ("step", lambda o, r, *end: (o[None], r, *end), "raised at step"),
    ("step", lambda o, r, *end: (o * np.nan, r, *end), "an observation that is not finite"),
    ("step", lambda o, r, *end: (o, r, False, False), "raised at step: ValueError"),
    ("step", lambda o, r, *end: (o, r, False, {}), "raised at step: ValueError"),
    ("step", lambda o, r, *end: None, "raised at step: TypeError"),
    ("step", lambda o, r, *end: (o, r, np.array([True, False]), False, {}), "raised at step"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("where", "what", "message"), BAD, ids=[f"{row[0]}{i}" for i, row in enumerate(BAD)])
def test_what_goes_wrong_is_one_line(where, what, message):
    env = envs.from_gymnasium(make_bad(where, what), name="bad")
    with pytest.raises(jax.errors.JaxRuntimeError):
        roll(env, 2, 8)
    assert env.failure.startswith("bad ")
    assert len(env.failure.splitlines()) == 1
    assert re.search(message, env.failure), env.failure
    env.close()


def test_failing_environment_ends_a_run_in_one_line(tmp_path):
    env = envs.from_gymnasium(make_bad("step", lambda *given: throw(OSError("no emulator"))), name="bad")
    with pytest.raises(
        RunError, match=r"^bad raised at step: OSError: no emulator; go on from the newest .* --resume .*run$"
    ):
        train(env, TINY, folder=tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints").exists()


def test_hanging_environment_is_given_up():
    env = envs.from_gymnasium(
        make_bad("step", lambda *given: time.sleep(5) or given), name="slow", timeout=0.5
    )
    start = time.monotonic()
    with pytest.raises(jax.errors.JaxRuntimeError):
        roll(env, 1, 8)
    assert env.failure == "slow did not answer to step within 0.5 seconds"
    env.close()
    assert time.monotonic() - start < 5


def box(*shape, low=-1.0, high=1.0, dtype=np.float32):
    return gymnasium.spaces.Box(low, high, shape, dtype)


@pytest.mark.parametrize(
    ("seen", "done", "message"),
    [
        (box(2), box(1), "has actions in Box"),
        (box(2), gymnasium.spaces.MultiBinary(3), "has actions in MultiBinary"),
        (box(2), gymnasium.spaces.MultiDiscrete([[2, 2], [2, 2]]), "has actions in MultiDiscrete"),
        (box(2), gymnasium.spaces.Text(3), "has actions in Text"),
        (gymnasium.spaces.Text(3), gymnasium.spaces.Discrete(2), "has observations in Text"),
        (gymnasium.spaces.Sequence(box(2)), gymnasium.spaces.Discrete(2), "has observations in Sequence"),
        (
            gymnasium.spaces.Dict(a=gymnasium.spaces.Text(3)),
            gymnasium.spaces.Discrete(2),
            "has observations in Text",
        ),
        (gymnasium.spaces.Graph(box(2), None), gymnasium.spaces.Discrete(2), "has observations in Graph"),
    ],
)
def test_spaces_that_no_agent_can_use_are_named(seen, done, message):
    class Strange(gymnasium.Env):
        observation_space, action_space = seen, done

    with pytest.raises(ValueError, match=message):
        envs.from_gymnasium(Strange)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("gymnasium:CartPoel-v1", {}, "CartPoel"),
        ("gymnasium:CartPole-v9", {}, "CartPole"),
        ("gymnasium:", {}, "gymnasium:"),
        ("gymnasium:CartPole-v1", {"gravty": 1}, "gravty"),
        ("ale:pnog", {}, "did you mean 'pong'"),
        ("ale:pong", {"size": 0}, "size must be at least 1, got 0"),
        ("ale:pong", {"sticky_actions": 2.0}, "sticky_actions must be between 0 and 1, got 2.0"),
        ("ale:pong", {"noop_max": -1}, "noop_max must be at least 0, got -1"),
        ("ale:pong", {"preset": "dnq"}, "did you mean 'dqn'"),
        ("ale:pong", {"frame_skip": 0}, "frame_skip must be at least 1, got 0"),
        ("ale:pong", {"colour": True}, "colour"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_wrong_names_and_parameters_are_one_line(name, params, message, tmp_path):
    if name.startswith("ale"):
        pytest.importorskip("ale_py")
    with pytest.raises(RunError, match=message) as error:
        train(name, TINY, folder=tmp_path / "run", env_params=params)
    assert "\n" not in str(error.value)


def test_what_is_no_environment_is_refused():
    for source, message in [(3, "got 3"), (dict, "it made dict"), (None, "got None")]:
        with pytest.raises(ValueError, match=message):
            envs.from_gymnasium(source)
    vector = gymnasium.vector.SyncVectorEnv([Counter] * 2)
    with pytest.raises(ValueError, match=r"SyncVectorEnv was given as 2 environments, got num_envs=3"):
        roll(envs.from_gymnasium(vector), 3, 1)


def test_state_of_another_time_is_refused():
    """The environments are not in the state, so that a state can be stepped from only once."""
    env = envs.make("gymnasium:CartPole-v1")
    many = batched(env, 1)
    keys = jax.random.split(jax.random.key(0), (3, 1))
    state, _ = jax.jit(many.reset)(keys[0])
    step, action = jax.jit(many.step), jnp.zeros(1, jnp.int32)
    step(keys[1], state, action)
    with pytest.raises(jax.errors.JaxRuntimeError):
        jax.block_until_ready(step(keys[2], state, action))
    assert env.failure == "gymnasium:CartPole-v1 was stepped from a state that it is not in"
    env.close()


def test_atari_equals_the_emulator_driven_by_hand():
    vector_env = pytest.importorskip("ale_py.vector_env")
    env = envs.make("ale:breakout", size=42, noop_max=0, episodic_life=True)
    assert env.observation == jax.ShapeDtypeStruct((42, 42, 4), jnp.uint8)
    first, (action, step) = roll(env, 2, 150)
    env.close()
    by_hand = vector_env.AtariVectorEnv(
        "breakout", 2, img_height=42, img_width=42, noop_max=0, episodic_life=True, autoreset_mode="SameStep"
    )
    observation, _ = by_hand.reset(seed=np.array([1, 2]))
    np.testing.assert_array_equal(first, np.moveaxis(observation, 1, -1))
    assert step.terminated.any()
    for t in range(150):
        observation, reward, terminated, truncated, info = by_hand.step(action[t].astype(np.int64))
        np.testing.assert_array_equal(step.observation[t], np.moveaxis(observation, 1, -1))
        np.testing.assert_array_equal(step.reward[t], reward)
        np.testing.assert_array_equal(step.terminated[t], terminated)
        np.testing.assert_array_equal(step.truncated[t], truncated)
        if terminated.any():
            final = np.moveaxis(info["final_obs"], 1, -1)[terminated]
            np.testing.assert_array_equal(step.final_observation[t][terminated], final)
    by_hand.close()


def test_evaluation_counts_whole_games():
    pytest.importorskip("ale_py")
    env = envs.make("ale:breakout", size=42, noop_max=0)

    def first_end(evaluation):
        many = env.batch(1, evaluation=evaluation)

        @jax.jit
        def run(key):
            key, reset_key = jax.random.split(key)
            state, _ = many.reset(jax.random.split(reset_key, 1))

            def step(state, key):
                state, time_step = many.step(jax.random.split(key, 1), state, jnp.ones(1, jnp.int32))  # fire
                return state, time_step.terminated[0]

            return jax.lax.scan(step, state, jax.random.split(key, 200))[1]

        return int(np.argmax(run(jax.random.key(0))))

    life, game = first_end(False), first_end(True)
    env.close()
    assert 10 < life < 40
    assert game > 4 * life  # five lives


def test_scores_are_of_whole_games():
    pytest.importorskip("ale_py")
    env = envs.make("ale:breakout", size=42, noop_max=0)
    played = jax.jit(make_evaluate_random(env, num_episodes=4, max_steps=400))(jax.random.key(0))
    env.close()
    assert np.mean(played.lengths) > 100  # a life of random actions lasts about 35 steps


def test_resumed_runs_of_two_seeds_begin_with_other_episodes():
    def first(seed, update):
        agent = make_agent(Run("gymnasium:CartPole-v1", TINY, seed))
        state = jax.jit(agent.init)(np.uint32(seed))
        again = _new_episodes(agent, seed)(state, update)
        agent.env.close()
        assert np.all(again.actors.inputs.reset)
        return np.asarray(again.actors.inputs.observation)

    starts = [first(*point) for point in [(0, 3), (1, 3), (0, 4)]]
    assert all(np.all(a != b) for a, b in itertools.combinations(starts, 2))
    np.testing.assert_array_equal(starts[0], first(0, 3))
