"""Items with equal codes: counted by one more level, or moved to free codes."""

import itertools

import numpy as np
import pytest

from rastp_jax.errors import InputError
from rastp_jax.semantic_ids import collisions


def moved(learned, width, distances):
  return collisions.reassign(np.array(learned), width, lambda rows: np.asarray(distances, float)[rows])


def test_items_with_equal_codes_move_as_little_as_they_can_together():
  """Against all assignments: the smallest sum of distances, where codes are shared; elsewhere nothing moves."""
  rng = np.random.default_rng(0)
  learned, distances = [[5, 1], [5, 1], [5, 1], [5, 2], [6, 1], [6, 0]], rng.random((6, 5))
  found = moved(learned, 5, distances)
  assert found[4:].tolist() == learned[4:], "no codes are shared here"
  costs = {last: distances[range(4), list(last)].sum() for last in itertools.permutations(range(5), 4)}
  assert (found[:4, 0] == 5).all() and tuple(found[:4, 1]) == min(costs, key=costs.__getitem__)


def test_an_item_goes_where_it_costs_little_for_one_that_would_go_far():
  """Item 0 is nearest to its code, but item 1 has no other place near; item 2, whose codes are its own, stays."""
  distances = [[0.0, 0.1, 9, 9], [0.2, 9, 9, 9], [9, 9, 0.5, 9]]
  assert moved([[0, 0], [0, 0], [0, 2]], 4, distances).tolist() == [[0, 1], [0, 0], [0, 2]]


def test_codes_become_unique(monkeypatch):
  rng = np.random.default_rng(0)
  learned, distances = rng.integers(0, 8, (300, 3)), rng.random((300, 32))
  unique = moved(learned, 32, distances)
  assert len(np.unique(unique, axis=0)) == 300 and unique.max() < 32 and unique.dtype == np.int32
  np.testing.assert_array_equal(unique[:, :2], learned[:, :2])
  monkeypatch.setattr(collisions, "_BATCH", 7)  # distances fetched in many small parts
  np.testing.assert_array_equal(moved(learned, 32, distances), unique)


def test_one_level_is_enough_where_it_is_as_wide_as_the_catalogue():
  assert sorted(moved([[0], [0], [0]], 3, np.eye(3))[:, 0]) == [0, 1, 2]


def test_more_items_than_codes_is_refused():
  with pytest.raises(InputError, match=r"5 items share the codes \[7\], more than the 4 codes .*extra_level"):
    moved([[7, 1]] * 5 + [[8, 0]], 4, np.zeros((6, 4)))


def test_a_counting_last_level_is_recognised():
  learned = np.random.default_rng(0).integers(0, 6, (100, 2))
  counted = collisions.disambiguate(learned)
  assert collisions.is_disambiguated(counted)
  from_zero = counted.copy()  # 0, 1, … instead of 0 for single items and 1, 2, … for others
  from_zero[:, 2] = np.maximum(counted[:, 2] - 1, 0)
  assert collisions.is_disambiguated(from_zero)
  assert not collisions.is_disambiguated(learned)
  assert not collisions.is_disambiguated(np.concatenate([learned, np.arange(100)[:, None]], 1))
