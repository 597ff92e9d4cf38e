"""Callbacks that come with minitune: an unfreezing schedule, and a log of a training for TensorBoard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..tune.unfreezing import Unfreezing
from .trainer import Callback, Trainer


@dataclass(frozen=True)
class Unfreeze(Callback):
    """Trains the layer groups that a schedule names at each step: `Trainer(..., callbacks=[Unfreeze(gradual(model, 100))])`.

    Moments stay with their parameters while these are frozen. A training that is resumed goes on in its stage; with another
    schedule it is refused.
    """

    schedule: Unfreezing

    def on_step_begin(self, trainer: Trainer) -> None:
        """Freezes and unfreezes."""
        self.schedule.apply(trainer.model, trainer.step)


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
