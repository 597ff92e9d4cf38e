"""Callbacks that come with minitune: a log of a training for TensorBoard."""

from __future__ import annotations

from pathlib import Path

from .trainer import Callback, Trainer


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
