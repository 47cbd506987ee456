"""Pictures of an autoencoder: learning curve, reconstructions, latent traversals and kernels."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from btnn_jax._errors import import_extra
from btnn_jax.kernel_monitor import KernelMonitor
from btnn_jax.plots.agent import finite_values, smooth
from btnn_jax.plots.style import COLOURS, legend_label, make_figure, save, tidy
from btnn_jax.runs.autoencoder import TrainedAutoencoder, load_autoencoder
from btnn_jax.runs.autoencoder_data import Examples
from btnn_jax.runs.folder import Folder, RunError
from btnn_jax.runs.metrics import read_metrics
from btnn_jax.runs.progress import format_count
from btnn_jax.runs.reconstruction import ReconstructionErrors, read_errors

__all__ = [
    "EXAMPLE",
    "RECONSTRUCTION",
    "draw_kernels",
    "draw_learning",
    "draw_reconstructions",
    "draw_traversals",
    "kernels",
    "plot_autoencoder",
    "reconstructions",
    "traversals",
    "widest_layer",
]

EXAMPLE, RECONSTRUCTION = "#8a929c", COLOURS[0]
_SHOWN = 6  # examples of signals, or latent variables
_SHOWN_IMAGES = 10
_EXAMPLE: dict[str, float] = {"alpha": 0.35, "linewidth": 3}
_RECONSTRUCTION: dict[str, float] = {"linewidth": 1.2}


def plot_autoencoder(folder: Folder) -> list[pathlib.Path]:
    """Draws the learning curve, reconstructions, latent traversals and kernels of a run into its folder.

    Returns:
      The pictures' files.

    Raises:
      RunError: the folder is not an autoencoder's run, it has no checkpoint, nothing has been recorded in it, or a
        picture cannot be written.
      ModuleNotFoundError: matplotlib is not installed.
    """
    trained, path, metrics = load_autoencoder(folder), pathlib.Path(folder), read_metrics(folder)
    if not metrics:
        raise RunError(f"nothing has been recorded in {folder} yet")
    title = f"{trained.examples.title}, {trained.run.config.kind} with {trained.autoencoder.latent} latent variables"
    x, y = reconstructions(trained)
    moved, names = traversals(trained)
    channels = trained.examples.channels
    returns = trained.examples.scale is not None
    unit = "log return, %" if returns else ""
    layer, layers = widest_layer(trained)
    figures = {
        "curves.png": draw_learning(metrics, read_errors(folder), title=title),
        "reconstructions.png": draw_reconstructions(x, y, channels, title=title, unit=unit),
        "traversals.png": draw_traversals(moved, names, channels, title=title, unit=unit),
        "kernels.png": draw_kernels(
            kernels(trained),
            channels,
            title=f"What excites each kernel most: layer {layer} of {layers} of the encoder\n{title}",
            unit="log return, in standard deviations" if returns else "",
        ),
    }
    return [save(figure, path / name) for name, figure in figures.items()]


def reconstructions(trained: TrainedAutoencoder) -> tuple[np.ndarray, np.ndarray]:
    """Examples of the validation part, evenly over its time, and what becomes of them; log returns in percent."""
    _, examples, autoencoder, params = trained
    count = _SHOWN if _is_signal(examples.validation) else _SHOWN_IMAGES
    rows = np.linspace(0, len(examples.validation) - 1, count).astype(int)
    x = jnp.asarray(examples.validation[rows])
    y = jax.jit(lambda params, x: autoencoder.decode(params, autoencoder.encode(params, x)))(params, x)
    return _natural(examples, x), _natural(examples, y)


def traversals(trained: TrainedAutoencoder, steps: int = 7) -> tuple[np.ndarray, list[str]]:
    """Decodes an example while one latent variable moves from -2 to 2 of its standard deviations.

    Returns:
      The latent variables that change it most, `[L, steps, H, W, C]`, and their names.
    """
    _, examples, autoencoder, params = trained
    x = jnp.asarray(examples.validation[:: max(1, len(examples.validation) // 512)])
    z = jax.jit(autoencoder.encode)(params, x)
    # From the middle of what occurs, or everything else in the example hides what moves.
    start, deviation = jnp.mean(z, axis=0), jnp.std(z, axis=0)
    places = jnp.linspace(-2.0, 2.0, steps)

    def move(params: Any, latent: jax.Array) -> jax.Array:
        moved = start[None] + places[:, None] * (deviation * jax.nn.one_hot(latent, len(start)))[None]
        return autoencoder.decode(params, moved)

    moved = jax.jit(lambda params: jax.lax.map(lambda k: move(params, k), jnp.arange(len(start))))(params)
    effect = jnp.mean(jnp.var(moved, axis=1), axis=(1, 2, 3))
    best = np.argsort(-np.asarray(effect))[:_SHOWN]
    return _natural(examples, moved[best]), [f"z {k}" for k in best]


def widest_layer(trained: TrainedAutoencoder) -> tuple[int, int]:
    """Which of the encoder's layers has the most kernels, counted from 1, and how many layers there are."""
    _, examples, autoencoder, params = trained
    x = jax.ShapeDtypeStruct((1, *examples.validation.shape[1:]), jnp.float32)
    widths = [layer.shape[-1] for layer in jax.eval_shape(autoencoder.features, params, x)]
    return 1 + widths.index(max(widths)), len(widths)


