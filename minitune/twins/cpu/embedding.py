"""embedding: the gradients of equal ids are added where they belong, without sorting."""

from __future__ import annotations

import numpy as np

from ...cores import share
from .compiled import LEAST, compiled, not_float32, rows_of


@compiled
def _add_to_table(table, ids, rows):
    N, C = rows.shape
    for i in range(N):
        for j in range(C):
            table[ids[i], j] += rows[i, j]


def embedding_unsupported(weight, ids):
    return not_float32(weight)


def embedding_forward(weight, ids, *, needs):
    return weight[ids], (ids, weight.shape)


def embedding_backward(grad, ids, shape, *, needs):
    table, rows, flat = np.zeros(shape, np.float32), rows_of(grad), np.ascontiguousarray(ids.reshape(-1), np.int64)
    # each core has columns of its own, and adds the rows in their order: the same sum on any number of cores
    share(lambda start, stop: _add_to_table(table[:, start:stop], flat, rows[:, start:stop]), shape[1],
          LEAST // max(len(flat), 1))
    return table, None
