"""Autoencoders: the pure step, the run around it, and that nothing is learned from the validation part."""

import dataclasses
import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax.data import load_csv
from btnn_jax.runs import autoencoder as autoencode_run
from btnn_jax.runs import loop
from btnn_jax.runs.autoencoder import load_autoencoder, resume_autoencoder, train_autoencoder
from btnn_jax.runs.autoencoder_data import (
    Examples,
    environment_frames,
    load_examples,
    play_randomly,
    series_windows,
)
from btnn_jax.runs.folder import RunError
from btnn_jax.runs.metrics import read_metrics
from btnn_jax.runs.progress import Silent
from btnn_jax.runs.reconstruction import compare_run, errors_table, pca_errors, read_errors
from btnn_jax.runs.run import AutoencoderRun, is_autoencoder_run, read_autoencoder_run, read_run
from btnn_jax.runs.sources import make_env
from btnn_jax.training.autoencoder import make_autoencoder
from btnn_jax.training.config import KINDS, AutoencoderConfig

TINY = AutoencoderConfig(
    window=8,
    embargo=8,
    layer_config=((4, (3, 1), (1, 1)), (2, (3, 1), (2, 1))),
    steps=40,
    batch=8,
    steps_per_update=10,
    learning_rate=1e-2,
)
SIGNAL = jax.ShapeDtypeStruct((8, 1, 3), jnp.float32)


def waves(seed=0, rows=64, shape=SIGNAL.shape):
    """Examples with two factors: what an autoencoder can learn quickly."""
    generator = np.random.default_rng(seed)
    steps = np.arange(shape[0])[None, :, None, None]
    phase, size = generator.uniform(0, 3, (2, rows, 1, 1, 1))
    return jnp.asarray(np.broadcast_to(size * np.sin(steps / 2 + phase), (rows, *shape)), jnp.float32)


@pytest.fixture(scope="module")
def make():
    """`make(**changes) -> (autoencoder, init, step)`, each compiled once."""
    made = {}

    def make(example=SIGNAL, **changes):
        config = dataclasses.replace(TINY, **changes)
        if config not in made:
            autoencoder = make_autoencoder(config, example)
            made[config] = autoencoder, jax.jit(autoencoder.init), jax.jit(autoencoder.step)
        return made[config]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_learns(make, kind):
    autoencoder, init, step = make(kind=kind, beta=0.01)
    state, x = init(jax.random.key(0)), waves()
    evaluate = jax.jit(autoencoder.evaluate)
    before = evaluate(state.params, x)["loss"]
    for _ in range(12):
        state, metrics = step(state, x)
    assert evaluate(state.params, x)["loss"] < 0.5 * before
    assert int(state.step) == 120
    assert metrics["skipped"] == 0
    assert ("kl" in metrics) == (kind == "beta_vae")


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_what_was_encoded_is_the_reconstruction(make, kind):
    autoencoder, init, _ = make(kind=kind, beta=0.01)
    params, x = init(jax.random.key(1)).params, waves(1, 20)
    options = {"eps": jnp.zeros((20, autoencoder.latent))} if kind == "beta_vae" else {}

    @jax.jit
    def compute(params, x):
        z = autoencoder.encode(params, x)
        output = autoencoder.model.apply({"params": params}, x, **options)
        # The evaluation goes in batches of 8, the last of 4.
        others = (
            autoencoder.decode(params, z),
            autoencoder.features(params, x),
            autoencoder.evaluate(params, x),
        )
        return z, output, *others

    z, output, decoded, layers, metrics = compute(params, x)
    assert z.shape == (20, autoencoder.latent)
    np.testing.assert_allclose(decoded, output.y_hat, atol=1e-6)
    for features, layer in zip(layers, output.encoder_layers, strict=True):
        np.testing.assert_array_equal(features, layer)
    np.testing.assert_allclose(metrics["loss"], np.square(x - output.y_hat).mean(), rtol=1e-5)
    if kind == "beta_vae":
        np.testing.assert_allclose(metrics["kl"], output.d_kl.sum(1).mean(), rtol=1e-5)


