"""The picture shows what was recorded."""

import matplotlib.pyplot
import numpy as np
import pytest

from btnn_jax.plots import agent as plots
from btnn_jax.runs.folder import RunError, write_json
from btnn_jax.runs.metrics import MetricsWriter
from btnn_jax.runs.run import Run, create_run
from btnn_jax.training.config import UnrealConfig


@pytest.fixture
def make_run(tmp_path):
    def make(name, records=20, **metrics):
        folder = create_run(tmp_path / name, Run("probe-memory", UnrealConfig(pc_weight=0)))
        with MetricsWriter(folder) as writer:
            for i in range(records):
                values = {"entropy": 1.0, "value_loss": 10.0**-i} | {
                    name: x[i] for name, x in metrics.items()
                }
                writer.write(100_000 * (i + 1), i, values | ({"episode_return": i / 10} if i > 2 else {}))
        return folder

    return make


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_draws_the_returns_in_environment_steps_without_what_was_not_known(make_run):
    figure = plots.draw([plots.read_curves(make_run("run"))])
    returns = figure.axes[0]
    raw, smooth = (line.get_xydata() for line in returns.lines)
    np.testing.assert_allclose(raw, [(100_000 * (i + 1), i / 10) for i in range(3, 20)])
    np.testing.assert_allclose(smooth, raw)  # 17 points are too few to smooth
    assert returns.get_xlabel() == "environment steps"
    assert returns.get_ylabel() == "undiscounted return"
    figure.canvas.draw()
    assert {label.get_text() for label in returns.get_xticklabels()} >= {"0", "500k", "1M"}
    assert figure.get_suptitle() == "probe-memory, UNREAL (PPO)"


def test_shows_only_what_was_recorded(make_run):
    figure = plots.draw([plots.read_curves(make_run("run", noise_sigma=[0.1] * 20))])
    assert titles(figure) == ["Return of an episode", "Policy entropy", "Value loss", "Noise in the heads"]


def test_only_positive_values_over_decades_are_logarithmic(make_run):
    figure = plots.draw([plots.read_curves(make_run("run", gradient_norm=range(20)))])
    scales = {axes.get_title(loc="left"): axes.get_yscale() for axes in figure.axes}
    assert scales["Value loss"] == "log"
    assert scales["Gradient norm"] == "linear"


@pytest.mark.parametrize(("error", "label"), [(0.1, "greedy: 1.9 ± 0.1"), (None, "greedy: 1.9")])
def test_shows_the_random_agent_and_the_evaluation(make_run, error, label):
    folder = make_run("run")
    scores = {
        name: {
            "episodes": 4,
            "mean_return": mean,
            "standard_error": error,
            "mean_length": 5.0,
            "unfinished": 0,
        }
        for name, mean in (("greedy", 1.9), ("random", 0.3))
    }
    write_json(folder / "evaluation.json", {"scores": scores})
    figure = plots.draw([plots.read_curves(folder)])
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["random: 0.3"].get_ydata()[0] == 0.3
    np.testing.assert_allclose(lines[f"evaluated, {label}"].get_xydata(), [[2_000_000, 1.9]])


