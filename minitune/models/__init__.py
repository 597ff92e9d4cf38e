"""Models: a file each, readable from top to bottom; and the heads that go on any of them."""

from .awd_lstm import AWDLSTM, AWDLSTMConfig
from .bert import BERT, BERTConfig
from .classifier import Classifier
from .cnn import CNN, CNNConfig
from .gpt import GPT, GPTConfig
from .llama import Llama, LlamaConfig
from .loading import from_pretrained
from .masked_language_model import MaskedLanguageModel
from .other_heads import MultiLabelClassifier, MultipleChoice, TokenClassifier
from .vit import ViT, ViTConfig

__all__ = ["AWDLSTM", "BERT", "CNN", "GPT", "AWDLSTMConfig", "BERTConfig", "CNNConfig", "Classifier", "GPTConfig", "Llama",
           "LlamaConfig", "MaskedLanguageModel", "MultiLabelClassifier", "MultipleChoice", "TokenClassifier", "ViT",
           "ViTConfig", "from_pretrained"]