def kernels(trained: TrainedAutoencoder) -> np.ndarray:
    """The inputs that excite the kernels of the encoder's widest layer most, `[kernels, H, W, C]`, as it reads them."""
    _, examples, autoencoder, params = trained
    shape: Any = examples.validation.shape[1:]
    widest, _ = widest_layer(trained)

    def layer(x: jax.Array) -> jax.Array:
        features = autoencoder.features(params, x)[widest - 1]
        if features.ndim == 5:  # of a channel-wise one, [C, N, h, w, filters]
            features = jnp.moveaxis(features, 0, -2)
            features = features.reshape(*features.shape[:3], -1)
        return features

    start = jnp.full(shape, 0.5) if not _is_signal(examples.validation) else jnp.zeros(shape)
    start += 0.1 * jax.random.normal(jax.random.key(0), shape)
    return np.asarray(
        KernelMonitor(layer, shape).fit_all(None, step=0.1, num_steps=40, start=start, blur=0.5)
    )


def draw_learning(
    metrics: dict[str, np.ndarray], errors: dict[str, ReconstructionErrors], *, title: str = ""
) -> Any:
    """The errors over the gradient steps, with PCA's as a line, as a `matplotlib.figure.Figure`."""
    figure = make_figure((9, 5), title)
    axes = figure.add_subplot()
    for name, label, colour in (
        ("reconstruction_loss", "training", EXAMPLE),
        ("validation_loss", "validation", RECONSTRUCTION),
    ):
        steps, values = finite_values(metrics, name)
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
        axes.plot(steps, smooth(values), color=colour, linewidth=2.2, label=label)
    if "PCA" in errors:
        label = f"PCA, validation: {errors['PCA'].validation:.4g}"
        axes.axhline(errors["PCA"].validation, color=COLOURS[1], linestyle="--", linewidth=1.5, label=label)
    axes.set_yscale("log")
    axes.set_xlim(0, metrics["steps"][-1])
    ticker = import_extra("matplotlib.ticker", "plotting")
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: format_count(value)))
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set_xlabel("gradient steps")
    axes.set_ylabel("mean squared error")
    axes.legend(frameon=False)
    tidy(axes)
    return figure


