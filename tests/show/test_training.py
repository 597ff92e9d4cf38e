"""A run's curves hold its rows, whatever columns these have, and mark the row that the trainer would keep."""

import re

import pytest

from minitune.show import training_curves


def rows(count, **others):
    return [{"step": 10 * i, "loss": 3 / i, "valid_loss": 3 / i + i / count, "rate": 1e-3 / i, **others}
            for i in range(1, count + 1)]


def lines(axes):
    return {line.get_label(): list(zip(*line.get_data())) for line in axes.lines}


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_both_losses_the_rate_and_the_best_row_are_drawn(count, tmp_path):
    given = rows(count)
    figure = training_curves(given, tmp_path / "new" / "curves.png", "a run")
    upper, lower = figure.axes
    drawn = lines(upper)
    assert drawn.pop("train") == [(row["step"], row["loss"]) for row in given]
    assert drawn.pop("validation") == [(row["step"], row["valid_loss"]) for row in given]
    best = min(given, key=lambda row: row["valid_loss"])
    assert drawn == {f"best: step {best['step']:,}, loss {best['valid_loss']:.3g}": [(best["step"], best["valid_loss"])]}
    assert list(lower.lines[0].get_ydata()) == [row["rate"] for row in given]
    assert (upper.get_ylabel(), lower.get_ylabel(), lower.get_xlabel(), upper.get_title()) == ("loss, nats", "rate", "step",
                                                                                              "a run")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["curves.png"]


def test_few_points_are_marked_and_steps_are_whole_numbers():
    (one, _), (many, _) = (training_curves(rows(count)).axes for count in (1, 1000))
    assert one.lines[0].get_marker() == "o" and many.lines[0].get_marker() in ("", "None")
    low, high = one.get_xlim()
    assert [tick for tick in one.get_xticks() if low < tick < high] == [10]


def test_a_column_may_be_missing_in_some_rows_or_altogether():
    figure = training_curves([{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0, "valid_loss": 2.5}, {"step": 3, "loss": 1.0}])
    drawn = lines(figure.axes[0])
    assert len(figure.axes) == 1 and figure.axes[0].get_xlabel() == "step"
    assert drawn["train"] == [(1, 3), (2, 2), (3, 1)] and drawn["validation"] == [(2, 2.5)]
    assert list(lines(training_curves([{"step": 1, "loss": 3.0}]).axes[0])) == ["train"]
    assert list(lines(training_curves([{"step": 1, "valid_loss": 3.0}]).axes[0])) == ["validation", "best: step 1, loss 3"]


@pytest.mark.parametrize("column, values, label", [
    ("valid_error", (0.3, 0.1, 0.1), "best: step 3, error 0.1"),
    ("valid_perplexity", (9, 9, 9), "best: step 1, loss 0.5")])
def test_the_best_row_is_chosen_by_error_then_by_loss(column, values, label):
    given = [{"step": i + 1, "loss": 1.0, "valid_loss": loss, column: value}
             for i, (loss, value) in enumerate(zip((0.5, 0.8, 0.7), values))]
    assert label in lines(training_curves(given).axes[0])


@pytest.mark.parametrize("given, message", [([], "got 0 rows of []"), ([{"step": 1, "rate": 0.1}], "['rate', 'step']"),
                                            ([{"loss": 1.0}], "got 1 rows of ['loss']")])
def test_rows_without_a_loss_or_a_step_are_told(given, message):
    with pytest.raises(ValueError, match="expected rows with step and loss or valid_loss.*" + re.escape(message)):
        training_curves(given)
