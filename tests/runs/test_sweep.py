import dataclasses
import json

import numpy as np
import pytest

from btnn_jax.cli.commands import main
from btnn_jax.plots.sweep import draw_sweep, plot_sweep
from btnn_jax.runs import sweep as module
from btnn_jax.runs.folder import RunError
from btnn_jax.runs.sweep import Range, Trial, read_sweep, sweep, trials_csv
from btnn_jax.training.config import UnrealConfig

pytest.importorskip("optuna")
TINY = UnrealConfig(
    num_envs=4, rollout_length=8, total_steps=32 * 8, epochs=1, minibatches=1, hidden=(8,), lstm=(), noisy=False,
    pc_weight=0, vr_weight=0, rp_weight=0, learning_rate=0.02,
)  # fmt: skip
SPACE = {"learning_rate": Range(1e-3, 1e-1, log=True), "hidden": ((8,), (16,))}


def learn(folder, space=SPACE, **options):
    options = {"trials": 4, "population": 4, "sampler": "random", "report": lambda line: None} | options
    return sweep("probe-action", TINY, space, folder=folder, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return folder, learn(folder, seeds=2)


def test_trials_are_in_their_space_and_sorted(whole):
    folder, trials = whole
    assert len(trials) == 4
    assert all(1e-3 <= trial.values["learning_rate"] <= 1e-1 for trial in trials)
    assert {trial.values["hidden"] for trial in trials} <= {(8,), (16,)}
    assert all(len(trial.scores) == 2 and trial.steps == 256 and not trial.pruned for trial in trials)
    for trial in trials:
        np.testing.assert_allclose(trial.score, np.mean(trial.scores))
    assert [trial.score for trial in trials] == sorted((trial.score for trial in trials), reverse=True)
    lines = (folder / "trials.csv").read_text().splitlines()
    assert lines[0] == "score,lowest,highest,steps,pruned,learning_rate,hidden"
    assert len(lines) == 5


def test_traced_values_are_those_of_their_own_configuration(whole, tmp_path):
    """A trial in a population scores what its configuration scores where nothing is traced."""
    _, trials = whole
    config = dataclasses.replace(TINY, **trials[0].values)
    space = {"discount": (TINY.discount,)}
    (alone,) = sweep("probe-action", config, space, folder=tmp_path / "alone", sampler="grid", seeds=2)
    np.testing.assert_allclose(alone.scores, trials[0].scores, rtol=1e-5)


def test_search_goes_on_after_a_kill(tmp_path, monkeypatch):
    folder = tmp_path / "killed"
    append = module._append

    def fail_at_third(path, trial):
        if len(read_sweep(path)) == 2:
            raise KeyboardInterrupt
        append(path, trial)

    space = {"learning_rate": Range(1e-3, 1e-1)}
    monkeypatch.setattr(module, "_append", fail_at_third)
    with pytest.raises(KeyboardInterrupt):
        learn(folder, space, population=2)
    kept = read_sweep(folder)
    assert len(kept) == 2
    monkeypatch.undo()
    ended = learn(folder, space, population=2)
    assert len(ended) == 4
    assert all(trial in ended for trial in kept)
    assert len({trial.values["learning_rate"] for trial in ended}) == 4
    assert learn(folder, space, population=2) == ended  # nothing is left to do
    with pytest.raises(RunError, match=r"not of this search, its sweep differ"):
        learn(folder, {"learning_rate": Range(1e-3, 1.0)})


def test_halving_gives_up_the_worse_half(tmp_path):
    config = dataclasses.replace(TINY, total_steps=32 * 80)
    space = {"learning_rate": (1e-6, 0.05, 2e-6, 0.02)}
    trials = sweep("probe-action", config, space, folder=tmp_path / "s", sampler="grid", trials=9, halvings=2)
    assert [trial.steps for trial in trials] == [2560, 1280, 640, 640]
    assert [trial.pruned for trial in trials] == [False, True, True, True]
    assert {trial.values["learning_rate"] for trial in trials[2:]} == {1e-6, 2e-6}  # which do not learn


def test_tpe_asks_in_the_space(tmp_path):
    trials = learn(tmp_path / "tpe", {"entropy_beta": Range(0.0, 0.1)}, sampler="tpe", population=2)
    assert len({trial.values["entropy_beta"] for trial in trials}) == 4


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        ({}, {}, "the space is empty"),
        ({"learning_rat": (1e-3,)}, {}, "no field learning_rat"),
        ({"learning_rate": Range(1e-2, 1e-3)}, {}, r"expected finite low < high, got 0.01 and 0.001"),
        ({"learning_rate": Range(0.0, 1e-3, log=True)}, {}, "must start above 0"),
        ({"learning_rate": Range(1e-4, 1e-3)}, {"sampler": "grid"}, "a grid needs choices"),
        ({"rollout_length": Range(8, 32)}, {}, "a range is for a float, rollout_length needs choices"),
        ({"rollout_length": (8, 0)}, {}, "rollout_length"),
        ({"rollout_length": ()}, {}, "at least one choice"),
        (
            {"learning_rate": (1e-3,)},
            {"sampler": "bayes"},
            "sampler must be one of random, tpe, grid, got 'bayes'",
        ),
        ({"learning_rate": (1e-3,)}, {"trials": 0}, "trials must be at least 1, got 0"),
        ({"learning_rate": (1e-3,)}, {"halvings": -1}, "halvings must be at least 0, got -1"),
        ({"pc_weight": (0.01,)}, {"sampler": "grid"}, "no agent fits probe-action with pc_weight=0.01"),
    ],
)
def test_what_is_impossible_is_one_line(tmp_path, space, options, message):
    with pytest.raises(RunError, match=message) as error:
        learn(tmp_path / "bad", space, **options)
    assert "\n" not in str(error.value)


