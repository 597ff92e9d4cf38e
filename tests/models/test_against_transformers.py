"""Every model against Hugging Face's of the same random weights: logits, loss, the gradient of every weight, greedy text."""

import numpy as np
import pytest

from minitune import models
from minitune.data import Batch, ImageBatch
from minitune.formats.folder import read_model
from minitune.ops import IGNORE

torch = pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")
transformers = pytest.importorskip("transformers", reason="Hugging Face's models, the oracle, are not installed")

# float32: two orders of the same sums, a thousand roundings of 6e-8. float64: as many of 1e-16; the weights, exact in both,
# and the gradients, stored as float32, leave half a rounding of 6e-8.
TOLERANCES = {np.float32: dict(rtol=1e-4, atol=1e-4), np.float64: dict(rtol=1e-6, atol=1e-7)}
TEXT = dict(vocab_size=37, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=24)
LLAMA = TEXT | dict(hidden_size=24, intermediate_size=52, attention_bias=False)
BERT = TEXT | dict(hidden_size=20, intermediate_size=44, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
GPT2 = dict(vocab_size=41, n_positions=19, n_layer=3, n_head=3, n_embd=15, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
VIT = dict(image_size=21, patch_size=7, num_channels=3, hidden_size=12, num_hidden_layers=2, num_attention_heads=3,
           intermediate_size=28, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=5)
SCALED = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16, "rope_theta": 50.0}

CAUSAL = {
    "GPT-2": ("GPT2LMHeadModel", transformers.GPT2Config, GPT2),
    "GPT-2, one head": ("GPT2LMHeadModel", transformers.GPT2Config, GPT2 | dict(n_head=1, n_embd=5)),
    "Llama": ("LlamaForCausalLM", transformers.LlamaConfig, LLAMA),
    "Llama, grouped, tied": ("LlamaForCausalLM", transformers.LlamaConfig,
                             LLAMA | dict(num_key_value_heads=2, tie_word_embeddings=True)),
    "Llama, one key head, wide heads": ("LlamaForCausalLM", transformers.LlamaConfig,
                                        LLAMA | dict(num_key_value_heads=1, head_dim=10)),
    "Llama, scaled": ("LlamaForCausalLM", transformers.LlamaConfig, LLAMA | dict(rope_parameters=SCALED)),
}
MASKED = {
    "BERT": ("BertForMaskedLM", transformers.BertConfig, BERT),
    "BERT, odd": ("BertForMaskedLM", transformers.BertConfig,
                  BERT | dict(hidden_size=9, num_attention_heads=3, type_vocab_size=3)),
    "BERT with next sentence": ("BertForPreTraining", transformers.BertConfig, BERT),
}
LABELLED = {
    "GPT-2": ("GPT2ForSequenceClassification", transformers.GPT2Config, GPT2 | dict(pad_token_id=0, num_labels=3)),
    "BERT": ("BertForSequenceClassification", transformers.BertConfig, BERT | dict(num_labels=3)),
    "Llama": ("LlamaForSequenceClassification", transformers.LlamaConfig, LLAMA | dict(pad_token_id=0, num_labels=3)),
}


def pair(case, folder, dtype):
    """(Hugging Face's model, ours read from its folder), in this dtype; weights large enough that every path matters."""
    name, config, sizes = case
    torch.manual_seed(0)
    theirs = getattr(transformers, name)(config(**sizes)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    theirs.save_pretrained(folder)
    ours = models.from_pretrained(folder)
    for parameter in ours.parameters():
        parameter.data = parameter.data.astype(dtype)
    if dtype == np.float64 and "Llama" in name:
        in_double(theirs, getattr(ours, "backbone", ours).frequencies)
    return theirs.to(torch.float64 if dtype == np.float64 else torch.float32), ours


def in_double(llama, frequencies):
    """Hugging Face's Llama computes norms and rotations in float32 whatever its dtype: here they are written in double."""
    def norm(self, x):
        return self.weight * x * (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

    def rotations(x, position_ids):
        angles = torch.cat([position_ids[..., None] * torch.from_numpy(frequencies)] * 2, -1)
        return angles.cos(), angles.sin()

    for module in llama.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = norm.__get__(module)
        elif type(module).__name__ == "LlamaRotaryEmbedding":
            module.forward = rotations


def gradients_of(theirs, ours, folder):
    """The gradient of every weight of `theirs` under our names: a model whose weights they are, written and read."""
    for parameter in theirs.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    theirs.float().save_pretrained(folder)
    return getattr(ours, "backbone", ours).family.read(*read_model(folder)).state


def assert_same_gradients(theirs, ours, folder, tolerance):
    """Relative to each weight's largest gradient; a key's bias has none (softmax does not see it), only others' roundings."""
    expected = gradients_of(theirs, ours, folder)
    overall = max(np.abs(gradient).max() for gradient in expected.values())
    for name, parameter in ours.named_parameters():
        scale = max(np.abs(expected[name]).max(), 1e-2 * overall)
        np.testing.assert_allclose(parameter.grad / scale, expected[name] / scale, err_msg=name, **tolerance)


def documents(vocab_size, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, vocab_size, n).tolist() for n in (7, 12, 1)]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("case", CAUSAL)
def test_causal_models(case, dtype, tmp_path):
    theirs, ours = pair(CAUSAL[case], tmp_path, dtype)
    rows = documents(ours.config.vocab_size)
    batch, tolerance = Batch.causal([[row] for row in rows]), TOLERANCES[dtype]
    ids, seen = torch.from_numpy(batch.ids), torch.from_numpy(batch.valid.astype(int))
    logits = theirs(input_ids=ids, attention_mask=seen).logits
    np.testing.assert_allclose(ours(batch).numpy()[batch.valid], logits.detach().numpy()[batch.valid], **tolerance)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten(), reduction="sum")
    loss.backward()
    (our_loss, count, _), = ours.loss(batch).values()
    np.testing.assert_allclose(our_loss.item(), loss.item(), **tolerance)
    assert count == sum(len(row) - 1 for row in rows)
    our_loss.backward()
    assert_same_gradients(theirs, ours, tmp_path, tolerance)


@pytest.mark.parametrize("case", CAUSAL)
def test_greedy_text_is_the_same_token_for_token(case, tmp_path):
    theirs, ours = pair(CAUSAL[case], tmp_path, np.float32)
    for prompt in documents(ours.config.vocab_size, seed=1):
        new = (19 if "GPT" in case else 24) - len(prompt)
        text = theirs.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=int),
                               max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=None)[0].tolist()
        assert ours.generate_ids([prompt], new, temperature=0) == [text[len(prompt):]]
        assert ours.generate_ids([prompt], new, temperature=0, cache=False) == [text[len(prompt):]]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("case", MASKED)
