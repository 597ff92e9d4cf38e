"""Small models, and the same ones made by Hugging Face: what the tests of several tuning methods are run on."""

import numpy as np
import pytest

import minitune as mt
from minitune import models
from minitune.data import Batch

ROWS, LABELS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 7]], [1, 0, 1]


def gpt(**settings):
    return models.GPT(models.GPTConfig(20, 12, 2, 2, 16, **settings))


def bert():
    return models.BERT(models.BERTConfig(20, 12, 2, 2, 16))


def llama():
    return models.Llama(models.LlamaConfig(20, 12, 2, 4, 16, n_kv_head=2, n_inner=24))


def awd_lstm():
    return models.AWDLSTM(models.AWDLSTMConfig(20, n_embd=6, n_hidden=7, n_layer=2))


def labelled(model):
    return Batch.causal([[row] for row in ROWS], LABELS) if model.causal else Batch.bidirectional(ROWS, LABELS)


def in_double(model):
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(np.float64)
    return model


def step(model, optimizer, batch):
    (loss, count, _), = model.loss(batch).values()
    (loss * (1 / count)).backward()
    optimizer.step()
    optimizer.zero_grad()


def randomise(parameters, seed=0, size=0.3):
    """Numbers as after training: at the start many methods change nothing, where mistakes would not show."""
    draw = np.random.default_rng(seed)
    for parameter in parameters:
        parameter.data = (parameter.data + size * draw.standard_normal(parameter.shape)).astype(parameter.dtype)


KINDS = {
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", dict(
        vocab_size=41, n_positions=19, n_layer=3, n_head=3, n_embd=15, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=None, eos_token_id=None)),
    "BERT": ("BertModel", "BertConfig", dict(
        vocab_size=37, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=24, hidden_size=20,
        intermediate_size=44, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)),
    "Llama": ("LlamaForCausalLM", "LlamaConfig", dict(
        vocab_size=37, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=24,
        hidden_size=24, intermediate_size=52, attention_bias=False)),
}
# PEFT's name of what a kind of model does
TASKS = {"GPT-2": "CAUSAL_LM", "BERT": "FEATURE_EXTRACTION", "Llama": "CAUSAL_LM"}


def oracle(kind, folder, dtype=np.float64):
    """(torch, peft, Hugging Face's model, ours of the same random weights, a batch); weights are large: every path counts."""
    torch = pytest.importorskip("torch", reason="PyTorch, on which PEFT runs, is not installed")
    transformers = pytest.importorskip("transformers", reason="Hugging Face's models, which PEFT adapts, are not installed")
    peft = pytest.importorskip("peft", reason="PEFT, the oracle, is not installed")
    mt.seed(0)
    torch.manual_seed(0)
    name, config, sizes = KINDS[kind]
    theirs = getattr(transformers, name)(getattr(transformers, config)(**sizes)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    theirs.save_pretrained(folder)
    ours = models.from_pretrained(folder)
    ours = in_double(ours) if dtype == np.float64 else ours
    rows = [[3, 1, 4, 1, 5, 9, 2], [6, 5, 3], [5, 8, 9, 7]]
    batch = Batch.causal([[row] for row in rows]) if ours.causal else Batch.bidirectional(rows)
    return torch, peft, theirs.double() if dtype == np.float64 else theirs, ours, batch


def result_of(torch, theirs, batch):
    """Logits, or features where the model has no head, of PEFT's model at the batch's own tokens: (tokens, V or C)."""
    out = theirs(input_ids=torch.from_numpy(batch.ids), attention_mask=torch.from_numpy(batch.valid.astype(int)))
    x = out.logits if "logits" in out else out.last_hidden_state
    return x[:, x.shape[1] - batch.ids.shape[1]:][torch.from_numpy(batch.valid)]
