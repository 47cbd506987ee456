"""The command line: every mistake is one line, and runs from start to plot."""

import functools
import io
import json
import pathlib
import re
import subprocess
import sys

import chex
import numpy as np
import pytest

from btnn_jax import cli
from btnn_jax.cli import commands
from btnn_jax.cli.parser import make_parser
from btnn_jax.runs import agent as runs
from btnn_jax.runs import processes, scores
from btnn_jax.runs.agent import make_agent
from btnn_jax.runs.autoencoder import load_autoencoder
from btnn_jax.runs.checkpoint import Checkpoints
from btnn_jax.runs.folder import CHECKPOINTS, RunError
from btnn_jax.runs.run import Run, create_run, read_run
from btnn_jax.runs.scores import read_scores
from btnn_jax.training.config import UnrealConfig

SMALL = [
    *("--algorithm", "a2c", "--num-envs", "2", "--rollout-length", "4", "--hidden", "4", "--lstm", "none"),
    *("--no-noisy", "--vr-weight", "0", "--rp-weight", "0"),
]


def fails(capsys, *arguments):
    """The one line that a mistake is answered with."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(map(str, arguments)))
    assert caught.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("btnn-jax: error: ")
    assert errors.count("\n") == 1
    return errors


def test_python_m_is_the_same_program():
    done = subprocess.run(
        [sys.executable, "-m", "btnn_jax", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout == make_parser().format_help()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "arguments are required: COMMAND"),
        ("trian", "invalid choice: 'trian'"),
        ("train CartPol-v1", "did you mean 'CartPole-v1'"),
        (
            "train CartPole-v1 --data-option decimal=,",
            "--data-option is for prices, and CartPole-v1 has none",
        ),
        ("train trading --resume x --data-option decimal=,", "leave out ENV, --data-option"),
        ("train trading --env-param data=missing.csv --data-option day=3", "did you mean 'day_first'"),
        (
            "train-ae --data eurusd --data-option missing=drop",
            "eurusd is no environment: it has no parameters",
        ),
        ("data", "arguments are required: FILE"),
        ("data missing.csv", "cannot read missing.csv: No such file or directory"),
        ("data missing.csv --data-option days=3", "unknown data option 'days'; did you mean 'day_first'"),
        ("train probe-memory --env-param lenght=3", "did you mean 'length'"),
        ("train probe-memory --env-param length", "expected NAME=VALUE, got 'length'"),
        ("train probe-memory --env-param length=x", "probe-memory makes no sense of its parameters"),
        ("train probe-memory --steps many", "argument --steps: expected a whole number, got 'many'"),
        ("train probe-memory --steps 0.5", "argument --steps: expected a whole number, got '0.5'"),
        ("train probe-memory --lstm 8,", "argument --lstm: expected a whole number, got ''"),
        ("train probe-memory --discount lots", "argument --discount: expected a number, got 'lots'"),
        ("train probe-memory --discount 2", "--discount must be between 0 and 1, got 2.0"),
        ("train probe-memory --minibatches 7", "--minibatches must be a divisor of --num-envs=64, got 7"),
        ("train probe-memory --steps -5", "--steps must be at least 1, got -5"),
        ("train Catch-bsuite --env CartPole-v1", "Catch-bsuite and CartPole-v1 were both given"),
        ("train --env CartPole-v1 Catch-bsuite", "CartPole-v1 and Catch-bsuite were both given"),
        (
            "train probe-memory --lerning-rate 1",
            "unrecognized arguments: --lerning-rate 1; did you mean --learning-rate?",
        ),
        ("train probe-memory --algorithm dqn", "argument --algorithm: invalid choice: 'dqn'"),
        ("train probe-memory --pc-weight 1", "no agent fits probe-memory"),
        ("train probe-memory --keep 0", "must be at least 1, got 0"),
        ("train probe-memory --checkpoint-minutes 0", "must be above 0, got 0"),
        ("train probe-memory --step 5", "unrecognized arguments: --step 5"),
        ("train probe-memory --seed -1", "argument --seed: must be between 0 and 4294967295, got -1"),
        ("evaluate . --seed 4294967296", "argument --seed: must be between 0 and 4294967295, got 4294967296"),
        ("train --resume missing", "no run folder missing"),
        ("train probe-memory --resume missing --steps 5", "leave out --steps, ENV"),
        ("train --run a --resume b", "not allowed with argument"),
        ("train --resume missing --seeds 2", "leave out --seeds"),
        ("train probe-memory --checkpoint 3", "--checkpoint goes with --resume"),
        (
            "train probe-memory --coordinator a:1 --num-processes 2",
            "several processes needs --process-id too",
        ),
        (
            "train probe-memory --coordinator a:1 --num-processes 2 --process-id 2",
            "--process-id must be below 2, got 2",
        ),
        (
            "train probe-memory --coordinator a:1 --num-processes 2 --process-id 1",
            "several processes needs --run: the same folder for all",
        ),
        ("train-ae", "arguments are required: --data"),
        ("train-ae --data eurosd", "did you mean 'eurusd'"),
        ("train-ae --data missing.csv", "cannot read missing.csv: No such file or directory"),
        ("train-ae --data eurusd --window 0", "--window must be at least 1, got 0"),
        ("train-ae --data eurusd --stream a --frames 9", "examples of eurusd take no --frames, --stream"),
        ("train-ae --data missing.csv --frames 9", "examples of missing.csv take no --frames"),
        (
            "train-ae --data probe-pixels --window 9 --columns A",
            "of probe-pixels take no --columns, --window",
        ),
        ("train-ae --data probe-pixels --frames 1000", "frames=1000 of probe-pixels are 63 from each of 16"),
        ("train-ae --data eurusd --window 100k", "eurusd is too short: "),
        ("train-ae --data eurusd --columns Bid", "no column 'Bid'; there are Open, High"),
        ("train-ae --data eurusd --kind vae", "argument --kind: invalid choice: 'vae'"),
        ("train-ae --data eurusd --layers 32", "argument --layers: expected layers as 32:3x1:2x1,16:3x1:2x1"),
        ("train-ae --data eurusd --layers 4:3x1:99x1,4:3x1:1x1 --pad VALID", "level 2 of the encoder leaves"),
        ("train-ae --data eurusd --env-param a=1", "is no environment: it has no parameters {'a': 1}"),
        ("train-ae --resume missing --data eurusd --beta 2", "leave out --beta, --data"),
        ("train-ae --resume missing", "no run folder missing"),
        ("evaluate missing", "no run folder missing"),
        ("evaluate . --episodes 0", "must be at least 1, got 0"),
        ("evaluate . --commission 1e-4,-1", "argument --commission: must be at least 0, got 1e-4,-1"),
        ("evaluate . --commission 0,nan", "argument --commission: expected a number, got 'nan'"),
        ("evaluate . --commission 0,inf", "argument --commission: must be at most 1, got 0,inf"),
        ("evaluate . --max-steps 1e300", "argument --max-steps: must be below 2147483648, got 1e+300"),
        ("evaluate . --episodes 2147483648", "argument --episodes: must be below 2147483648, got 2.15e+09"),
        ("train probe-memory --hidden 1e10", "--hidden must be at most 2147483647, got (10000000000,)"),
        ("train-ae --data eurusd --steps 1e18", "--steps must be at most 2147483647, got 1000"),
        ("train-ae --data eurusd --stride 1e18", "--stride must be at most 2147483647, got 1000"),
        ("evaluate .", "has no config.json"),
        ("plot missing", "no run folder missing"),
        ("plot .", "has no config.json"),
    ],
)
def test_a_mistake_is_one_line(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *words.split())
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_checkpoints_or_metrics_is_one_line(capsys, tmp_path):
    folder = create_run(
        tmp_path / "run", Run("probe-memory", UnrealConfig(pc_weight=0, lstm=(4,), hidden=(4,)))
    )
    assert "no checkpoint in" in fails(capsys, "evaluate", folder)
    assert "has no metrics.jsonl" in fails(capsys, "plot", folder)


def test_a_bad_file_is_one_line_with_its_number(capsys, tmp_path):
    (tmp_path / "prices.csv").write_text("Date,Close\n2020-01-01,1\n2020-01-02,0\n")
    words = fails(capsys, "train-ae", "--data", tmp_path / "prices.csv", "--run", tmp_path / "run")
    assert "prices.csv, line 3: Close must be above 0, got 0" in words
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("module", ["orbax.checkpoint", "tensorboardX"])
def test_a_missing_extra_is_one_line(capsys, tmp_path, monkeypatch, module):
    loaded = [name for name in sys.modules if name.startswith(f"{module}.")]  # by a test before this one
    for name in (module, *loaded):
        monkeypatch.setitem(sys.modules, name, None)
    words = fails(capsys, "train", "probe-memory", "--run", tmp_path / "run", *SMALL)
    assert "pip install 'btnn-jax[train]'" in words


def test_a_run_from_start_to_plot(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "probe-memory", "--env-param", "length=3", "--seed", "4", "--steps", "64"]
    assert cli.main([*words, *SMALL, "--evaluate-episodes", "1"]) == 0
    out = capsys.readouterr().out
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"probe-memory-a2c-seed4-\d{8}-\d{6}", folder.name)
    assert "probe-memory shows no image: no pixel control" in out
    assert re.search(r"compiled in \d+\.\d s", out)
    assert "trained 64 of 64 steps" in out
    assert "probe-memory (length=3), A2C, seed 4, in runs/" in out
    assert re.search(r"\ngreedy +1 +\d\.\d\d \+- - ", out)
    assert read_scores(folder)["greedy"].standard_error is None
    json.loads((folder / "evaluation.json").read_text(), parse_constant=pytest.fail)  # NaN is not JSON

    run = read_run(folder)
    assert (run.env, run.env_params, run.seed) == ("probe-memory", {"length": 3}, 4)
    assert (run.config.lstm, run.config.pc_weight, run.config.total_steps) == ((), 0, 64)

    assert cli.main(["evaluate", str(folder), "--episodes", "5", "--seed", "1"]) == 0
    assert re.search(r"\nrandom +5 +\d\.\d\d \+- .*\n(.+\n)*not kept: ", capsys.readouterr().out)
    assert read_scores(folder)["greedy"].episodes == 1
    assert cli.main(["evaluate", str(folder), "--episodes", "128"]) == 0
    assert "not kept" not in capsys.readouterr().out
    assert read_scores(folder)["greedy"].episodes == 128

    assert cli.main(["plot", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "curves.png")
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")

    assert "already holds a run" in fails(capsys, "train", "probe-memory", "--run", folder, *SMALL)


def test_a_trading_run_says_what_it_trades(capsys, monkeypatch):
    def stop(env, config, *, env_params, **_):
        raise RunError(f"{env} {env_params}")

    monkeypatch.setattr(runs, "train", stop)
    for given, kept, told in [
        ([], {"data": "sine", "part": "train"}, 2),
        (["data=random_walk", "part=all"], {"data": "random_walk", "part": "all"}, 0),
    ]:
        words = [word for param in given for word in ("--env-param", param)]
        with pytest.raises(SystemExit):
            cli.main(["train", "trading", "--pc-weight", "0", *words])
        out, err = capsys.readouterr()
        assert f"trading {kept}" in err
        assert out.count("\n") == ("data=sine (the default)" in out) + ("part=train" in out) == told


def test_every_device_of_every_process_has_a_shard(capsys, tmp_path, monkeypatch):
    def stop(env, config, *, devices, max_skipped, keep, **_):
        raise RunError(f"{config.shards} {devices} {max_skipped} {keep}")

    monkeypatch.setattr(runs, "train", stop)
    monkeypatch.setattr(processes, "connect", lambda *_: None)
    words = "--devices 2 --coordinator a:1 --num-processes 3 --process-id 0 --max-skipped 7 --keep 5"
    assert "6 2 7 5\n" in fails(capsys, "train", "probe-memory", *words.split(), "--run", tmp_path / "run")


def test_the_best_checkpoint_is_evaluated_where_asked(capsys, tmp_path, monkeypatch):
    def stop(folder, *, best, **_):
        raise RunError(f"best={best}")

    monkeypatch.setattr(scores, "score_run", stop)
    folder = create_run(tmp_path / "run", Run("probe-memory", UnrealConfig()))
    assert "best=True" in fails(capsys, "evaluate", folder, "--best")
    assert "best=False" in fails(capsys, "evaluate", folder)


def test_an_interrupted_run_tells_the_options_to_go_on_with(capsys):
    class Result:
        run = Run("probe-memory", UnrealConfig())
        steps, seconds, stopped, folder = 2_000_896, 61.0, 2, "runs/a"

        class state:  # noqa: N801
            skipped = 0

    given = make_parser().parse_args(["train", "--devices", "2", "--evaluate-episodes", "0"])
    assert commands._conclude(Result, given) == 130
    assert "train --resume runs/a --devices 2 --evaluate-episodes 0\n" in capsys.readouterr().out


def test_gradient_steps_left_out_are_told(capsys):
    class Result:
        run = Run("probe-memory", UnrealConfig())
        steps, seconds, stopped, folder = 2_000_896, 61.0, None, "runs/a"

        class state:  # noqa: N801
            skipped = 3

    commands._report(Result, "train")
    assert "3 gradient steps were not finite" in capsys.readouterr().out


def test_an_autoencoder_from_start_to_plot(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prices = np.exp(0.01 * np.random.default_rng(0).normal(size=(200, 2)).cumsum(0))
    days = np.datetime64("2020-01-01") + np.arange(200)
    rows = [f"{day},{a!r},{b!r}\n" for day, (a, b) in zip(days, prices.tolist(), strict=True)]
    (tmp_path / "prices.csv").write_text("Date,A,B\n" + "".join(rows))
    words = ["train-ae", "--data", "prices.csv", "--kind", "beta_vae", "--seed", "3", "--window", "8"]
    assert cli.main([*words, "--steps", "20", "--steps-per-update", "10", "--batch", "4"]) == 0
    out = capsys.readouterr().out
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"prices\.csv-beta_vae-seed3-\d{8}-\d{6}", folder.name)
    assert "8 steps of prices.csv, beta_vae with 8 latent variables, seed 3" in out
    assert "trained 20 of 20 steps" in out
    assert re.search(r"\nautoencoder +8 +\d\.\d{4} +\d\.\d{4} +\d+\.\d%\nPCA +8 ", out)
    pictures = ["curves", "kernels", "reconstructions", "traversals"]
    assert sorted(path.stem for path in folder.glob("*.png")) == pictures

    assert cli.main(["evaluate", str(folder)]) == 0
    assert "\nPCA  " in capsys.readouterr().out
    (folder / "curves.png").unlink()
    assert cli.main(["plot", str(folder)]) == 0
    assert capsys.readouterr().out.split() == [
        str(folder / f"{name}.png") for name in ("curves", "reconstructions", "traversals", "kernels")
    ]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "leave out --output" in fails(capsys, "plot", folder, "--output", "a.png")
    other = f"{folder} is a run of train-ae; this needs a run of train\n"
    assert other in fails(capsys, "train", "--resume", folder)
    assert other in fails(capsys, "plot", folder, folder)
    assert cli.main(["train-ae", "--resume", str(folder)]) == 0
    assert "resumed at 20 steps" in capsys.readouterr().out


def test_scikit_learn_is_missed_before_training(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    words = fails(capsys, "train-ae", "--data", "eurusd", "--run", tmp_path / "run")
    assert "comparing with PCA needs the package" in words
    assert not (tmp_path / "run").exists()


def test_an_agent_starts_with_a_trained_encoder_and_keeps_it(capsys, tmp_path):
    encoder, run = str(tmp_path / "encoder"), str(tmp_path / "run")
    layers = ["--layers", "2:3x3:2x2"]
    words = [
        "train-ae",
        "--data",
        "probe-pixels",
        "--frames",
        "160",
        "--embargo",
        "1",
        *layers,
        "--run",
        encoder,
    ]
    assert cli.main([*words, "--steps", "4", "--steps-per-update", "2", "--batch", "4"]) == 0
    words = "probe-pixels --num-envs 4 --rollout-length 8 --steps 64 --minibatches 2 --epochs 1 --hidden 4 --lstm none"
    tasks = "--pc-weight 0 --vr-weight 0 --rp-weight 0 --ae-weight 0.1 --frozen encoder/autoencoder"
    start = ["train", *words.split(), *tasks.split(), "--evaluate-episodes", "0", "--encoder", encoder]
    assert cli.main([*start, "--run", run]) == 0
    trained = load_autoencoder(encoder).params
    with Checkpoints(pathlib.Path(run) / CHECKPOINTS, create=False) as checkpoints:
        state = checkpoints.restore(make_agent(read_run(run)).state)
    assert state.update == 2
    chex.assert_trees_all_equal(state.params["encoder"]["autoencoder"], trained)
    capsys.readouterr()
    message = fails(capsys, *start, "--ae-layers", "3:3x3:2x2", "--run", tmp_path / "other")
    assert "--encoder says what --ae-layers is" in message
    message = fails(capsys, "train", "--encoder", run)
    assert f"{run} is a run of train; this needs a run of train-ae\n" in message


def test_seeds_beyond_32_bits_are_one_line(capsys, tmp_path):
    words = [
        "train",
        "probe-choice",
        "--pc-weight",
        "0",
        "--run",
        tmp_path / "run",
        "--seed",
        2**32 - 1,
        "--seeds",
        2,
    ]
    assert f"seeds must be below {2**32}, got {2**32 - 1} to {2**32}" in fails(capsys, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content", ["[" * 200_000, '{"config": ' + "[" * 100_000, "\xff\xfe", "{", "[]", "null", "1e999"]
)
def test_a_config_that_makes_no_sense_is_one_line(capsys, tmp_path, content):
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    for command in ("evaluate", "plot"):
        assert "config.json" in fails(capsys, command, tmp_path)


@pytest.mark.parametrize("value", ["-" * 50_000 + "1", "(" * 50_000, "[" * 3000 + "]" * 3000])
def test_a_value_of_a_parameter_that_is_nested_too_deeply_is_one_line(capsys, value):
    message = fails(
        capsys, "train", "probe-choice", "--pc-weight", "0", "--env-param", f"num_actions={value}"
    )
    assert len(message) < 1000


def test_data_shows_how_files_are_understood(capsys, tmp_path):
    rows = "".join(f"{day:02}/02/2024;{100 + day},25\n" for day in (1, 2, 2, 5))
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("Date;Schluss\n" + rows)
    path = tmp_path / "a.csv"
    assert "choose day_first=True or day_first=False" in fails(capsys, "data", path)
    picture = tmp_path / "prices.png"
    assert cli.main(["data", str(path), "--data-option", "day_first=true", "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "duplicates  1 rows repeat a time" in out
    assert "2024-02-01 00:00:00 to 2024-02-05 00:00:00" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    options = ("--data-option", "duplicates=error", "--data-option", "day_first=true")
    assert "line 4: repeats the time 2024-02-02T00:00:00 of line 3" in fails(capsys, "data", path, *options)
    assert cli.main(["data", str(path), str(tmp_path / "b.csv"), "--data-option", "day_first=true"]) == 0
    assert "Schluss as a Close, Schluss as b Close" in capsys.readouterr().out


def test_training_reads_prices_with_the_options_given(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(runs, "train", lambda env, config, **given: seen.update(given) or sys.exit(3))
    (tmp_path / "prices.csv").write_text(
        "Date;Close\n" + "".join(f"0{1 + i % 9}/0{1 + i // 9}/2024;1,5\n" for i in range(80))
    )
    words = ["train", "trading", "--env-param", f"data={tmp_path / 'prices.csv'}", "--env-param", "window=4"]
    with pytest.raises(SystemExit, match="3"):
        cli.main(
            [
                *words,
                "--env-param",
                "episode_length=4",
                "--env-param",
                "embargo=0",
                "--data-option",
                "day_first=true",
            ]
        )
    assert seen["env_params"]["data_params"] == {"day_first": True}


@pytest.mark.parametrize(
    "words", ["evaluate", "plot", "train --resume", "train --encoder", "train-ae --data"]
)
def test_a_name_that_is_too_long_is_one_line(capsys, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    assert "a" * 100 in fails(capsys, *words.split(), "a" * 5000)


def test_a_device_without_room_is_one_line(capsys, monkeypatch):
    def exhaust(message, given):
        raise RuntimeError(message)

    full = functools.partial(exhaust, "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")
    monkeypatch.setitem(commands._COMMANDS, "plot", full)
    assert "not enough memory; make sizes smaller: RESOURCE_EXHAUSTED: Out" in fails(capsys, "plot", "run")
    monkeypatch.setitem(commands._COMMANDS, "plot", functools.partial(exhaust, "INTERNAL: a fault"))
    with pytest.raises(RuntimeError, match="INTERNAL"):
        cli.main(["plot", "run"])


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setitem(commands._COMMANDS, "plot", lambda given: print("größe\udcff", flush=True) or 0)
    assert cli.main(["plot", "run"]) == 0
    assert out.buffer.getvalue() == rb"gr\xf6\xdfe\udcff" + b"\n"
