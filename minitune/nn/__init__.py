"""Layers with parameters, from which models are built."""

from .cache import KVCache
from .layers import Dropout, Embedding, LayerNorm, Linear
from .module import Module
from .parameter import Parameter, filled, normal, shapes_only, uniform
from .recompute import recompute
from .transformer import MLP, Attention, TransformerBlock

__all__ = ["MLP", "Attention", "Dropout", "Embedding", "KVCache", "LayerNorm", "Linear", "Module", "Parameter",
           "TransformerBlock", "filled", "normal", "recompute", "shapes_only", "uniform"]
