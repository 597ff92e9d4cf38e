"""Prompt tuning: where the soft prompt stands, what it leaves alone, and PEFT's forward and first update."""

import numpy as np
import pytest
from small_models import TASKS, awd_lstm, bert, gpt, in_double, labelled, llama, oracle, randomise, result_of

import minitune as mt
from minitune import models, nn, tune
from minitune.backend import random
from minitune.data import Batch, LanguageModelSet, Tokenizer
from minitune.optim import AdamW
from minitune.tune.prompt import with_placeholders

WORDS = [7, 2, 11]


def prompted(make, P=3):
    """A model whose prompt is the embeddings of WORDS, and the same one without a prompt."""
    mt.seed(0)
    model = in_double(make())
    plain = model.sharing_parameters()
    tune.apply(model, tune.PromptConfig(P))
    prompt_of(model).data = plain.token_embedding.weight.data[np.resize(WORDS, P)].copy()
    return model, plain


def prompt_of(model):
    return getattr(model, "backbone", model).token_embedding.prompt


def test_placeholders_stand_before_every_document_and_tokens_see_those_of_theirs():
    batch = Batch.causal([[[5, 6, 7], [8, 9]], [[4]]])
    longer, places = with_placeholders(batch, P=2, V=20, causal=True)
    assert longer.ids.tolist() == [[20, 21, 5, 6, 7, 20, 21, 8, 9], [20, 21, 4, 0, 0, 0, 0, 0, 0]]
    assert longer.positions[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert longer.first[0].tolist() == [0, 0, 0, 0, 0, 5, 5, 5, 5] and longer.last[0].tolist() == list(range(9))
    assert longer.valid[1].tolist() == [True] * 3 + [False] * 6
    assert places[0].tolist() == [2, 3, 4, 7, 8] and not longer.supervised


def test_padding_on_the_left_stays_on_the_left_and_a_text_that_is_seen_whole_is_seen_with_its_prompt():
    left, _ = with_placeholders(Batch.causal([[[5, 6, 7]], [[8]]], side="left"), P=2, V=20, causal=True)
    assert left.ids.tolist() == [[20, 21, 5, 6, 7], [0, 0, 20, 21, 8]] and left.first[1].tolist()[2:] == [2, 2, 2]
    both, _ = with_placeholders(Batch.bidirectional([[5, 6, 7], [8]], segments=[[0, 1, 1], [0]]), P=2, V=20, causal=False)
    assert both.last.tolist() == [[4] * 5, [2, 2, 2, 0, 0]] and both.first[0].tolist() == [0] * 5
    assert both.segments.tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize("make", [gpt, bert, llama])
def test_a_prompt_of_words_is_those_words_read_before_the_text(make):
    model, plain = prompted(make)
    rows = [[3, 1, 4, 1, 5], [9, 2]]
    batch, whole = (Batch.causal([[row] for row in texts]) if model.causal else Batch.bidirectional(texts)
                    for texts in (rows, [WORDS + row for row in rows]))
    expected = plain.features(whole).numpy()[:, 3:]
    # float64: the same sums
    np.testing.assert_allclose(model.features(batch).numpy()[batch.valid], expected[batch.valid], rtol=1e-10, atol=1e-12)


def test_packed_rows_are_what_each_document_is_alone():
    model, _ = prompted(gpt)
    packed = Batch.causal([[[3, 1, 4], [1, 5], [9, 2, 6, 5]], [[3, 5]]])
    x = model.features(packed).numpy()
    for row, start, ids in [(0, 0, [3, 1, 4]), (0, 3, [1, 5]), (0, 5, [9, 2, 6, 5]), (1, 0, [3, 5])]:
        np.testing.assert_allclose(x[row, start : start + len(ids)], model.features(Batch.of_ids(np.array([ids]))).numpy()[0],
                                   rtol=1e-10, atol=1e-12)
    loss = model.loss(packed)["language_model"]
    alone = [model.loss(Batch.of_ids(np.array([ids])))["language_model"] for ids in ([3, 1, 4], [1, 5], [9, 2, 6, 5], [3, 5])]
    np.testing.assert_allclose(loss[0].item(), sum(part[0].item() for part in alone), rtol=1e-10)
    assert loss[1] == sum(part[1] for part in alone) == 7   # what is predicted is what was: no target at the prompt


def test_a_language_model_set_trains_a_prompt():
    model = gpt()
    tune.apply(model, tune.PromptConfig(4))
    rows = LanguageModelSet([[3, 1, 4], [1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7]], model.config.block_size)
    batch = rows.batch(np.arange(len(rows)))
    (loss, count, _), = model.loss(batch).values()
    assert count == batch.supervised and model.counts(batch) == {"language_model": count}
    loss.backward()
    assert prompt_of(model).grad.any() and [p.grad is None for p in model.parameters()].count(False) == 1


@pytest.mark.parametrize("make", [gpt, bert, llama])
def test_gradients_of_the_prompt_agree_with_central_differences(make):
    model, _ = prompted(make, P=2)
    model.to(dtype="float64")
    batch = labelled(model)

    def run(prompt):
        model.token_embedding.prompt = prompt
        return model.features(batch)[0, :5]     # five tokens and no padding: whose features are of no matter

    mt.gradcheck(run, prompt_of(model).data)


@pytest.mark.parametrize("make", [gpt, bert, llama])
def test_the_prompt_has_a_row_of_channels_a_virtual_token(make):
    model = models.Classifier(make(), ["no", "yes"])
    report = tune.apply(model, tune.PromptConfig(5))
    assert report.trainable == 5 * 16 + model.head.num_parameters()
    assert [name for name, p in model.named_parameters() if p.requires_grad and "head" not in name] == [
        "backbone.token_embedding.prompt"]
    assert model.backbone.config.block_size == 7 and model.backbone.config.vocab_size == 20


def test_the_papers_smallest_prompt_has_20480_numbers():
    """Lester et al. 2021, figure 2: five tokens of 4,096 channels."""
    with nn.shapes_only():
        model = models.Llama(models.LlamaConfig(32_000, 512, 1, 32, 4096))
        assert tune.apply(model, tune.PromptConfig(5)).trainable == 20_480


def test_it_starts_as_rows_of_the_embedding_or_as_a_text():
    model = gpt()
    table = model.token_embedding.weight.data
    tune.apply(model, tune.PromptConfig(6))
    start = prompt_of(model).data
    assert all((table == row).all(1).any() for row in start) and len(np.unique(start, axis=0)) > 1
    assert not np.shares_memory(start, table)
    tokenizer = Tokenizer.train(["low lower lowest"] * 10, vocab_size=265)
    model = models.GPT(models.GPTConfig(265, 12, 1, 2, 16))
    model.tokenizer = tokenizer
    ids = tokenizer.encode("low lower")
    tune.apply(model, tune.PromptConfig(len(ids) + 1, init_text="low lower"))
    np.testing.assert_array_equal(prompt_of(model).data, model.token_embedding.effective_weight().numpy()[[*ids, ids[0]]])
    head = models.Classifier(models.GPT(models.GPTConfig(265, 12, 1, 2, 16)), ["no", "yes"])
    head.tokenizer = tokenizer                  # the head's, where it has one
    tune.apply(head, tune.PromptConfig(1, init_text="lowest low"))
    np.testing.assert_array_equal(prompt_of(head).data[0], head.backbone.token_embedding.base.weight.data[
        tokenizer.encode("lowest low")[0]])


def test_the_tied_output_matrix_has_no_row_for_the_prompt():
    model = gpt()
    tune.apply(model, tune.PromptConfig(3))
    assert model(np.array([[3, 1]])).shape == (1, 2, 20)
    with pytest.raises(IndexError, match="embedding: ids must lie in 0 .. 2, got 3"):
        model(np.array([[23]]))                 # 20, 21 and 22 are the prompt's own


@pytest.mark.parametrize("make, settings, error", [
    (gpt, dict(length=0), "PromptConfig: length must be an int of at least 1, got 0"),
    (gpt, dict(length=12), "PromptConfig: length must be less than block_size = 12"),
    (gpt, dict(length=2, init_text="a"), "PromptConfig: init_text needs a model with a tokenizer"),
    (awd_lstm, dict(length=3), "AWDLSTM is none that reads texts")])
def test_what_cannot_work_changes_nothing(make, settings, error):
    model = models.Classifier(make(), ["no", "yes"])
    before, counter = list(model.named_modules()), dict(random.counters)
    with pytest.raises(ValueError, match=error):
        tune.apply(model, tune.PromptConfig(**settings))
    assert list(model.named_modules()) == before and dict(random.counters) == counter
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("batch, error", [
    (Batch.of_ids(np.ones((1, 10), int)), r"reads at most 12 tokens a row, and its 3 virtual ones leave 9, got 10"),
    (Batch(*(np.array([row]) for row in ([3, 1, 4], [0, 1, 2], [0, 0, 1], [0, 1, 2], [1, 4, -100]))), "Give whole documents"),
    (Batch(*(np.array([row]) for row in ([3, 1, 4], [1, 2, 3], [0, 0, 0], [0, 1, 2], [1, 4, -100]))), "Give whole documents")])
def test_rows_that_are_too_long_and_tokens_that_do_not_see_their_beginning_are_refused(batch, error):
    model = gpt()
    tune.apply(model, tune.PromptConfig(3))
    with pytest.raises(ValueError, match=error):
        model(batch)


# ---- Against PEFT --------------------------------------------------------------------------------------------------

@pytest.mark.filterwarnings("ignore::FutureWarning")        # PEFT's use of what Hugging Face has renamed
@pytest.mark.parametrize("kind", TASKS)
def test_forward_gradients_and_first_update_are_pefts(kind, tmp_path):
    # float64, other orders of the same sums; Hugging Face's Llama computes norms and rotations in float32
    tolerance = dict(rtol=1e-4, atol=1e-4) if kind == "Llama" else dict(rtol=1e-9, atol=1e-9)
    torch, peft, theirs, ours, batch = oracle(kind, tmp_path)
    theirs = peft.get_peft_model(theirs, peft.PromptTuningConfig(task_type=TASKS[kind], num_virtual_tokens=3)).eval().double()
    tune.apply(ours, tune.PromptConfig(3))
    here, there = prompt_of(ours), theirs.prompt_encoder["default"].embedding.weight
    randomise([here], size=1.0)
    there.data = torch.from_numpy(here.data.copy())
    expected, y = result_of(torch, theirs, batch), ours(batch)
    np.testing.assert_allclose(y.numpy()[batch.valid], expected.detach().numpy(), **tolerance)
    grad = np.random.default_rng(0).standard_normal(expected.shape)
    expected.backward(torch.from_numpy(grad))
    whole = np.zeros(y.shape)
    whole[batch.valid] = grad
    y.backward(whole)
    np.testing.assert_allclose(here.grad, there.grad.numpy(), **tolerance)
    torch.optim.AdamW([there], lr=0.01, weight_decay=0.0).step()
    AdamW(ours, lr=0.01, weight_decay=0.0).step()
    np.testing.assert_allclose(here.data, there.detach().numpy(), **tolerance)
