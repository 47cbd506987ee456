"""The pictures show what they were given."""

import json

import jax
import matplotlib.pyplot
import numpy as np
import pytest

from btnn_jax.data import Scale
from btnn_jax.plots import autoencoder as plots
from btnn_jax.runs.autoencoder import TrainedAutoencoder
from btnn_jax.runs.autoencoder_data import Examples
from btnn_jax.runs.folder import METRICS, RunError
from btnn_jax.runs.reconstruction import ReconstructionErrors
from btnn_jax.runs.run import AutoencoderRun
from btnn_jax.training.autoencoder import make_autoencoder
from btnn_jax.training.config import AutoencoderConfig

BARS = ("Open", "High", "Low", "Close")


def signals(*lead, channels=4):
    return np.random.default_rng(0).normal(size=(*lead, 12, 1, channels))


def images(*lead, channels=4):
    return np.random.default_rng(0).uniform(size=(*lead, 6, 5, channels))


def test_the_learning_curve_has_pca_as_a_line():
    metrics = {
        "steps": np.array([200.0, 400.0, 600.0]),
        "reconstruction_loss": np.array([1.0, 0.5, 0.2]),
        "validation_loss": np.array([0.9, 0.4, 0.25]),
    }
    axes = plots.draw_learning(metrics, {"PCA": ReconstructionErrors(8, 0.2, 0.3)}).axes[0]
    training, _, validation, _, pca = (line.get_xydata() for line in axes.lines)
    np.testing.assert_array_equal(training, np.stack([metrics["steps"], metrics["reconstruction_loss"]], 1))
    np.testing.assert_array_equal(validation, np.stack([metrics["steps"], metrics["validation_loss"]], 1))
    assert set(pca[:, 1]) == {0.3}
    assert "PCA, validation: 0.3" in [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(plots.draw_learning(metrics, {}).axes[0].lines) == 4


def test_bars_reach_from_low_to_high_with_a_dot_at_the_close():
    x, y = signals(3), signals(3) + 1
    figure = plots.draw_reconstructions(x, y, BARS, title="bars")
    assert len(figure.axes) == 3
    for axes, example, made in zip(figure.axes, x[:, :, 0], y[:, :, 0], strict=True):
        for drawn, dots, bars in zip(axes.collections, axes.lines[1:], (example, made), strict=True):
            ends = np.array([segment[:, 1] for segment in drawn.get_segments()])
            np.testing.assert_allclose(ends, bars[:, [2, 1]])
            np.testing.assert_allclose(dots.get_ydata(), bars[:, 3])
    assert figure.get_suptitle() == "bars"


def test_other_signals_are_lines_over_each_other():
    x, y = signals(2, channels=2), signals(2, channels=2) + 1
    figure = plots.draw_reconstructions(x, y, ("A", "B"), unit="%")
    drawn = [line.get_ydata() for line in figure.axes[1].lines]
    expected = [x[1, :, 0, 0], y[1, :, 0, 0], x[1, :, 0, 1], y[1, :, 0, 1]]
    np.testing.assert_array_equal(drawn, expected)
    assert [axes.get_ylabel() for axes in figure.axes] == ["%", ""]
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["A", "B", "example", "reconstruction"]
    *_, example, made = legend.get_lines()
    for shown, line in ((example, figure.axes[0].lines[0]), (made, figure.axes[0].lines[1])):
        assert (shown.get_linewidth(), shown.get_alpha()) == (line.get_linewidth(), line.get_alpha())
    assert example.get_linewidth() > made.get_linewidth()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_are_rows_of_examples_and_of_what_was_made(channels):
    x, y = images(5, channels=channels), images(5, channels=channels) / 2
    figure = plots.draw_reconstructions(x, y, tuple("abcd"[:channels]))
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert len(shown) == 10
    assert {image.shape for image in shown} == {(6, 5, 3)}
    if channels == 3:
        np.testing.assert_array_equal(shown, [*x, *y])
    if channels == 1:
        np.testing.assert_array_equal(shown[7], np.repeat(y[2], 3, axis=-1))


def test_every_channel_of_an_image_has_a_colour_of_its_own():
    lit = np.zeros((4, 1, 2, 4))
    lit[np.arange(4), 0, 0, np.arange(4)] = 1
    shown = [axes.images[0].get_array() for axes in plots.draw_reconstructions(lit, lit, tuple("abcd")).axes]
    assert len({tuple(image[0, 0]) for image in shown[:4]}) == 4
    assert all((image[0, 1] == 0).all() for image in shown)


def test_traversals_of_signals_are_lines_from_blue_to_red():
    moved = signals(2, 7, channels=2)
    figure = plots.draw_traversals(moved, ["z 3", "z 0"], ("A", "B"), unit="%")
    assert figure.get_supylabel() == "%"
    assert [axes.get_ylabel() for axes in figure.axes] == ["z 3", "", "z 0", ""]
    lines = figure.axes[3].lines
    np.testing.assert_array_equal([line.get_ydata() for line in lines], moved[1, :, :, 0, 1])
    (red, _, blue, _), (last_red, _, last_blue, _) = lines[0].get_color(), lines[-1].get_color()
    assert blue > red
    assert last_red > last_blue


def test_traversals_of_images_are_a_row_for_each_latent_variable():
    moved = images(2, 7, channels=3)
    figure = plots.draw_traversals(moved, ["z 3", "z 0"], tuple("rgb"))
    assert "from left to right" in figure.get_supxlabel()
    shown = [axes.images[0].get_array() for axes in figure.axes]
    np.testing.assert_array_equal(shown, moved.reshape(14, 6, 5, 3))


@pytest.mark.parametrize(("bank", "pictures"), [(signals(11), False), (images(11), True)])
def test_every_kernel_of_the_bank_is_drawn(bank, pictures):
    figure = plots.draw_kernels(bank, BARS, unit="%")
    assert [axes.get_title() for axes in figure.axes] == [str(i) for i in range(11)]
    if pictures:
        shown = np.stack([axes.images[0].get_array() for axes in figure.axes])
        np.testing.assert_allclose(shown.min((1, 2, 3)), 0)
        np.testing.assert_allclose(shown.max((1, 2, 3)), 1)
        assert "its own smallest" in figure.get_supxlabel()
    else:
        assert figure.get_supylabel() == "%"
        for index, axes in enumerate(figure.axes):  # rows of 8; of the first, five have nothing below
            assert axes.yaxis.get_tick_params()["labelleft"] == (index in (0, 8))
            assert axes.xaxis.get_tick_params()["labelbottom"] == (index >= 3)
            assert axes.get_xlabel() == ("step" if index >= 3 else "")
        for axes, kernel in zip(figure.axes, bank, strict=True):
            np.testing.assert_array_equal([line.get_ydata() for line in axes.lines], kernel[:, 0].T)
        assert len({axes.get_ylim() for axes in figure.axes}) == 1
        assert [text.get_text() for text in figure.legends[0].get_texts()] == list(BARS)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A run's folder with metrics, and the autoencoder that it is said to hold: layers of 2, 5 and 1 kernels."""
    config = AutoencoderConfig(layer_config=((2, (3, 1), (1, 1)), (5, (3, 1), (2, 1)), (1, (3, 1), (1, 1))))
    x = signals(9, channels=2).astype(np.float32)
    examples = Examples("12 steps", ("A", "B"), x, x, Scale(np.zeros(2), np.full(2, 0.01)))
    autoencoder = make_autoencoder(config, jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
    params = jax.jit(autoencoder.init)(jax.random.key(0)).params
    run = AutoencoderRun("data.csv", config)
    monkeypatch.setattr(
        plots, "load_autoencoder", lambda folder: TrainedAutoencoder(run, examples, autoencoder, params)
    )
    return tmp_path


def test_pictures_of_a_run_name_units_and_the_widest_layer(trained, monkeypatch):
    record = {"steps": 8, "seconds": 1.0, "reconstruction_loss": 1.0, "validation_loss": 1.0}
    (trained / METRICS).write_text(json.dumps(record) + "\n")
    drawn = {}
    for name in ("reconstructions", "traversals", "kernels"):
        original = getattr(plots, f"draw_{name}")

        def draw(*args, name=name, original=original, **more):
            drawn[name] = original(*args, **more)
            return drawn[name]

        monkeypatch.setattr(plots, f"draw_{name}", draw)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in plots.plot_autoencoder(trained))
    assert drawn["reconstructions"].axes[0].get_ylabel() == "log return, %"
    assert drawn["traversals"].get_supylabel() == "log return, %"
    assert drawn["kernels"].get_supylabel() == "log return, in standard deviations"
    assert "layer 2 of 3 of the encoder" in drawn["kernels"].get_suptitle()
    assert len(drawn["kernels"].axes) == 5


def test_nothing_is_drawn_of_a_run_without_records(trained):
    (trained / METRICS).write_text("")
    with pytest.raises(RunError, match="nothing has been recorded in"):
        plots.plot_autoencoder(trained)


def test_no_state_of_pyplot_is_touched():
    plots.draw_kernels(signals(2), BARS)
    assert matplotlib.pyplot.get_fignums() == []
