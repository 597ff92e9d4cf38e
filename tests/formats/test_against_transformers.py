"""Model folders, there and back: what transformers writes is read here, what is written here transformers reads."""

import json
import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minitune import models
from minitune.data import Batch, Tokenizer

torch = pytest.importorskip("torch", reason="PyTorch, on which transformers runs, is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")             # what another library's import deprecates is not ours to mend
    transformers = pytest.importorskip("transformers", reason="transformers, the oracle, is not installed")
transformers.logging.set_verbosity_error()      # and its bars and notes are not of interest here
transformers.logging.disable_progress_bar()

# Logits of up to about 10 in float32, after some thousand roundings of 6e-8 each relative, in another order and with other
# kernels: 1e-5 is what is seen, 1e-4 leaves room for another BLAS. A swapped or transposed matrix errs by about 1.
ATOL = 1e-4

SHAPES = [dict(vocab_size=53, n_positions=13, n_embd=15, n_layer=1, n_head=3),
          dict(vocab_size=31, n_positions=8, n_embd=12, n_layer=3, n_head=1),
          dict(vocab_size=64, n_positions=16, n_embd=14, n_layer=2, n_head=7, n_inner=33, layer_norm_epsilon=0.01,
               activation_function="gelu_pytorch_tanh")]
IDS = np.array([[3, 14, 15, 9, 26, 5, 8], [2, 7, 18, 28, 1, 8, 2]])


def randomised(theirs):
    """Random numbers in every parameter, biases and norms too; large enough that a misplaced one shows."""
    draw = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += torch.tensor(0.2 * draw.standard_normal(parameter.shape), dtype=torch.float32)
    return theirs.eval()


def language_model(shape=SHAPES[0], **settings):
    return randomised(transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **settings)))


def classifier_there(shape=SHAPES[0], labels=("bad", "fine", "good"), **settings):
    names = dict(enumerate(labels))
    config = transformers.GPT2Config(**shape, id2label=names, label2id={v: k for k, v in names.items()}, pad_token_id=0,
                                     **settings)
    return randomised(transformers.GPT2ForSequenceClassification(config))


def gradients_in_their_names(ours):
    """{name: gradient} in Hugging Face's names and shapes: what saving would write, were the gradients the weights."""
    weights = {id(p): p.data for p in ours.parameters()}
    try:
        for parameter in ours.parameters():
            parameter.data = parameter.grad
        return ours.to_hugging_face()[1]
    finally:
        for parameter in ours.parameters():
            parameter.data = weights[id(parameter)]


def assert_same_gradients(ours, theirs):
    """To 1e-4 of each tensor's largest gradient; a key's bias has none at all, softmax cancels it, but for rounding."""
    gradients = gradients_in_their_names(ours)
    for name, parameter in theirs.named_parameters():
        scale = parameter.grad.abs().max().item()
        np.testing.assert_allclose(gradients[name], parameter.grad.numpy(), 0, 1e-4 * scale + 1e-7, err_msg=name)


def assert_same_language_model(ours, theirs):
    theirs.zero_grad()
    result = theirs(torch.tensor(IDS), labels=torch.tensor(IDS))
    result.loss.backward()
    (loss, count, _), = ours.loss(Batch.of_ids(IDS)).values()
    (loss * (1 / count)).backward()
    np.testing.assert_allclose(ours(IDS).numpy(), result.logits.detach().numpy(), 0, ATOL)
    np.testing.assert_allclose(loss.item() / count, result.loss.item(), 0, ATOL)
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape.values())))
def test_a_language_model_of_transformers_computes_the_same_here(tmp_path, shape):
    theirs = language_model(shape)
    theirs.save_pretrained(tmp_path)
    ours = models.from_pretrained(tmp_path)
    assert isinstance(ours, models.GPT) and ours.config.dropout == 0.1      # GPT-2's own default
    ours.eval()
    assert_same_language_model(ours, theirs)


