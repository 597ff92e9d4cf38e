"""Everything that draws, from plain rows and numbers."""

from .classification import classification
from .curves import interval_curves
from .images import filters, images
from .lens import drift, similarity_maps, singular_values
from .mask import mask
from .rate_finding import rate_finding
from .schedules import rate_curves
from .training import training_curves

__all__ = ["classification", "drift", "filters", "images", "interval_curves", "mask", "rate_finding", "rate_curves",
           "similarity_maps", "singular_values", "training_curves"]
