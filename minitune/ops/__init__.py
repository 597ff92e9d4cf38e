"""The mathematics: every operation as a public function, its forward and its backward, side by side."""

from .attention import attention
from .cross_entropy import IGNORE, cross_entropy
from .dropout import dropout
from .elementwise import add, div, exp, gelu, log, mul, neg, pow, relu, sigmoid, sqrt, sub, tanh
from .embedding import embedding
from .layer_norm import layer_norm
from .linear import linear
from .linear_cross_entropy import linear_cross_entropy
from .lora_linear import lora_linear
from .matmul import matmul
from .reductions import max, mean, sum
from .shapes import concat, getitem, reshape, split, transpose
from .softmax import softmax

__all__ = ["IGNORE", "add", "attention", "concat", "cross_entropy", "div", "dropout", "embedding", "exp", "gelu",
           "getitem", "layer_norm", "linear", "linear_cross_entropy", "log", "lora_linear", "matmul", "max", "mean",
           "mul", "neg", "pow", "relu", "reshape", "sigmoid", "softmax", "split", "sqrt", "sub", "sum", "tanh",
           "transpose"]