@pytest.mark.parametrize("shape", SHAPES[:2], ids=lambda shape: "x".join(map(str, shape.values())))
def test_a_language_model_of_ours_computes_the_same_there(tmp_path, shape):
    sizes = dict(shape)
    ours = models.GPT(models.GPTConfig(block_size=sizes.pop("n_positions"), dropout=0.25, **sizes))
    draw = np.random.default_rng(1)
    for parameter in ours.parameters():
        parameter.data += (0.2 * draw.standard_normal(parameter.shape)).astype(np.float32)
    ours.save_pretrained(tmp_path)
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report     # no key is missing, unknown or of another shape
    config = theirs.config
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.25, 0.25, 0.0)
    assert_same_language_model(ours.eval(), theirs.eval())


def test_a_folder_that_is_read_and_written_is_equal_tensor_by_tensor(tmp_path):
    language_model().save_pretrained(tmp_path / "theirs")
    models.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype and ours[name].tobytes() == array.tobytes(), name
    there, here = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "ours"))
    same = set(here) & set(there) - {"attn_pdrop"}      # ours has no attention dropout
    assert {key: here[key] for key in same} == {key: there[key] for key in same}
    assert {"n_embd", "n_layer", "n_head", "n_positions", "vocab_size", "resid_pdrop"} <= same


@pytest.mark.parametrize("pad_side", ["right", "left"])
def test_a_classifier_of_transformers_computes_the_same_here(tmp_path, pad_side):
    theirs = classifier_there()
    theirs.save_pretrained(tmp_path)
    ours = models.from_pretrained(tmp_path)
    assert isinstance(ours, models.Classifier) and (ours.labels, ours.pooling) == (("bad", "fine", "good"), "last")
    rows, labels = [[3, 14, 15, 9, 26], [5, 8]], [2, 0]                     # transformers finds the last token by pad id 0
    batch = Batch.causal([[row] for row in rows], labels, side=pad_side)
    result = theirs(torch.tensor(batch.ids), attention_mask=torch.tensor(batch.valid.astype(int)),
                    position_ids=torch.tensor(batch.positions), labels=torch.tensor(labels))
    result.loss.backward()
    (loss, count, _), = ours.eval().loss(batch).values()
    (loss * (1 / count)).backward()
    np.testing.assert_allclose(ours(batch).numpy(), result.logits.detach().numpy(), 0, ATOL)
    np.testing.assert_allclose(loss.item() / count, result.loss.item(), 0, ATOL)
    assert_same_gradients(ours, theirs)


def our_classifier():
    ours = models.Classifier(models.GPT(models.GPTConfig(vocab_size=53, block_size=13, n_layer=1, n_head=3, n_embd=15)),
                             ["bad", "fine", "good"])
    draw = np.random.default_rng(1)
    for parameter in ours.parameters():
        parameter.data += (0.2 * draw.standard_normal(parameter.shape)).astype(np.float32)
    return ours


def test_a_classifier_of_ours_computes_the_same_there(tmp_path):
    ours = our_classifier()
    ours.save_pretrained(tmp_path)
    theirs, report = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report     # a bias in our head would be dropped there, unseen
    theirs.eval()
    assert theirs.config.id2label == {0: "bad", 1: "fine", 2: "good"} and theirs.config.label2id["good"] == 2
    for row in IDS:                             # one at a time: without a tokenizer there is no pad id to find the end by
        logits = theirs(torch.tensor(row[None])).logits.detach().numpy()
        np.testing.assert_allclose(ours(row[None]).numpy(), logits, 0, ATOL)


def test_a_bare_gpt2_has_no_prefix_and_is_read_too(tmp_path):
    theirs = randomised(transformers.GPT2Model(transformers.GPT2Config(**SHAPES[2])))
    theirs.save_pretrained(tmp_path)
    assert "wte.weight" in load_file(tmp_path / "model.safetensors")
    ours = models.from_pretrained(tmp_path)
    expected = theirs(torch.tensor(IDS)).last_hidden_state.detach().numpy()
    np.testing.assert_allclose(ours.eval().features(Batch.of_ids(IDS)).numpy(), expected, 0, ATOL)


