"""Collaborative vectors: neighbours are close together, held-out items stay unseen, weights mean what they say."""

import numpy as np

from rastp_jax.semantic_ids import collaborative

GROUPS = np.arange(12) // 4  # three groups of four items that occur together; item 12 never occurs


def histories(users=60, length=10):
  rng = np.random.default_rng(0)
  items = np.concatenate([rng.choice(np.flatnonzero(user % 3 == GROUPS), length) for user in range(users)])
  first = np.arange(users) * length
  return items, first, first + length


def test_items_taken_together_lie_together():
  vectors = collaborative.cooccurrence_vectors(*histories(), num_items=13, dims=3, seed=0)
  assert vectors.shape == (13, 3) and vectors.dtype == np.float32
  assert (vectors[12] == 0).all()
  likeness = vectors[:12] @ vectors[:12].T
  same = GROUPS[:, None] == GROUPS[None]
  np.testing.assert_allclose(np.diag(likeness), 1.0, rtol=1e-5)
  assert likeness[same].min() > 0.9 and likeness[~same].max() < 0.3


def test_what_lies_outside_the_spans_is_not_seen():
  items, first, stop = histories()
  spans = first + 1, stop - 2
  changed = items.copy()
  changed[first], changed[stop - 1], changed[stop - 2] = 12, 12, 11
  one, other = (collaborative.cooccurrence_vectors(x, *spans, num_items=13, dims=3, seed=0) for x in (items, changed))
  np.testing.assert_array_equal(one, other)
  assert (other[12] == 0).all()


def test_users_without_any_item_to_look_at_are_passed_over():
  items, first, stop = histories()
  stop[::2] = first[::2] - 1  # a user of three items has none left to train on
  vectors = collaborative.cooccurrence_vectors(items, first, stop, num_items=13, dims=3, seed=0)
  assert np.isfinite(vectors).all() and vectors[:12].any(axis=1).all()


def test_items_that_all_users_take_alike_raise_no_warning(recwarn):
  items = np.tile(np.arange(3), 4)
  vectors = collaborative.cooccurrence_vectors(items, np.arange(0, 12, 3), np.arange(3, 15, 3), 3, dims=2, seed=0)
  assert np.isfinite(vectors).all() and not recwarn.list


def test_a_single_item_has_nothing_to_be_taken_with(recwarn):
  for history in ([0, 0, 0, 0], []):
    spans = np.array([0]), np.array([len(history)])
    vectors = collaborative.cooccurrence_vectors(np.array(history, np.int32), *spans, num_items=1, dims=4, seed=0)
    assert vectors.dtype == np.float32 and vectors.tolist() == [[0.0]] and not recwarn.list


def test_the_weight_shares_the_inner_product():
  rng = np.random.default_rng(0)
  content = rng.normal(size=(5, 7)) * 3
  together = rng.normal(size=(5, 4))
  together /= np.linalg.norm(together, axis=1, keepdims=True)
  unit = content / np.linalg.norm(content, axis=1, keepdims=True)
  for weight in (0.0, 0.3, 1.0):
    joined = collaborative.join(content, together, weight)
    expected = (1 - weight) * unit @ unit.T + weight * together @ together.T
    np.testing.assert_allclose(joined @ joined.T, expected, atol=1e-5)
