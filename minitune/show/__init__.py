"""Everything that draws, from plain rows and numbers."""

from .classification import classification
from .curves import interval_curves
from .images import filters, images
from .mask import mask
from .training import training_curves

__all__ = ["classification", "filters", "images", "interval_curves", "mask", "training_curves"]
