"""What a person sees of a run's progress."""

from btnn_jax.runs.progress import Bar, Lines, Progress

HALF = Progress(500_000, 1_000_000, 2500.0, "return 3.25", 200.0, 200.0)
WORDS = ("50%", "500k/1M steps", "2,500 steps/s", "return 3.25", "0:03:20, 0:03:20 left")


def test_bar_and_lines_show_the_same_words(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    for reporter in (Bar(), Lines()):
        reporter.note("a note")
        reporter.update(HALF._replace(steps=100_000))
        reporter.update(HALF)
        reporter.close()
        out = capsys.readouterr().out
        assert out.startswith("a note\n")
        assert all(word in out for word in WORDS)
