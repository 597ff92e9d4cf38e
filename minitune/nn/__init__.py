"""Layers with parameters, from which models are built."""

from .cache import KVCache
from .convolution import Conv2d
from .layers import Dropout, Embedding, LayerNorm, Linear, RMSNorm
from .lstm import LSTM, LSTMState
from .module import Module
from .parameter import Parameter, filled, normal, shapes_only, uniform
from .recompute import recompute
from .transformer import MLP, Attention, TransformerBlock

__all__ = ["MLP", "Attention", "Conv2d", "Dropout", "Embedding", "KVCache", "LSTM", "LSTMState", "LayerNorm", "Linear",
           "Module", "Parameter", "RMSNorm", "TransformerBlock", "filled", "normal", "recompute", "shapes_only", "uniform"]