def test_damaged_trial_is_named(tmp_path):
    (tmp_path / "trials.jsonl").write_text('{"values": {}}\n')
    with pytest.raises(RunError, match="line 1, is not a trial"):
        read_sweep(tmp_path)


def test_picture_and_table(whole):
    folder, _ = whole
    assert plot_sweep(folder).stat().st_size > 10_000
    (axes, *_) = draw_sweep(read_sweep(folder), log={"learning_rate"}).axes
    axes.figure.draw_without_rendering()
    assert [label.get_text() for label in axes.get_xticklabels(which="both") if "$" in label.get_text()] == []
    assert "0.01" in [label.get_text() for label in axes.get_xticklabels()]
    assert trials_csv([]).startswith("score,")
    empty = folder / "empty"
    empty.mkdir()
    (empty / "config.json").write_text(json.dumps({"sweep": {}, "environment": {"name": "x"}}))
    with pytest.raises(RunError, match="holds no trial"):
        plot_sweep(empty)


def test_command(tmp_path, capsys):
    tiny = "--steps 256 --num-envs 4 --rollout-length 8 --epochs 1 --minibatches 1 --lstm none --hidden 8 --no-noisy"
    off = "--vr-weight 0 --rp-weight 0"
    words = f"sweep probe-action --vary learning_rate=1e-3:1e-1:log --folder {tmp_path / 's'} --trials 2 {tiny} {off}"
    assert main(words.split()) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 trials; best return" in printed
    assert "sweep.png" in printed
    with pytest.raises(SystemExit):
        main(["sweep", "--vary", "learning_rat=1:2", "--folder", str(tmp_path)])
    assert "did you mean learning_rate?" in capsys.readouterr().err


def test_trial_without_an_ended_episode_is_the_worst(tmp_path):
    """Its metric is 0, which would beat every return below 0."""
    returns = np.array([[[-5.0, np.nan], [np.nan, np.nan]], [[-3.0, np.nan], [np.nan, np.nan]]])
    scores = module._scores(returns)
    np.testing.assert_array_equal(scores, [[-4, np.nan], [np.nan, np.nan]])
    assert [module._mean(row) for row in scores] == [-4, -np.inf]
    for number, row in enumerate(scores[::-1]):
        module._append(tmp_path, Trial({"a": number}, module._mean(row), tuple(row), 10, False))
    first, second = read_sweep(tmp_path)
    assert (first.values, first.score) == ({"a": 1}, -4)
    assert (second.score, np.isnan(second.scores).all()) == (-np.inf, True)
    assert "NaN" not in (tmp_path / "trials.jsonl").read_text()  # JSON has no such number


def test_score_of_endless_episodes_is_none(tmp_path):
    space = {"learning_rate": (0.01,)}
    long = {"env_params": {"length": 10_000}}
    (trial,) = sweep("probe-discount", TINY, space, folder=tmp_path / "s", sampler="grid", **long)
    assert trial.score == -np.inf


def test_line_that_a_kill_cut_is_dropped(whole, tmp_path):
    folder, trials = whole
    for name in ("config.json", "trials.jsonl"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    lines = (folder / "trials.jsonl").read_text()
    (tmp_path / "trials.jsonl").write_text(lines + '{"values": {"lear')
    assert read_sweep(tmp_path) == trials
    assert learn(tmp_path, seeds=2) == trials  # nothing is left to do
    assert (tmp_path / "trials.jsonl").read_text() == lines


def test_environments_of_the_host_are_refused(tmp_path):
    pytest.importorskip("gymnasium")
    with pytest.raises(RunError, match="gymnasium:CartPole-v1 is stepped on the host"):
        sweep(
            "gymnasium:CartPole-v1", TINY, {"learning_rate": (0.01,)}, folder=tmp_path / "s", sampler="grid"
        )
