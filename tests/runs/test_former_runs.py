"""Runs that an earlier version left behind are evaluated, drawn and gone on with."""

import json
import pathlib
import shutil
import zipfile

import numpy as np
import pytest

from btnn_jax.plots.agent import plot_runs
from btnn_jax.runs.agent import resume
from btnn_jax.runs.autoencoder import load_autoencoder, resume_autoencoder
from btnn_jax.runs.backtests import backtest_run
from btnn_jax.runs.metrics import read_metrics
from btnn_jax.runs.progress import Silent
from btnn_jax.runs.reconstruction import compare_run
from btnn_jax.runs.run import read_run
from btnn_jax.runs.scores import score_run
from btnn_jax.runs.sources import make_env

RUNS = pathlib.Path(__file__).parents[1] / "golden" / "runs"  # of version 0.1.0


@pytest.fixture
def former(tmp_path):
    def unpack(name):
        with zipfile.ZipFile(RUNS / f"{name}.zip") as file:
            file.extractall(tmp_path / name)
        return tmp_path / name

    return unpack


def last_record(folder):
    return {name: values[-1] for name, values in read_metrics(folder).items() if "second" not in name}


def test_an_agent_is_evaluated_and_drawn(former):
    folder = former("agent")
    before = json.loads((folder / "evaluation.json").read_text())["scores"]
    scores = score_run(folder, episodes=128)
    for name in ("greedy", "sampled", "random"):
        assert scores[name].mean_return == before[name]["mean_return"]
        assert scores[name].mean_length == before[name]["mean_length"]
    assert plot_runs([folder]).stat().st_size > 10_000


@pytest.mark.parametrize("name", ["agent", "trading"])
def test_an_agent_goes_on_from_its_first_checkpoint_as_it_did(former, name):
    folder = former(name)
    recorded = last_record(folder)
    shutil.rmtree(folder / "checkpoints" / "8")
    assert resume(folder, reporter=Silent()).steps == 256
    again = last_record(folder)
    assert set(again) == set(recorded)
    for metric, value in recorded.items():
        np.testing.assert_allclose(again[metric], value, rtol=2e-2, atol=1e-4, err_msg=metric)


def test_a_trading_agent_is_backtested(former):
    (backtest,) = backtest_run(former("trading"))
    assert np.isfinite(np.asarray(backtest.performance["greedy"].total_return)).all()


def test_parameters_of_the_environment_keep_their_meaning_by_their_former_names(former):
    folder = former("trading")
    settings = json.loads((folder / "config.json").read_text())
    settings["environment"]["params"] |= {
        "cash": 500.0,
        "episode": 64,
        "skip_frame": 2,
        "stake": 3.0,
        "stakes": 2,
        "target": 0.5,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    (backtest,) = backtest_run(folder)
    env = make_env("trading", read_run(folder).env_params)
    assert (env.initial_cash, env.length, env.frame_skip) == (500.0, 64, 2)
    assert (env.rules.unit_size, env.max_units, env.profit_target) == (3.0, 2, 0.5)
    assert backtest.env.rules.unit_size == 3.0
    assert float(backtest.accounts["flat"].equity[0, -1]) == 500.0


def test_an_autoencoder_is_measured_and_goes_on(former):
    folder = former("autoencoder")
    recorded = json.loads((folder / "evaluation.json").read_text())["errors"]
    for name, errors in compare_run(folder).items():
        np.testing.assert_allclose(errors.validation, recorded[name]["validation"], rtol=1e-3)
    assert load_autoencoder(folder).run.config.kind == "conv2d"
    shutil.rmtree(folder / "checkpoints" / "2")
    before = last_record(folder)
    assert resume_autoencoder(folder, reporter=Silent()).steps == 20
    np.testing.assert_allclose(last_record(folder)["validation_loss"], before["validation_loss"], rtol=1e-3)
