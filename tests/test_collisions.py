"""Items with equal codes: counted by one more level, or moved to free codes."""

import numpy as np
import pytest

from rastp_jax.errors import InputError
from rastp_jax.semantic_ids import collisions


def moved(learned, width, distances):
  return collisions.reassign(np.array(learned), width, lambda rows: np.asarray(distances, float)[rows])


def test_the_nearest_item_keeps_its_code_and_the_next_takes_the_nearest_free_one():
  # Items 0, 1, 2 share code 1; item 1 is nearest to it. Item 3 has code 2 for itself and is not moved, although item 0
  # would be nearer to it. Item 4 has other earlier codes.
  learned = [[5, 1], [5, 1], [5, 1], [5, 2], [6, 1]]
  distances = [[3, 0.5, 0.1, 2], [9, 0.1, 9, 9], [1, 0.4, 9, 1.5], [9, 9, 0.9, 9], [9, 0, 9, 9]]
  # Item 2 (distance 1 to code 0) chooses before item 0 (2 to code 3).
  assert moved(learned, 4, distances).tolist() == [[5, 3], [5, 1], [5, 0], [5, 2], [6, 1]]


def test_codes_become_unique_and_move_as_little_as_they_can(monkeypatch):
  rng = np.random.default_rng(0)
  learned, distances = rng.integers(0, 8, (300, 3)), rng.random((300, 32))
  unique = moved(learned, 32, distances)
  assert len(np.unique(unique, axis=0)) == 300 and unique.max() < 32 and unique.dtype == np.int32
  np.testing.assert_array_equal(unique[:, :2], learned[:, :2])
  assert (unique != learned).any(1).sum() == 300 - len(np.unique(learned, axis=0))
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