def test_the_learning_rate_falls_to_zero_and_beta_rises_and_holds_the_divergence_down(make):
    _, init, step = make(kind="beta_vae", beta=10.0, beta_warmup_steps=20)
    state, history = init(jax.random.key(0)), []
    for _ in range(4):
        state, metrics = step(state, waves())
        history.append(metrics)
    rates, betas, divergences = (
        [float(metrics[name]) for metrics in history] for name in ("learning_rate", "beta", "kl")
    )
    np.testing.assert_allclose(betas, [0, 5, 10, 10])
    np.testing.assert_allclose(rates, 0.01 * (1 + np.cos(np.pi * np.arange(4) / 4)) / 2, rtol=1e-5)
    assert divergences[-1] < 0.3 * max(divergences)


def test_a_gradient_that_is_not_finite_is_left_out(make):
    _, init, step = make()
    x = waves().at[:32].set(jnp.nan)
    state, metrics = step(init(jax.random.key(0)), x)
    assert int(state.skipped) == metrics["skipped"] > 0
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.params))
    assert np.isfinite(metrics["reconstruction_loss"])
    spoiled, metrics = step(state, jnp.full_like(x, jnp.nan))
    assert metrics["skipped"] == int(state.skipped) + TINY.steps_per_update
    jax.tree.map(np.testing.assert_array_equal, spoiled.params, state.params)


def test_a_layer_that_leaves_nothing_is_an_error_that_names_it():
    config = dataclasses.replace(TINY, pad="VALID", layer_config=((4, (3, 1), (2, 1)), (4, (5, 1), (1, 1))))
    with pytest.raises(ValueError, match="level 2 of the encoder leaves nothing"):
        make_autoencoder(config, SIGNAL)


@pytest.mark.parametrize("kind", ["conv2d", "beta_vae"])
@pytest.mark.parametrize(("shape", "latent"), [((32, 1, 4), 32), ((10, 10, 4), 3 * 3 * 4), ((5, 1, 1), 5)])
def test_the_default_layers_keep_a_number_a_step_and_four_every_16_places(kind, shape, latent):
    config = dataclasses.replace(TINY, kind=kind, layer_config=None)
    assert make_autoencoder(config, jax.ShapeDtypeStruct(shape, jnp.float32)).latent == latent


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("window", 0, "at least 1"),
        ("embargo", -1, "at least 0"),
        ("learning_rate", 0.0, "above 0"),
        ("kind", "vae", "one of conv2d, channel_wise, beta_vae"),
        ("validation", 1.0, "between 0 and 1"),
        ("layer_config", (), "None or at least one layer"),
        ("layer_config", ((4, (3, 0), (1, 1)),), "layers of sizes of at least 1"),
    ],
)
def test_a_field_out_of_its_range_is_an_error(field, value, expected):
    with pytest.raises(ValueError, match=f"{field} must be {expected}, got "):
        AutoencoderConfig(**{field: value})


def test_the_configuration_comes_back_from_json():
    config = dataclasses.replace(TINY, columns=("High", "Low"), beta=2.5)
    assert AutoencoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


# Examples