def test_old_files_with_masks_and_a_stored_head_are_read(tmp_path):
    """Files of 2019 hold each block's causal mask as a weight, and some the tied head a second time."""
    theirs = language_model()
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for i in range(SHAPES[0]["n_layer"]):
        tensors[f"transformer.h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 13, 13), np.uint8))
        tensors[f"transformer.h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same_language_model(models.from_pretrained(tmp_path).eval(), theirs)


def test_the_tokenizer_travels_both_ways(tmp_path):
    text = "to be or not to be, that is the question"
    tokenizer = Tokenizer.train([text] * 5, vocab_size=270)
    ours = models.GPT(models.GPTConfig(tokenizer.vocab_size, 16, 1, 2, 8))
    ours.tokenizer = tokenizer
    ours.save_pretrained(tmp_path / "a")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "a" / "tokenizer.json"))
    assert theirs.encode(text) == tokenizer.encode(text)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert (config["eos_token_id"], config["bos_token_id"], config["pad_token_id"]) == (tokenizer.end, tokenizer.end,
                                                                                        tokenizer.pad)
    classifier = models.Classifier(models.from_pretrained(tmp_path / "a"), ["no", "yes"])
    classifier.save_pretrained(tmp_path / "b")
    assert models.from_pretrained(tmp_path / "b").tokenizer.encode(text) == tokenizer.encode(text)


def test_with_a_tokenizer_transformers_finds_the_end_of_padded_rows(tmp_path):
    ours = our_classifier()
    tokenizer = Tokenizer.train(["to be or not to be"] * 5, vocab_size=262)
    ours.backbone = models.GPT(models.GPTConfig(262, 13, 1, 3, 15))
    ours.tokenizer = tokenizer
    ours.save_pretrained(tmp_path)
    theirs = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path).eval()
    assert theirs.config.pad_token_id == tokenizer.pad
    batch = Batch.causal([[[3, 14, 15, 9, 26]], [[5, 8]]], [0, 1], pad=tokenizer.pad)
    logits = theirs(torch.tensor(batch.ids), attention_mask=torch.tensor(batch.valid.astype(int))).logits
    np.testing.assert_allclose(ours(batch).numpy(), logits.detach().numpy(), 0, ATOL)


@pytest.mark.parametrize("settings", [
    {"activation_function": "relu"}, {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True}], ids=lambda s: next(iter(s)))
def test_a_model_that_computes_something_else_is_refused_by_name(tmp_path, settings):
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**SHAPES[0], **settings)).save_pretrained(tmp_path)
    (key, value), = settings.items()
    with pytest.raises(ValueError, match=f"not a GPT-2 model that minitune computes: {key} is {value!r}, expected"):
        models.from_pretrained(tmp_path)


def test_a_model_of_another_family_is_refused(tmp_path):
    config = transformers.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    transformers.T5EncoderModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type is 't5', expected one of gpt2, bert, llama, vit"):
        models.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights_become_float32_exactly(tmp_path, dtype):
    theirs = language_model().to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path)
    ours = models.from_pretrained(tmp_path)
    tensors = ours.to_hugging_face()[1]
    for name, parameter in theirs.named_parameters():
        assert tensors[name].dtype == np.float32
        np.testing.assert_array_equal(tensors[name], parameter.detach().float().numpy(), err_msg=name)


@pytest.mark.parametrize("pooling", ["mean", "max", "concat"])
def test_a_classifier_that_pools_otherwise_is_refused_there(tmp_path, pooling):
    classifier = models.Classifier(models.GPT(models.GPTConfig(20, 8, 1, 2, 16)), ["no", "yes"], pooling)
    classifier.save_pretrained(tmp_path)
    with pytest.raises((ValueError, KeyError), match="minitune_gpt2_classifier"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
