"""Dropout masks, constrained decoding, cached decoding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rastp_jax.config import ModelConfig, ReductionConfig
from rastp_jax.generation.beam_search import beam_search
from rastp_jax.generation.trie import build_transitions
from rastp_jax.model import encoder_decoder
from rastp_jax.model.dropout import Dropout
from rastp_jax.model.layers import Attention, DecoderBlock
from rastp_jax.runtime import target

WIDTHS = (5, 4, 3)


@pytest.fixture(scope="module")
def model():
  config = ModelConfig(d_model=16, num_heads=2, head_dim=8, d_ff=32, encoder_blocks=2, decoder_blocks=2)
  return encoder_decoder.EncoderDecoder(config, ReductionConfig(after_block=(0,)), WIDTHS, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def history():
  rng = np.random.default_rng(0)
  codes = np.stack([rng.integers(0, width, (4, 5)) for width in WIDTHS], axis=-1).astype(np.int32)
  codes[1, 2:] = -1
  return jnp.asarray(codes)


@pytest.mark.parametrize("rate", [0.1, 0.15, 0.5])
def test_dropout_masks_are_random_and_fair(rate):
  ones = jnp.ones((400, 500))
  draws = []
  for seed in range(3):
    drop = Dropout(jax.random.key(seed))
    draws += [np.asarray(drop(ones, rate)) for _ in range(2)]
  sigma = np.sqrt(rate * (1 - rate) / ones.size)
  for draw in draws:
    assert set(np.unique(draw)) == {np.float32(0), np.float32(1 / (1 - rate))}
    assert abs((draw == 0).mean() - rate) < 5 * sigma
    assert (np.abs((draw == 0).mean(0) - rate) < 6 * sigma * np.sqrt(400)).all()
  for a, b in itertools.combinations([(d == 0) - rate for d in draws], 2):
    assert abs((a * b).mean()) < 5 * rate * (1 - rate) / np.sqrt(ones.size)  # other keys, other calls: independent
  dropped = (draws[0] == 0) - rate
  for shift in (1, 2, 7, 500):  # neighbours: independent
    flat = dropped.ravel()
    assert abs((flat[shift:] * flat[:-shift]).mean()) < 5 * rate * (1 - rate) / np.sqrt(ones.size)


def test_dropout_without_a_key_changes_nothing():
  x = jnp.arange(6.0)
  np.testing.assert_array_equal(Dropout(None)(x, 0.5), x)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize(("biased", "rate"), [(False, 0.0), (True, 0.3)])
def test_attention_over_states_is_attention_over_keys_and_values(platform, biased, rate):
  config = ModelConfig(d_model=16, num_heads=2, head_dim=8, attention_dropout=rate)
  graph, weights = nnx.split(Attention(config, rngs=nnx.Rngs(0)))
  draw = np.random.default_rng(0).standard_normal
  array = lambda *shape: jnp.asarray(draw(shape), jnp.float32)
  queries, states, wanted = array(3, 4, 16), array(3, 7, 16), array(3, 4, 16)
  bias = array(3, 2, 4, 7) if biased else None
  mask = (jnp.arange(7)[None] < jnp.array([7, 3, 1])[:, None])[:, None, None, :]

  def loss(direct, weights, queries, states, bias):
    attention, drop = nnx.merge(graph, weights), Dropout(jax.random.key(1))
    read = attention.over_states if direct else attention
    memory = states if direct else attention.keys_values(states)
    return jnp.sum(wanted * read(queries, memory, mask, bias, drop))

  with target.tracing_as(platform):
    gradient = jax.jit(jax.value_and_grad(loss, (1, 2, 3, 4) if biased else (1, 2, 3)), static_argnums=0)
    got, expected = (gradient(direct, weights, queries, states, bias) for direct in (True, False))
  for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    assert ours.dtype == theirs.dtype == jnp.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_gradients_of_weights_stay_float32():
  """On accelerators, also where a product has one matrix for each head: what is added up over rows is not rounded."""
  attention = Attention(ModelConfig(d_model=16, num_heads=2, head_dim=8, dtype="bfloat16"), rngs=nnx.Rngs(0))
  graph, weights = nnx.split(attention)
  queries, states = jnp.ones((2, 3, 16), jnp.bfloat16), jnp.ones((2, 9, 16), jnp.bfloat16)
  mask = jnp.ones((2, 1, 1, 9), bool)

  def loss(weights):
    return jnp.sum(nnx.merge(graph, weights).over_states(queries, states, mask, None, Dropout(None)))

  with target.tracing_as("gpu"):
    text = str(jax.make_jaxpr(jax.grad(loss))(weights))
  products = [line.split(" = ")[0].split(":")[-1].strip() for line in text.splitlines() if " = dot_general[" in line]
  for shape in ("2,8,16", "2,16,8"):  # heads, and what each of them makes of what
    assert f"f32[{shape}]" in products and f"bf16[{shape}]" not in products


def test_few_queries_over_many_keys_read_states():
  config = ModelConfig(d_model=16, num_heads=2, head_dim=8, d_ff=32)
  block = DecoderBlock(config, rngs=nnx.Rngs(0))
  projected = lambda keys, queries: (
    block.memory(jnp.zeros((2, keys, 16)), jnp.ones((2, keys), bool), None, queries).keys_values is not None
  )
  assert not projected(32, 4)
  assert projected(31, 4)
  assert projected(32, None)  # beams read them level after level


def test_ages_tell_which_item_is_the_newest():
  """One vector per age is added to all tokens of an item; padding does not count, and the oldest items share one."""
  plain, aged = (
    encoder_decoder.EncoderDecoder(
      ModelConfig(d_model=8, num_heads=2, head_dim=4, d_ff=8, encoder_blocks=1, decoder_blocks=1, item_ages=ages),
      ReductionConfig(after_block=(0,)),
      WIDTHS,
      rngs=nnx.Rngs(0),
    )
    for ages in (0, 3)
  )
  assert not hasattr(plain, "age_embedding") and aged.age_embedding.shape == (3, 8)
  codes = jnp.zeros((2, 5, 3), jnp.int32).at[1, 2:].set(-1)
  ages = np.asarray([[2, 2, 2, 1, 0], [1, 0, 0, 0, 0]])
  added = aged.embed_history(codes).hidden - plain.embed_history(codes).hidden
  expected = np.repeat(np.asarray(aged.age_embedding[...])[ages], plain.layout.item_length, axis=1)
  real = np.asarray(plain.embed_history(codes).mask)
  np.testing.assert_allclose(np.asarray(added)[real], expected.reshape(2, -1, 8)[real], atol=1e-6)


def search(model, history, transitions, width, renormalize=False):
  return jax.jit(lambda h: beam_search(model, model.encode(h), transitions, width, renormalize=renormalize))(history)


def all_log_probs(model, history):
  """Log-probability of every code sequence, by teacher forcing, without cache or beams."""
  encoded = jax.jit(model.encode)(history)
  sequences = np.asarray(list(itertools.product(*map(range, WIDTHS))), np.int32)

  @jax.jit
  def row(one):
    repeated = jax.tree.map(lambda x: jnp.repeat(x, len(sequences), axis=0), one)
    logits = model.logits(model.decode(repeated, jnp.asarray(sequences)))
    every = np.arange(len(sequences))
    return sum(jax.nn.log_softmax(level)[every, sequences[:, h]] for h, level in enumerate(logits))

  return sequences, np.stack([row(jax.tree.map(lambda x: x[i : i + 1], encoded)) for i in range(len(history))])  # noqa: B023


def test_beams_wide_enough_for_everything_are_exhaustive_search(model, history):
  sequences, totals = all_log_probs(model, history)
  beams = search(model, history, None, len(sequences))
  order = np.argsort(-totals, axis=1, kind="stable")
  np.testing.assert_allclose(beams.log_probs, np.take_along_axis(totals, order, 1), rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(beams.codes[:, :10], sequences[order[:, :10]])


@pytest.mark.parametrize("items", [1, 3, 17])
def test_constrained_beams_are_the_best_items(model, history, items):
  sequences, totals = all_log_probs(model, history)
  exists = np.sort(np.random.default_rng(items).permutation(len(sequences))[:items])
  transitions = build_transitions(sequences[exists][::-1])
  beams = search(model, history, transitions, 20)
  order = exists[np.argsort(-totals[:, exists], axis=1)]
  np.testing.assert_array_equal(beams.codes[:, :items], sequences[order])
  np.testing.assert_allclose(beams.log_probs[:, :items], np.take_along_axis(totals, order, 1), rtol=1e-4, atol=1e-5)
  assert (np.asarray(beams.codes[:, items:]) == -1).all() and np.isneginf(beams.log_probs[:, items:]).all()


def test_renormalized_probabilities_of_all_items_sum_to_one(model, history):
  sequences = np.asarray(list(itertools.product(*map(range, WIDTHS))))[::4]
  beams = search(model, history, build_transitions(sequences), len(sequences), renormalize=True)
  np.testing.assert_allclose(np.exp(beams.log_probs).sum(1), 1.0, rtol=1e-5)


def test_transitions_hold_every_prefix_once():
  codes = np.asarray([[1, 0, 0], [0, 2, 1], [1, 0, 2], [0, 2, 0], [1, 3, 0]])
  transitions = build_transitions(codes)
  assert [len(c) for c in transitions.codes] == [2, 3, 5] and transitions.branches == (2, 2, 2)
  walked = []
  for a in range(*np.asarray(transitions.starts[0])):
    for b in range(*np.asarray(transitions.starts[1])[a : a + 2]):
      for c in range(*np.asarray(transitions.starts[2])[b : b + 2]):
        walked.append([int(transitions.codes[0][a]), int(transitions.codes[1][b]), int(transitions.codes[2][c])])
  assert walked == sorted(codes.tolist())


def test_filler_rows_weigh_nothing(model, history):
  target = jnp.asarray([[0, 1, 2], [1, 0, 0], [4, 3, 1], [2, 2, 2]], jnp.int32)
  weight = jnp.asarray([1.0, 1.0, 0.0, 1.0])
  loss_of = jax.jit(lambda *batch: model.loss(dict(zip(("history", "target", "weight"), batch, strict=True))))
  loss, parts = loss_of(history, target, weight)
  rows = jnp.asarray([0, 1, 3])
  expected, _ = loss_of(history[rows], target[rows], jnp.ones(3))
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  np.testing.assert_allclose(loss, sum(parts.values()), rtol=1e-6)
