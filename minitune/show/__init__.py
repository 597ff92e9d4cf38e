"""Everything that draws, from plain rows and numbers."""

from .curves import interval_curves

__all__ = ["interval_curves"]