def test_masked_language_models(case, dtype, tmp_path):
    theirs, ours = pair(MASKED[case], tmp_path, dtype)
    rows, rng, tolerance = documents(37), np.random.default_rng(2), TOLERANCES[dtype]
    targets = [np.where(rng.random(len(row)) < 0.5, row, IGNORE).tolist() for row in rows]
    segments = [(np.arange(len(row)) > 3).astype(int).tolist() for row in rows]
    batch = Batch.bidirectional(rows, segments=segments, targets=targets)
    batch.related = np.array([0, 1, 1])
    result = theirs(input_ids=torch.from_numpy(batch.ids), attention_mask=torch.from_numpy(batch.valid.astype(int)),
                    token_type_ids=torch.from_numpy(batch.segments))
    logits = result.prediction_logits if "next" in case else result.logits
    np.testing.assert_allclose(ours(batch).numpy()[batch.valid], logits.detach().numpy()[batch.valid], **tolerance)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten(), reduction="sum")
    if "next" in case:
        related = result.seq_relationship_logits
        loss = loss + torch.nn.functional.cross_entropy(related, torch.from_numpy(batch.related), reduction="sum")
    loss.backward()
    terms = ours.loss(batch)
    assert {name: count for name, (_, count, _) in terms.items()} == ours.counts(batch)
    assert set(terms) == {"masked_language_model", *["next_sentence"] * ("next" in case)}
    our_loss = sum((term for term, _, _ in list(terms.values())[1:]), terms["masked_language_model"][0])
    np.testing.assert_allclose(our_loss.item(), loss.item(), **tolerance)
    our_loss.backward()
    assert_same_gradients(theirs, ours, tmp_path, tolerance)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("case", LABELLED)
def test_classifiers(case, dtype, tmp_path):
    theirs, ours = pair(LABELLED[case], tmp_path, dtype)
    rows, labels, tolerance = documents(37), [2, 0, 1], TOLERANCES[dtype]
    batch = Batch.bidirectional(rows, labels) if case == "BERT" else Batch.causal([[row] for row in rows], labels)
    logits = theirs(input_ids=torch.from_numpy(batch.ids), attention_mask=torch.from_numpy(batch.valid.astype(int))).logits
    np.testing.assert_allclose(ours(batch).numpy(), logits.detach().numpy(), **tolerance)
    torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="sum").backward()
    ours.loss(batch)["classification"][0].backward()
    assert_same_gradients(theirs, ours, tmp_path, tolerance)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("sizes", [{}, dict(num_channels=1, image_size=20, patch_size=5, hidden_size=9), dict(patch_size=21)])
def test_vit(sizes, dtype, tmp_path):
    theirs, ours = pair(("ViTForImageClassification", transformers.ViTConfig, VIT | sizes), tmp_path, dtype)
    config, tolerance = ours.backbone.config, TOLERANCES[dtype]
    shape = (3, config.n_channels, config.image_size, config.image_size)
    batch = ImageBatch(np.random.default_rng(0).standard_normal(shape).astype(dtype), np.array([4, 0, 2]))
    logits = theirs(torch.from_numpy(batch.images)).logits
    np.testing.assert_allclose(ours(batch).numpy(), logits.detach().numpy(), **tolerance)
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.targets), reduction="sum").backward()
    ours.loss(batch)["classification"][0].backward()
    assert_same_gradients(theirs, ours, tmp_path, tolerance)
