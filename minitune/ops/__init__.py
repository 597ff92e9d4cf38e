"""The mathematics: every operation as a public function, its forward and its backward, side by side."""

from .attention import attention
from .cast import cast
from .conv2d import conv2d
from .cross_entropy import IGNORE, binary_cross_entropy, cross_entropy
from .dropout import dropout
from .elementwise import add, div, exp, gelu, log, mul, neg, pow, relu, sigmoid, sqrt, sub, tanh
from .embedding import embedding
from .layer_norm import layer_norm
from .linear import linear
from .linear_cross_entropy import linear_cross_entropy
from .lora_linear import lora_linear
from .lstm import lstm
from .matmul import matmul
from .pooling import avg_pool2d, max_pool2d
from .reductions import max, mean, sum
from .rms_norm import rms_norm
from .rope import rope
from .shapes import concat, getitem, reshape, split, transpose
from .softmax import softmax
from .swiglu import swiglu

__all__ = ["IGNORE", "add", "attention", "avg_pool2d", "binary_cross_entropy", "cast", "concat", "conv2d", "cross_entropy",
           "div", "dropout", "embedding", "exp", "gelu", "getitem", "layer_norm", "linear", "linear_cross_entropy", "log",
           "lora_linear", "lstm", "matmul", "max", "max_pool2d", "mean", "mul", "neg", "pow", "relu", "reshape", "rms_norm",
           "rope", "sigmoid", "softmax", "split", "sqrt", "sub", "sum", "swiglu", "tanh", "transpose"]
