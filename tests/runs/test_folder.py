"""Folders of runs whose files are damaged, or do not exist."""

import json

import pytest

from btnn_jax.runs.folder import RunError, read_rows, read_settings
from btnn_jax.runs.keys import check_seeds
from btnn_jax.runs.run import AutoencoderRun, Run, create_run, read_autoencoder_run, read_run
from btnn_jax.runs.scores import Score, read_scores
from btnn_jax.runs.sources import environment_of
from btnn_jax.training.config import AutoencoderConfig, UnrealConfig


def test_a_name_that_is_too_long_is_no_folder():
    with pytest.raises(RunError, match="no run folder aaa"):
        read_settings("a" * 5000)


@pytest.mark.parametrize("value", [None, -1, 1.5, "x", [], True, 2**33])
@pytest.mark.parametrize("place", [("seed",), ("seeds",), ("environment", "name"), ("environment", "params")])
def test_settings_of_the_wrong_type_are_one_line(tmp_path, place, value):
    folder = create_run(tmp_path / "run", Run("probe-memory", UnrealConfig()))
    settings = json.loads((folder / "config.json").read_text())
    *before, name = place
    inner = settings[before[0]] if before else settings
    inner[name] = value
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(RunError, match=r"does not describe a run|unknown environment 'x'") as caught:
        environment_of(read_run(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data", [None, "eurusd", {}, {"source": 3, "params": {}}, {"source": "a", "params": []}]
)
def test_settings_of_an_autoencoder_of_the_wrong_type_are_one_line(tmp_path, data):
    settings = {"data": data, "config": AutoencoderConfig().to_dict(), "seed": 0}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(RunError, match="does not describe a run of an autoencoder"):
        read_autoencoder_run(tmp_path)
    settings["data"] = {"source": "eurusd", "params": {}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert read_autoencoder_run(tmp_path) == AutoencoderRun("eurusd", AutoencoderConfig())


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000),
        *(b'{"scores": 3}', b'{"scores": {"greedy": {}}}'),
        b'{"scores": {"greedy": {"episodes": [], "mean_return": 1, "standard_error": 1, "mean_length": 1, '
        b'"unfinished": 1}}}',
    ],
)  # fmt: skip
def test_scores_that_are_damaged_are_one_line(tmp_path, content):
    assert read_scores(tmp_path) == {}
    (tmp_path / "evaluation.json").write_bytes(content)
    with pytest.raises(RunError, match=r"evaluation\.json does not hold scores: "):
        read_scores(tmp_path)


def test_rows_are_read_as_they_were_written(tmp_path):
    score = Score(1, 2.0, None, 3.0, 0)
    (tmp_path / "rows.json").write_text(json.dumps({"scores": {"greedy": score._asdict()}}))
    assert read_rows(tmp_path / "rows.json", "scores", Score) == {"greedy": score}


@pytest.mark.parametrize(
    "seeds", [(-1,), (1.5,), (2**32,), ("x",), (True,), (0, 0), (0, 2.0), (2**32 - 1, 2)]
)
def test_seeds_are_of_32_bits(seeds):
    with pytest.raises(RunError, match="must be"):
        check_seeds(*seeds)
    check_seeds(2**32 - 2, 2)


def test_titles_name_files_without_their_folders():
    run = Run("trading", UnrealConfig(), env_params={"data": "/home/me/prices.csv", "columns": "EUR/USD"})
    assert run.title == "trading (data=prices.csv, columns=EUR/USD), UNREAL (PPO)"
    several = {"data": {"A": "/home/me/a.csv", "B": ["/home/me/b.csv"]}}
    assert "/home" not in Run("trading", UnrealConfig(), env_params=several).title
