"""Images with what they are and what a model takes them for; and the filters that a model looks at them through."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from .curves import COLOURS
from .figure import new_figure, write_figure

ACROSS, SIDE = 8, 1.1                           # images in a line; inches of one


def images(pictures: Any, labels: Any, names: Sequence[str], predictions: Any = None, file: str | Path | None = None) -> Any:
    """A grid of images, each under the name of its label; where the prediction is another, both names, in red.

    `pictures` (N, H, W), (N, 1, H, W) or (N, 3, H, W), uint8 from 0 to 255 or floats from -1 to 1 as a batch holds them;
    `labels` and `predictions` (N,) are indices into `names`. Returns the matplotlib Figure, and writes it to `file` (PNG, PDF
    or SVG by its ending) if given. Raises ValueError for other shapes, ImportError where matplotlib is not installed.
    """
    pictures, labels = _drawable("images", np.asarray(pictures)), np.asarray(labels)
    predictions = labels if predictions is None else np.asarray(predictions)
    if not labels.shape == predictions.shape == pictures.shape[:1]:
        raise ValueError(f"images: expected a label and a prediction for each of {len(pictures)} images, got labels "
                         f"{labels.shape} and predictions {predictions.shape}")
    if pictures.dtype != np.uint8:
        pictures = (pictures + 1) / 2
    figure, places = _grid(len(pictures), ACROSS, 0.5)
    for axes, picture, label, predicted in zip(places, pictures, labels, predictions):
        right = label == predicted
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255 if picture.dtype == np.uint8 else 1)
        axes.set_title(names[label] if right else f"{names[predicted]}\nis {names[label]}", size=7, parse_math=False,
                       color="black" if right else COLOURS[3])
    return write_figure(figure, file)


def filters(weight: Any, file: str | Path | None = None) -> Any:
    """The filters of a first convolution, weight (F, C, h, w) for C = 1 or 3: of grey ones blue is below 0, red above.

    Returns the matplotlib Figure, and writes it to `file` if given. Raises ValueError for weights of another shape.
    """
    weight = _drawable("filters", np.asarray(weight))
    largest = abs(weight).max()
    figure, places = _grid(len(weight), ceil(sqrt(len(weight))), 0)
    for axes, one in zip(places, weight):
        axes.imshow(one if one.ndim == 2 else (one / largest + 1) / 2, cmap="RdBu_r", vmin=-largest, vmax=largest)
    return write_figure(figure, file)


def _drawable(name: str, pictures: np.ndarray) -> np.ndarray:
    """(N, H, W) for grey images, (N, H, W, 3) for coloured ones."""
    if pictures.ndim == 4 and pictures.shape[1] in (1, 3):
        pictures = pictures[:, 0] if pictures.shape[1] == 1 else pictures.transpose(0, 2, 3, 1)
    elif pictures.ndim != 3:
        raise ValueError(f"{name}: expected (N, H, W), (N, 1, H, W) or (N, 3, H, W), got {pictures.shape}")
    if not len(pictures):
        raise ValueError(f"{name}: nothing to draw, got {pictures.shape}")
    return pictures


def _grid(count: int, across: int, above: float) -> tuple[Any, list[Any]]:
    """A Figure and `count` bare axes in lines of `across`, with `above` inches for titles."""
    lines = ceil(count / across)
    figure = new_figure(across * SIDE, lines * (SIDE + above))
    places = list(figure.subplots(lines, across, squeeze=False).flat)
    for axes in places:
        axes.set_axis_off()
    return figure, places[:count]
