"""The measure of benchmarks/awd_lstm.py: every token is counted once, with all that came before it in its lane."""

import numpy as np
import pytest
from awd_lstm import nats_of

import minitune as mt
from minitune.data import Batch, Tokenizer
from minitune.models import AWDLSTM, AWDLSTMConfig


@pytest.fixture(scope="module")
def model():
    mt.seed(0)
    model = AWDLSTM(AWDLSTMConfig(280, n_embd=6, n_hidden=7, n_layer=2))
    model.tokenizer = Tokenizer.train(["the tide came in and went out"] * 9, vocab_size=280)
    return model


def direct(model, ids):
    """In one go: the end token before the first."""
    batch = Batch.of_ids(np.concatenate([[model.tokenizer.end], ids])[None])
    with model.evaluating():
        return model.loss(batch)["language_model"][0].item()


@pytest.mark.parametrize("length", [5, 16, 1024])
def test_pieces_of_a_lane_are_read_as_one(model, length):
    ids = np.random.default_rng(0).integers(0, 270, 100)
    assert nats_of(model, ids, lanes=1, length=length) == pytest.approx(direct(model, ids), rel=1e-6)


def test_lanes_share_the_text_out(model):
    ids = np.random.default_rng(0).integers(0, 270, 100)
    with model.evaluating():
        parts = []
        for start in range(0, 100, 25):
            before = model.tokenizer.end if start == 0 else ids[start - 1]
            batch = Batch.of_ids(np.concatenate([[before], ids[start : start + 25]])[None])
            parts.append(model.loss(batch)["language_model"][0].item())
    assert nats_of(model, ids, lanes=4, length=10) == pytest.approx(sum(parts), rel=1e-6)
