"""Small models of every family and every head on them, with random numbers in all parameters."""

import numpy as np

from minitune import models

BACKBONES = {
    "gpt": lambda: models.GPT(models.GPTConfig(20, 8, 2, 2, 6, dropout=0.1)),
    "wide gpt": lambda: models.GPT(models.GPTConfig(20, 8, 1, 3, 6, n_inner=29, eps=0.01)),
    "bert": lambda: models.BERT(models.BERTConfig(20, 8, 2, 2, 6)),
    "bert without pooler": lambda: models.BERT(models.BERTConfig(20, 8, 1, 3, 6, n_inner=10, n_segments=3, dropout=0.25,
                                                                 eps=1e-6, pooler=False)),
    "llama": lambda: models.Llama(models.LlamaConfig(20, 8, 2, 2, 8)),
    "llama tied": lambda: models.Llama(models.LlamaConfig(
        20, 9, 1, 4, 12, n_kv_head=2, n_inner=7, head_size=6, rope_base=5e5, eps=1e-5, tied=True,
        rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 4})),
    "vit": lambda: models.ViT(models.ViTConfig(8, 4, 2, 2, 6)),
    "grey vit": lambda: models.ViT(models.ViTConfig(9, 3, 1, 5, 10, n_channels=1, n_inner=11, dropout=0.1, eps=1e-6)),
    "awd_lstm": lambda: models.AWDLSTM(models.AWDLSTMConfig(20, n_embd=6, n_hidden=7, n_layer=2)),
    "cnn": lambda: models.CNN(models.CNNConfig(8, widths=(4, 6))),
}
LABELS = ["bad", "fine", "good"]
HEADS = {
    "none": lambda backbone: backbone,
    "classifier": lambda backbone: models.Classifier(backbone, LABELS),
    "mean classifier": lambda backbone: models.Classifier(backbone, LABELS, "mean"),
    "auxiliary classifier": lambda backbone: models.Classifier(backbone, LABELS, auxiliary=0.5),
    "multi-label classifier": lambda backbone: models.MultiLabelClassifier(backbone, LABELS),
    "token classifier": lambda backbone: models.TokenClassifier(backbone, LABELS),
    "multiple choice": lambda backbone: models.MultipleChoice(backbone, 3),
    "masked": lambda backbone: models.MaskedLanguageModel(backbone),
    "masked, next sentence": lambda backbone: models.MaskedLanguageModel(backbone, next_sentence=True),
}


def build(backbone, head="none"):
    """The model, or None where the head cannot go on the backbone."""
    try:
        model = HEADS[head](BACKBONES[backbone]())
    except ValueError:
        return None
    draw = np.random.default_rng(0)
    for parameter in model.parameters():        # biases and norms too: those that start at 0 or 1 could be swapped unseen
        parameter.data = (0.5 * draw.standard_normal(parameter.shape)).astype(np.float32)
    return model.eval()


def pairs():
    """(backbone, head) of all that go together."""
    return [(backbone, head) for backbone in BACKBONES for head in HEADS if build(backbone, head) is not None]


def inputs(model):
    """Ids, or images, that the model reads."""
    config = getattr(model, "backbone", model).config
    if hasattr(config, "image_size"):
        shape = (3, config.n_channels, config.image_size, config.image_size)
        return np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return np.array([[3, 1, 4, 1, 5, 9], [2, 7, 18, 2, 8, 1], [6, 6, 2, 0, 7, 4]])
