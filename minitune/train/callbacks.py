"""Callbacks: what happens beside a training, at three events. And a log for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .trainer import Trainer


class Callback:
    """Three events, each of which does nothing unless a subclass says what.

    A training that is resumed makes its callbacks anew: what one remembers must follow from `trainer.step`.
    """

    def on_step_begin(self, trainer: Trainer) -> None:
        """Before every step of the optimizer; `trainer.step` is its number, from 0."""

    def on_evaluate(self, trainer: Trainer, row: dict[str, float]) -> None:
        """After every evaluation; `row` is the history's new row and may be added to."""

    def on_train_end(self, trainer: Trainer) -> None:
        """When training has ended, for whatever reason."""


class TensorBoard(Callback):
    """Writes the history to `folder` in TensorBoard's form. Raises ImportError where tensorboardX is not installed."""

    def __init__(self, folder: str | Path) -> None:
        try:
            import tensorboardX
        except ImportError as missing:
            raise ImportError('TensorBoard: the log needs tensorboardX: pip install "minitune[tensorboard]"') from missing
        self.writer = tensorboardX.SummaryWriter(str(folder))

    def on_evaluate(self, trainer: Trainer, row: dict[str, float]) -> None:
        """Writes a row, column by column."""
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(row["step"]))

    def on_train_end(self, trainer: Trainer) -> None:
        """Has everything on disk."""
        self.writer.flush()