def draw_reconstructions(
    x: np.ndarray, y: np.ndarray, channels: Sequence[str], *, title: str = "", unit: str = ""
) -> Any:
    """Examples beside their reconstructions, as a `matplotlib.figure.Figure`.

    Args:
      x: `[N, H, W, C]`; signals `[N, T, 1, C]` are drawn as lines, or as bars if they are those of prices.
      y: their reconstructions.
      channels: names of the last axis.
      title: title of the picture.
      unit: unit of signals, which are drawn as lines.
    """
    if not _is_signal(x):
        figure = make_figure((1.25 * len(x) + 0.8, 3.4), title)
        for row, (name, images) in enumerate((("example", x), ("reconstruction", y))):
            for column, image in enumerate(_colours(images)):
                axes = figure.add_subplot(2, len(x), 1 + row * len(x) + column)
                _show(axes, image, name if column == 0 else "")
        return figure
    bars = {"high", "low", "close"} <= set(_lower(channels))
    draw = _draw_bars if bars else _draw_lines
    columns = 2 if len(x) > 1 else 1
    rows = -(-len(x) // columns)
    figure = make_figure((14, 0.9 + 2.5 * rows), title)
    for index, (example, made) in enumerate(zip(x[:, :, 0], y[:, :, 0], strict=True)):
        axes = figure.add_subplot(rows, columns, 1 + index)
        draw(axes, example, made, channels)
        axes.set_xlim(-0.7, len(example) - 0.1)
        if index >= len(x) - columns:
            axes.set_xlabel("step")
        if not bars and index % columns == 0:
            axes.set_ylabel(unit, fontsize=9)
        if index == 0:
            handles, _ = axes.get_legend_handles_labels()
            handles += [] if bars else _line_styles()
            axes.legend(
                handles=handles, frameon=False, fontsize=9, ncols=6, loc="lower left", bbox_to_anchor=(0, 1)
            )
        tidy(axes)
    return figure


def draw_traversals(
    moved: np.ndarray, names: Sequence[str], channels: Sequence[str], *, title: str = "", unit: str = ""
) -> Any:
    """Draws latent traversals as a `matplotlib.figure.Figure`.

    Args:
      moved: `[L, steps, H, W, C]`, as `traversals` gives it; a signal's steps are drawn over each other.
      names: names of the `L` latent variables.
      channels: names of the last axis.
      title: title of the picture.
      unit: unit of signals.
    """
    count, steps = moved.shape[:2]
    if not _is_signal(moved):
        figure = make_figure((1.25 * steps + 0.8, 0.8 + 1.25 * count), title)
        for row, (images, name) in enumerate(zip(moved, names, strict=True)):
            for column, image in enumerate(_colours(images)):
                axes = figure.add_subplot(count, steps, 1 + row * steps + column)
                _show(axes, image, name if column == 0 else "")
        figure.supxlabel(
            "from left to right the latent variable moves from -2 to 2 standard deviations", fontsize=9
        )
        return figure
    figure = make_figure((3 + 3 * len(channels), 1.2 + 1.5 * count), title)
    maps = import_extra("matplotlib", "plotting").colormaps["coolwarm"]
    grid = figure.subplots(count, len(channels), sharex=True, sharey=True, squeeze=False)
    for row, (lines, name) in enumerate(zip(moved[:, :, :, 0], names, strict=True)):
        for column, channel in enumerate(channels):
            axes = grid[row, column]
            for step, line in enumerate(lines):
                axes.plot(line[:, column], color=maps(step / (steps - 1)), linewidth=1.3)
            if row == 0:
                axes.set_title(channel, fontsize=10, loc="left")
            if column == 0:
                axes.set_ylabel(name)
            tidy(axes)
    figure.supxlabel(
        "step; from blue to red the latent variable moves from -2 to 2 standard deviations", fontsize=9
    )
    figure.supylabel(unit, fontsize=9)
    return figure


def draw_kernels(bank: np.ndarray, channels: Sequence[str], *, title: str = "", unit: str = "") -> Any:
    """A bank of kernels, the inputs that excite each most, as a `matplotlib.figure.Figure`.

    Args:
      bank: `[kernels, *input_shape]`, as `KernelMonitor.fit_all` gives it.
      channels: names of the last axis.
      title: title of the picture.
      unit: unit of signals.
    """
    bank = np.asarray(bank)
    columns = min(8, len(bank))
    rows = -(-len(bank) // columns)
    figure = make_figure((1.6 * columns + 0.4, 1.0 + 1.3 * rows), title)
    draw: Callable[[Any, np.ndarray], None]
    if _is_signal(bank):
        low, high = bank.min(), bank.max()

        def draw(axes: Any, kernel: np.ndarray) -> None:
            for channel, name in enumerate(channels):
                axes.plot(
                    kernel[:, 0, channel],
                    color=COLOURS[channel % len(COLOURS)],
                    linewidth=1.1,
                    label=legend_label(name),
                )
            axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
            tidy(axes)
    else:
        pictures = iter(_colours(bank, stretch=True))

        def draw(axes: Any, kernel: np.ndarray) -> None:
            del kernel
            _show(axes, next(pictures), "")

    for index, kernel in enumerate(bank):
        axes = figure.add_subplot(rows, columns, 1 + index)
        draw(axes, kernel)
        axes.set_title(str(index), fontsize=8, pad=2)
        if _is_signal(bank):
            lowest = index + columns >= len(bank)
            axes.tick_params(labelleft=index % columns == 0, labelbottom=lowest, length=2)
            axes.set_xlabel("step" if lowest else "", fontsize=9)
    if not _is_signal(bank):
        figure.supxlabel("each is stretched from its own smallest number to its own largest", fontsize=9)
    else:
        figure.supylabel(unit, fontsize=9)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _draw_lines(axes: Any, example: np.ndarray, made: np.ndarray, channels: Sequence[str]) -> None:
    for channel, name in enumerate(channels):
        colour = COLOURS[channel % len(COLOURS)]
        axes.plot(example[:, channel], color=colour, label=legend_label(name), **_EXAMPLE)
        axes.plot(made[:, channel], color=colour, **_RECONSTRUCTION)


def _line_styles() -> list[Any]:
    """Of a legend: what thick and thin lines are, whatever their colour."""
    line = import_extra("matplotlib.lines", "plotting").Line2D
    return [
        line([], [], color="black", label=name, **style)
        for name, style in (("example", _EXAMPLE), ("reconstruction", _RECONSTRUCTION))
    ]


def _draw_bars(axes: Any, example: np.ndarray, made: np.ndarray, channels: Sequence[str]) -> None:
    """From low to high with a dot at the close, all in percent of the close before."""
    high, low, close = (_lower(channels).index(name) for name in ("high", "low", "close"))
    steps = np.arange(len(example))
    axes.axhline(0, color="#cccccc", linewidth=0.8)
    for bars, colour, shift, name in (
        (example, EXAMPLE, 0.0, "example, with a dot at the close"),
        (made, RECONSTRUCTION, 0.35, "reconstruction"),
    ):
        axes.vlines(
            steps + shift, bars[:, low], bars[:, high], color=colour, linewidth=2.4, label=legend_label(name)
        )
        axes.plot(steps + shift, bars[:, close], "o", color=colour, markersize=4, markeredgecolor="white")
    axes.set_ylabel("% of the close before", fontsize=9)


def _show(axes: Any, image: np.ndarray, label: str) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_ylabel(label, fontsize=9)
    for side in axes.spines.values():
        side.set_color("#cccccc")


def _colours(images: np.ndarray, *, stretch: bool = False) -> np.ndarray:
    """Images `[N, H, W, C]` as red, green and blue in [0, 1]: other numbers of channels have a colour each.

    With `stretch` the smallest number of each image is black and the largest white, whatever they are.
    """
    channels = images.shape[-1]
    if channels == 1:
        images = np.repeat(images, 3, axis=-1)
    elif channels != 3:
        palette = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLOURS]) / 255
        images = images @ palette[np.arange(channels) % len(palette)]
    if stretch:
        low, high = images.min((1, 2, 3), keepdims=True), images.max((1, 2, 3), keepdims=True)
        images = (images - low) / np.maximum(high - low, 1e-6)
    return np.clip(images, 0, 1)


def _natural(examples: Examples, x: jax.Array) -> np.ndarray:
    """Log returns in percent, pixels from 0 to 1."""
    values = np.asarray(x).astype(np.float64) / (255 if x.dtype == jnp.uint8 else 1)
    return values if examples.scale is None else 100 * examples.scale.invert(values)


def _is_signal(x: Any) -> bool:
    return bool(x.shape[-2] == 1)


def _lower(names: Sequence[str]) -> list[str]:
    return [name.casefold() for name in names]