def test_draws_several_runs_together(make_run, tmp_path):
    folders = [make_run("one"), make_run("two", records=5, approx_kl=[0.1] * 5)]
    path = plots.plot_runs(folders, tmp_path / "both.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    figure = plots.draw([plots.read_curves(folder) for folder in folders])
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["one", "two"]
    assert "Policy change per update" in titles(figure)


def test_draws_a_run_in_which_no_episode_has_finished(make_run):
    path = plots.plot_runs([make_run("run", records=1)])
    assert path.name == "curves.png"


@pytest.mark.parametrize(("records", "marker"), [(1, "o"), (20, "None")])
def test_the_points_of_a_short_run_can_be_seen(make_run, records, marker):
    figure = plots.draw([plots.read_curves(make_run("run", records=records))])
    assert [axes.lines[1].get_marker() for axes in figure.axes[1:]] == [marker] * 2


def test_a_long_title_has_several_lines(make_run):
    curves = plots.read_curves(make_run("run"))
    figure = plots.draw([curves._replace(title=f"trading (data={i}, part=train), A2C") for i in range(5)])
    assert figure.get_suptitle().count("\n") == 1


def test_leaves_pyplot_alone(make_run):
    plots.plot_runs([make_run("run")])
    assert matplotlib.pyplot.get_fignums() == []


def test_clear_errors(make_run, tmp_path):
    with pytest.raises(RunError, match="nothing has been recorded"):
        plots.plot_runs([make_run("empty", records=0)])
    folder = make_run("run")
    for name in ("missing/curves.png", "curves.nonsense"):
        with pytest.raises(RunError, match="cannot write"):
            plots.plot_runs([folder], tmp_path / name)


def test_smoothing_keeps_lines_and_means():
    line = np.linspace(-1, 3, 200)
    np.testing.assert_allclose(plots.smooth(line), line)
    noise = np.random.default_rng(0).normal(size=400)
    assert np.std(plots.smooth(noise)[20:-20]) < np.std(noise) / 3
    assert plots.smooth(np.zeros(0)).size == 0


def test_one_huge_value_spoils_only_what_is_near_it():
    values = np.ones(100)
    values[10] = 1e16
    np.testing.assert_array_equal(plots.smooth(values)[20:], 1.0)


def curves(steps, returns, scores=None):
    metrics = {"steps": np.asarray(steps, float), "entropy": np.ones(len(steps))}
    if returns is not None:
        metrics["episode_return"] = np.asarray(returns, float)
    return plots.Curves("run", "CartPole-v1, PPO", metrics, scores or {})


def test_a_run_without_a_finished_episode_is_drawn(tmp_path):
    for returns in (None, [np.nan] * 4):
        figure = plots.draw([curves([100, 200, 300, 400], returns)])
        figure.savefig(tmp_path / "curves.png")
        width, height = matplotlib.pyplot.imread(tmp_path / "curves.png").shape[1::-1]
        assert (width, height) == (1400, 700)
        assert any("no episode has ended" in text.get_text() for text in figure.axes[0].texts)


def test_a_last_record_of_few_updates_makes_no_cliff():
    shown = plots.draw([curves([100, 200, 300, 400, 410], [1, 2, 3, 4, 0.1])]).axes[0].lines[0]
    np.testing.assert_array_equal(shown.get_ydata(), [1, 2, 3, 4])
    resumed = plots.draw([curves([100, 200, 300, 310, 410, 510], [1, 2, 3, 0.1, 4, 5])]).axes[0].lines[0]
    np.testing.assert_array_equal(resumed.get_ydata(), [1, 2, 3, 4, 5])
    slower = plots.draw([curves([100, 200, 300, 320, 340, 360], [1, 2, 3, 4, 5, 6])]).axes[0].lines[0]
    np.testing.assert_array_equal(slower.get_ydata(), [1, 2, 3, 4, 5, 6])
    whole = plots.draw([curves([100, 200, 300, 400, 480], [1, 2, 3, 4, 5])]).axes[0].lines[0]
    np.testing.assert_array_equal(whole.get_ydata(), [1, 2, 3, 4, 5])


def test_greedy_and_sampled_evaluations_are_both_shown():
    score = plots.Score(8, 3.5, 0.25, 10.0, 0)
    figure = plots.draw(
        [curves([100, 200, 300], [1, 2, 3], {"greedy": score, "sampled": score._replace(mean_return=2.5)})]
    )
    labels = [text.get_text() for text in figure.axes[0].get_legend().texts]
    assert "evaluated, greedy: 3.5 ± 0.25" in labels
    assert "evaluated, sampled: 2.5 ± 0.25" in labels


def test_each_seed_is_drawn_with_the_interval_of_their_mean():
    run = curves([100, 200, 300], [2, 3, 4])
    for seed, shift in enumerate((-1.0, 0.0, 1.0)):
        run.metrics[f"episode_return_seed{seed}"] = np.array([np.nan, 3, 4]) + shift
    axes = plots.draw([run]).axes[0]
    assert len(axes.lines) == 4
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() >= 2
    assert heights.max() <= 5
    assert "mean of 3 seeds" in axes.get_legend().texts[0].get_text()


def test_names_of_runs_are_no_formulas_and_stay_in_the_legend(make_run, tmp_path):
    folders = [make_run("_one"), make_run(r"a$b\nonsense$")]
    plots.plot_runs(folders, tmp_path / "both.png")
    figure = plots.draw([plots.read_curves(folder) for folder in folders])
    assert [text.get_text() for text in figure.axes[0].get_legend().texts] == ["./_one", r"a$b\nonsense$"]