def write_bars(path, rows=120, seed=0, change_from=None):
    """A file of bars; from row `change_from` on, other prices."""
    generator = np.random.default_rng(seed)
    returns = 0.01 * generator.normal(size=(rows, 3))
    if change_from is not None:
        returns[change_from:] = 0.02 * np.random.default_rng(99).normal(size=(rows - change_from, 3))
    close = np.exp(np.cumsum(returns[:, 0]))
    before = np.concatenate([[1.0], close[:-1]])
    high = np.maximum(close, before) * np.exp(np.abs(returns[:, 1]))
    low = np.minimum(close, before) * np.exp(-np.abs(returns[:, 2]))
    days = np.datetime64("2020-01-01") + np.arange(rows)
    lines = [
        f"{day},{o!r},{h!r},{low_!r},{c!r},{i % 3}"
        for i, (day, o, h, low_, c) in enumerate(
            zip(days, *(x.tolist() for x in (before, high, low, close)), strict=True)
        )
    ]
    path.write_text("Date,Open,High,Low,Close,Volume\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def prices(tmp_path_factory):
    return write_bars(tmp_path_factory.mktemp("data") / "prices.csv")


def test_windows_of_bars_are_scaled_returns_from_the_close_before(prices):
    examples = load_examples(str(prices), TINY)
    assert examples.channels == ("Open", "High", "Low", "Close")
    assert examples.title == "8 steps of prices.csv"
    values = load_csv(prices).values[:, :4]
    returns = np.log(values[1:] / values[:-1, 3:])
    usable = len(returns) - TINY.embargo
    train = returns[: round(0.8 * usable)]
    deviation = np.sqrt(train.var(0).mean())  # one for all columns: the high stays above the others
    scaled = (returns - train.mean(0)) / deviation
    assert examples.train.shape == (len(train) - 7, 8, 1, 4)
    np.testing.assert_allclose(examples.train[0, :, 0], scaled[:8], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(examples.validation[-1, :, 0], scaled[-8:], rtol=1e-4, atol=1e-5)
    first = len(train) + TINY.embargo
    np.testing.assert_allclose(examples.validation[0, :, 0], scaled[first : first + 8], rtol=1e-4, atol=1e-5)


def test_other_columns_have_their_own_returns_and_scale(prices, tmp_path):
    series = load_csv(prices)
    panel = dataclasses.replace(series.select("Open", "High", "Close"), names=("A", "B", "Volume of C"))
    examples = series_windows(panel, TINY, "panel")
    assert examples.channels == ("A", "B")
    parts = np.diff(np.log(panel.values[:, :2]), axis=0)
    train = parts[: len(examples.train) + 7]
    np.testing.assert_allclose(
        examples.train[0, :, 0], ((train - train.mean(0)) / train.std(0))[:8], rtol=1e-3
    )
    chosen = series_windows(series, dataclasses.replace(TINY, columns=("close",), stride=5), "prices")
    assert chosen.channels == ("Close",)
    assert len(chosen.train) == 1 + (len(train) - 8) // 5
    with pytest.raises(ValueError, match="prices: Volume has zeros"):
        series_windows(series, dataclasses.replace(TINY, columns=("Volume",)), "prices")


def test_frames_of_an_environment_are_split_in_time():
    config = dataclasses.replace(TINY, frames=16 * 20, embargo=4)
    env = make_env("Breakout-MinAtar", {})
    examples = environment_frames(env, config, seed=0)
    frames = jax.jit(lambda key: play_randomly(env, key, 20))(jax.random.key(0))
    np.testing.assert_array_equal(examples.train, frames[:13].reshape(-1, 10, 10, 4))
    np.testing.assert_array_equal(examples.validation, frames[17:].reshape(-1, 10, 10, 4))
    assert examples.train.dtype == env.observation.dtype
    other = environment_frames(env, config, seed=1)
    assert (np.asarray(examples.train) != np.asarray(other.train)).any()
    assert len(np.unique(examples.train.reshape(16 * 13, -1), axis=0)) > 50  # they move


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("missing.csv", {}, r"cannot read missing\.csv: No such file"),
        ("eurosd", {}, "unknown data 'eurosd'; did you mean 'eurusd'"),
        ("CartPole-v1", {}, r"expected an image \[H, W, C\]"),
        (
            "prices.csv",
            {"window": 1000},
            r"prices\.csv is too short: \d+ rows are too few for a window of 1000",
        ),
        ("prices.csv", {"embargo": 500}, r"prices\.csv is too short: 119 rows are too few for parts"),
        ("prices.csv", {"columns": ("Bid",)}, "no column 'Bid'; there are Open, High"),
        ("prices.csv", {"columns": ("Volume",)}, "Volume has zeros"),
        ("bad.csv", {}, r"bad\.csv, line 3: Close is 'x', not a number"),
        (
            "prices.csv",
            {"layer_config": ((4, (9, 1), (1, 1)),), "pad": "VALID"},
            "no autoencoder fits .*level 1",
        ),
        ("Breakout-MinAtar", {"frames": 16}, "frames=16 of Breakout-MinAtar are 1 .*: 1 rows are too few"),
        ("Breakout-MinAtar", {"stream": "screen", "frames": 320}, "has one stream"),
    ],
)
def test_what_cannot_be_learned_from_is_one_line_and_leaves_no_folder(
    prices, tmp_path, monkeypatch, source, changes, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.csv").write_text("Date,Close\n2020-01-01,1\n2020-01-02,x\n")
    (tmp_path / "prices.csv").write_text(prices.read_text())
    with pytest.raises(RunError, match=message) as caught:
        train_autoencoder(source, dataclasses.replace(TINY, **changes), folder="run", reporter=Silent())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_packaged_series_has_no_parameters_and_a_file_has_options(prices):
    with pytest.raises(RunError, match="is no environment: it has no parameters"):
        load_examples("eurusd", TINY, env_params={"length": 3})
    with pytest.raises(RunError, match="unknown data option 'length'"):
        load_examples(str(prices), TINY, env_params={"length": 3})
    whole = load_examples(str(prices), TINY)
    opens = load_examples(str(prices), TINY, env_params={"columns": "Open,Close"})
    assert opens.channels == ("Open", "Close")
    np.testing.assert_allclose(opens.train[..., 1].std(), whole.train[..., 3].std(), rtol=0.5)


# Runs


class Stopper(Silent):
    """Sends a signal after some updates."""

    def __init__(self, after):
        self.after, self.results = after, []

    def update(self, progress):
        self.results.append(progress.result)
        if len(self.results) == self.after:
            os.kill(os.getpid(), signal.SIGTERM)


def start(data, folder, reporter=None, **arguments):
    return train_autoencoder(
        str(data), TINY, folder=folder, reporter=reporter or Silent(), log_seconds=0, **arguments
    )


@pytest.fixture(scope="module", autouse=True)
def compile_once():
    """All runs here have one configuration: hands the first one's functions and executable on to the others."""
    patch = pytest.MonkeyPatch()
    cached = functools.cache(make_autoencoder)
    patch.setattr(autoencode_run, "make_autoencoder", cached)
    compiled, compile_step = {}, loop._compile

    def cached_compile(program, reporter):
        if id(program.init) not in compiled:
            compiled[id(program.init)] = compile_step(program, reporter)
        return compiled[id(program.init)]

    patch.setattr(loop, "_compile", cached_compile)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def straight(prices, tmp_path_factory, compile_once):
    """A run from start to end."""
    return start(prices, tmp_path_factory.mktemp("runs") / "straight")


def test_a_run_leaves_all_about_it_in_its_folder(straight, prices, raw):
    assert (straight.steps, straight.stopped, int(straight.state.step)) == (40, None, 40)
    assert read_autoencoder_run(straight.folder) == AutoencoderRun(str(prices), TINY) == straight.run
    assert is_autoencoder_run(straight.folder)
    with pytest.raises(RunError, match=r"is a run of train-ae; this needs a run of train$"):
        read_run(straight.folder)
    metrics = read_metrics(straight.folder)
    assert metrics["steps"].tolist() == [10, 20, 30, 40]
    assert list((straight.folder / "tensorboard").iterdir())
    trained = load_autoencoder(straight.folder)
    assert raw(trained.params) == raw(straight.state.params)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(straight, prices, tmp_path, raw):
    reporter = Stopper(after=1)
    stopped = start(prices, tmp_path / "run", reporter)
    assert stopped.stopped == signal.SIGTERM
    assert 10 <= stopped.steps < 40
    assert reporter.results[0].startswith("validation error 0.")
    finished = resume_autoencoder(tmp_path / "run", reporter=Silent(), log_seconds=0)
    assert raw(finished.state) == raw(straight.state)
    losses = [read_metrics(folder)["validation_loss"] for folder in (finished.folder, straight.folder)]
    np.testing.assert_array_equal(*losses)


def test_nothing_is_learned_from_the_validation_part(straight, tmp_path, raw):
    """Other prices after the training part: the same parameters bit by bit, another validation error."""
    rows_of_training = round(0.8 * (119 - TINY.embargo))  # returns; as many rows of prices and one
    changed = write_bars(tmp_path / "prices.csv", change_from=rows_of_training + 1)
    other = start(changed, tmp_path / "other")
    assert raw(other.state) == raw(straight.state)
    assert (
        read_metrics(other.folder)["validation_loss"][-1]
        != read_metrics(straight.folder)["validation_loss"][-1]
    )
    earlier = start(write_bars(tmp_path / "more.csv", change_from=rows_of_training), tmp_path / "earlier")
    assert raw(earlier.state) != raw(straight.state)


def test_the_seed_decides_the_run(straight, prices, tmp_path, raw):
    assert raw(start(prices, tmp_path / "again").state) == raw(straight.state)
    assert raw(start(prices, tmp_path / "other", seed=1).state.params) != raw(straight.state.params)


def test_a_folder_that_is_no_autoencoders_run_is_a_clear_error(tmp_path):
    with pytest.raises(RunError, match="no run folder"):
        resume_autoencoder(tmp_path / "missing")
    (tmp_path / "config.json").write_text('{"data": {}}')
    with pytest.raises(RunError, match="does not describe a run of an autoencoder"):
        load_autoencoder(tmp_path)


# Beside PCA


def test_pca_is_exact_where_the_latent_variables_suffice():
    generator = np.random.default_rng(0)
    rank = generator.normal(size=(50, 3)) @ generator.normal(size=(3, 24)) + 1
    x = rank.reshape(50, 8, 1, 3).astype(np.float32)
    measured = pca_errors(Examples("", ("a",) * 3, x[:40], x[40:]), 3)
    assert measured["PCA"].latent == 3
    assert measured["PCA"].validation < 1e-10
    np.testing.assert_allclose(
        measured["mean"].validation, np.square(x[40:] - x[:40].mean(0)).mean(), rtol=1e-4
    )
    fewer = pca_errors(Examples("", ("a",) * 3, x[:40], x[40:]), 2)["PCA"]
    assert 1e-3 < fewer.validation < measured["mean"].validation


def test_pixels_count_from_0_to_1():
    x = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 1), np.uint8)
    for examples in (Examples("", ("0",), x[:20], x[20:]), Examples("", ("0",), x[:20] / 255, x[20:] / 255)):
        measured = pca_errors(examples, 4)["mean"].train
        np.testing.assert_allclose(measured, ((x[:20] / 255 - (x[:20] / 255).mean(0)) ** 2).mean(), rtol=1e-4)


def test_compares_the_newest_checkpoint(straight):
    errors = compare_run(straight.folder)
    assert list(errors) == ["autoencoder", "PCA", "mean"]
    np.testing.assert_allclose(
        errors["autoencoder"].validation, read_metrics(straight.folder)["validation_loss"][-1], rtol=1e-5
    )
    assert errors["autoencoder"].latent == errors["PCA"].latent == 8
    assert errors["PCA"].train < errors["mean"].train
    assert read_errors(straight.folder) == errors
    assert len(errors_table(errors).splitlines()) == 4
