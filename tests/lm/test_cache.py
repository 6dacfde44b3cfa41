"""The cache keeps how much of each row is a prefix, wherever the row goes."""

import pytest
import torch

from xcodec_lm.configs.errors import TokenError
from xcodec_lm.lm.cache import KVCache


def make(batch=3, positions=12):
    return KVCache(1, batch, 1, positions, 2, torch.zeros(0))


def fill(cache, row, count, prefix):
    """Reads a prefix and more into a row."""
    part = cache.rows(row, row + 1)
    places = part.begin(count, prefix)
    part.extend(0, torch.ones(1, 1, count, 2), torch.ones(1, 1, count, 2))
    return part.behind_prefix(places)


def test_positions_behind_a_prefix_count_from_its_end():
    cache = make()
    assert fill(cache, 0, 6, 4).tolist() == [[0, 0, 0, 0, 0, 1]]
    assert fill(cache, 1, 2, 0).tolist() == [[0, 1]]
    assert fill(cache, 2, 5, 2).tolist() == [[0, 0, 0, 1, 2]]
    assert cache.prefixes.tolist() == [4, 0, 2] and cache.lengths.tolist() == [6, 2, 5]
    assert cache.behind_prefix(cache.begin(1)).tolist() == [[2], [2], [3]]
    assert cache.behind_prefix(cache.begin_at(torch.tensor([[7], [3], [0]]))).tolist() == [[3], [3], [0]]


def test_a_prefix_sees_itself_and_is_seen_by_all():
    cache = make(1)
    cache.begin(5, 3)
    _, _, mask = cache.extend(0, torch.ones(1, 1, 5, 2), torch.ones(1, 1, 5, 2))
    assert mask is not None
    assert mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    with pytest.raises(TokenError, match="a prefix stands in front"):
        cache.begin(2, 1)


def test_rows_take_their_prefix_with_them():
    cache = make()
    fill(cache, 2, 6, 4)
    cache.move(2, 0)
    cache.move(2, 1, 4)
    assert cache.prefixes.tolist() == [4, 4, 4] and cache.lengths.tolist() == [6, 4, 6]
    cache.rows(1, 2).reset()
    assert cache.prefixes.tolist() == [4, 0, 4] and cache.lengths.tolist() == [6, 0, 6]
    larger = make(3, 20)
    larger.take_from(cache)
    assert larger.prefixes.tolist() == [4, 0, 4] and larger.lengths.tolist() == [6, 0, 6]
    assert torch.equal(larger.keys[:, 0, :, :6], torch.ones(1, 1, 6, 2))
