"""Optimizers, gradient clipping and learning rate schedules."""

from .optimizers import SGD, AdamW, Group, Optimizer, clip_grad_norm, groups_of
from .schedules import SCHEDULES, Schedule, constant, cosine, linear, slanted_triangular

__all__ = ["SCHEDULES", "SGD", "AdamW", "Group", "Optimizer", "Schedule", "clip_grad_norm", "constant", "cosine", "groups_of",
           "linear", "slanted_triangular"]
