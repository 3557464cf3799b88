"""Pruning against a NumPy oracle written from the formulas, and what the encoder makes of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rastp_jax.config import ModelConfig, PruningConfig
from rastp_jax.errors import InputError
from rastp_jax.model import encoder_decoder, pruning
from rastp_jax.model.layers import Dropout, EncoderBlock
from rastp_jax.model.pruning import Tokens

MODEL = ModelConfig(d_model=16, num_heads=2, head_dim=8, d_ff=32, encoder_blocks=3, decoder_blocks=1)
WIDTHS = (6, 6, 6, 3)


def oracle(probabilities, hidden, mask, budget, padded_queries):
  """Kept places by the paper's words, one row and one token at a time, in float64."""
  kept = []
  for row in range(len(hidden)):
    scores = []
    for token in range(hidden.shape[1]):
      received = 0.0
      for head in range(probabilities.shape[1]):
        for query in range(hidden.shape[1]):
          if mask[row, query] or padded_queries:
            received += float(probabilities[row, head, query, token])
      scores.append(
        received * float(np.abs(hidden[row, token].astype(np.float64)).sum()) if mask[row, token] else -np.inf
      )
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    kept.append(sorted(order[:budget]))
  return np.asarray(kept)


def random_tokens(rng, batch=4, length=12, width=5):
  lengths = rng.integers(0, length + 1, batch)
  lengths[0], lengths[1] = 0, length  # a row of padding only, and a full one
  mask = np.arange(length) < lengths[:, None]
  hidden = rng.normal(size=(batch, length, width)).astype(np.float32)
  positions = np.broadcast_to(np.arange(length, dtype=np.int32), mask.shape)
  return Tokens(jnp.asarray(hidden), jnp.asarray(mask), jnp.asarray(positions))


@pytest.mark.parametrize("budget", [1, 5, 12])
@pytest.mark.parametrize("padded_queries", [False, True])
def test_keeps_what_the_oracle_keeps(budget, padded_queries):
  rng = np.random.default_rng(budget)
  tokens = random_tokens(rng)
  mask = np.asarray(tokens.mask)
  probabilities = rng.dirichlet(np.ones(12), size=(4, 3, 12)).astype(np.float32)
  weights = np.ones_like(mask) if padded_queries else mask
  received = np.einsum("bhts,bt->bs", probabilities, weights)
  kept = pruning.prune(tokens, jnp.asarray(received), PruningConfig(), budget, item_length=5)
  expected = oracle(probabilities, np.asarray(tokens.hidden), mask, budget, padded_queries)
  np.testing.assert_array_equal(kept.positions, expected)
  np.testing.assert_array_equal(kept.mask, np.take_along_axis(mask, expected, 1))
  np.testing.assert_array_equal(kept.hidden, np.take_along_axis(np.asarray(tokens.hidden), expected[..., None], 1))


def test_ties_keep_the_lower_place():
  tokens = random_tokens(np.random.default_rng(0))
  kept = pruning.keep_top(tokens, jnp.ones(tokens.mask.shape), 4)
  np.testing.assert_array_equal(kept.positions, np.tile(np.arange(4), (4, 1)))


def test_every_criterion_orders_by_its_own_formula():
  rng = np.random.default_rng(3)
  tokens = random_tokens(rng)
  received = rng.random(tokens.mask.shape).astype(np.float32)
  norms = np.abs(np.asarray(tokens.hidden)).sum(-1)
  expected = {
    "rastp": received * norms,
    "attention": received,
    "l1_norm": norms,
    "recent": np.asarray(tokens.positions),
  }
  assert set(expected) == set(pruning.CRITERIA)
  for name, scores in expected.items():
    np.testing.assert_allclose(pruning.CRITERIA[name](jnp.asarray(received), tokens), scores, rtol=1e-6, err_msg=name)


def test_separators_survive_where_asked():
  tokens = random_tokens(np.random.default_rng(0), length=15)
  received = jnp.where(tokens.positions % 5 == 4, 0.0, 1.0)  # nobody looks at separators
  config = PruningConfig(prune_separators=False)
  kept = pruning.prune(tokens, received, config, 6, item_length=5)
  assert {4, 9, 14} <= set(np.asarray(kept.positions)[1].tolist())
  kept = pruning.prune(tokens, received, dataclasses.replace(config, prune_separators=True), 6, item_length=5)
  assert not {4, 9, 14} & set(np.asarray(kept.positions)[1].tolist())


def test_an_unknown_criterion_is_refused():
  with pytest.raises(InputError, match="criterion='rasp' is no way to prune: expected rastp, "):
    build(PruningConfig(criterion="rasp"))


@pytest.mark.parametrize(
  ("config", "length", "expected"),
  [
    (PruningConfig(after_block=(1,), keep_ratio=(1 / 3,)), 150, {1: 50}),
    (PruningConfig(after_block=(0, 2), keep_ratio=(0.5, 0.25)), 100, {0: 50, 2: 25}),
    (PruningConfig(after_block=(0,), keep_tokens=(50,)), 40, {}),
    (PruningConfig(after_block=(0,), keep_ratio=(1.0,)), 40, {}),
    (PruningConfig(after_block=(0,), keep_ratio=(0.01,)), 40, {0: 1}),
    (PruningConfig(criterion="none"), 150, {}),
  ],
)
def test_budgets(config, length, expected):
  assert pruning.budgets(config, length) == expected


def build(pruning_config, model_config=MODEL):
  return encoder_decoder.EncoderDecoder(model_config, pruning_config, WIDTHS, rngs=nnx.Rngs(0))


def history(rng, batch=3, items=6):
  codes = np.stack([rng.integers(0, width, (batch, items)) for width in WIDTHS], axis=-1).astype(np.int32)
  lengths = np.asarray([items, 2, 4])
  return jnp.asarray(np.where(np.arange(items)[None, :, None] < lengths[:, None, None], codes, -1))


def test_a_budget_of_everything_compiles_to_the_dense_program():
  inputs = history(np.random.default_rng(0))

  def lowered(config):
    graph, params = nnx.split(build(config))
    return jax.jit(lambda p: nnx.merge(graph, p).encode(inputs).hidden).lower(params).as_text()

  dense = lowered(PruningConfig(criterion="none"))
  assert lowered(PruningConfig(after_block=(0,), keep_tokens=(30,))) == dense
  assert lowered(PruningConfig(after_block=(0,), keep_tokens=(29,))) != dense


def test_scoring_keeps_nothing_more_for_the_backward_pass():
  batch, length = 4, 96
  block = EncoderBlock(MODEL, rngs=nnx.Rngs(0))
  graph, params = nnx.split(block)
  mask, bias = jnp.ones((batch, length), bool), jnp.zeros((1, MODEL.num_heads, length, length))

  def memory(call):
    def energy(params, hidden):
      out, received = call(nnx.merge(graph, params), hidden)
      return jnp.sum(out**2), received

    compiled = jax.jit(jax.grad(energy, has_aux=True)).lower(params, jnp.ones((batch, length, MODEL.d_model))).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  drop, flags = Dropout(None), {"score_dropout": False, "score_padded_queries": False}
  plain = memory(lambda block, hidden: (block(hidden, mask, bias, drop), None))
  scored = memory(lambda block, hidden: block.scored(hidden, mask, bias, drop, **flags))
  probabilities = 4 * batch * MODEL.num_heads * length * length
  assert plain > probabilities  # which the backward pass needs anyhow
  assert scored < plain + 0.1 * probabilities


@pytest.mark.parametrize("positions", ["original", "none"])
def test_padding_changes_nothing(positions):
  """Rows padded to 6 or to 9 items give the same states at the same kept places, whatever the padding holds."""
  config = PruningConfig(after_block=(1,), keep_tokens=(8,), positions=positions)
  model = build(config)
  short = history(np.random.default_rng(0))
  long = jnp.pad(short, ((0, 0), (0, 3), (0, 0)), constant_values=-1)
  a, b = jax.jit(model.encode)(short), jax.jit(model.encode)(long)
  np.testing.assert_array_equal(a.positions, b.positions)
  mask = np.asarray(a.mask)
  np.testing.assert_allclose(a.hidden[mask], b.hidden[mask], rtol=1e-5, atol=1e-5)


def test_no_gradient_reaches_padding_or_dropped_tokens():
  """Exact zeros, with pruning after the last block: what is dropped there cannot have mattered."""
  config = PruningConfig(after_block=(2,), keep_tokens=(7,))
  model = build(config)
  tokens = model.embed_history(history(np.random.default_rng(0)))

  def energy(last_hidden):
    received = jnp.ones(tokens.mask.shape)
    kept = pruning.prune(Tokens(last_hidden, tokens.mask, tokens.positions), received, config, 7, model.item_length)
    return jnp.sum(kept.hidden**2)

  gradient = np.asarray(jax.grad(energy)(tokens.hidden))
  assert ((gradient != 0).any(-1).sum(1) == 7).all()

  def encoded_energy(hidden):
    encoded, _ = model.encode_tokens(Tokens(hidden, tokens.mask, tokens.positions))
    return jnp.sum(jnp.where(encoded.mask[..., None], encoded.hidden, 0.0) ** 3)

  gradient = np.asarray(jax.jit(jax.grad(encoded_energy))(tokens.hidden))
  assert (gradient[~np.asarray(tokens.mask)] == 0).all()
  assert (gradient[np.asarray(tokens.mask)] != 0).any(-1).all()


def test_original_positions_are_the_biases_of_the_kept_places():
  """Pruning nothing away but by a stage that drops one padded token leaves the dense model's answer."""
  inputs = jnp.pad(history(np.random.default_rng(0)), ((0, 0), (0, 1), (0, 0)), constant_values=-1)
  dense = jax.jit(build(PruningConfig(criterion="none")).encode)(inputs)
  stages = PruningConfig(after_block=(0,), keep_tokens=(30,))
  kept = jax.jit(build(stages).encode)(inputs)
  mask = np.asarray(kept.mask)
  np.testing.assert_allclose(kept.hidden[mask], dense.hidden[np.asarray(dense.mask)], rtol=1e-5, atol=1e-5)
  placeless = jax.jit(build(dataclasses.replace(stages, positions="none")).encode)(inputs)
  assert np.abs(placeless.hidden[mask] - kept.hidden[mask]).max() > 1e-3


def test_scores_ignore_padded_queries_and_dropout_unless_asked():
  model_config = dataclasses.replace(MODEL, attention_dropout=0.5, dropout=0.0, mlp_dropout=0.0)
  tokens = build(PruningConfig()).embed_history(history(np.random.default_rng(0)))

  def received(key=None, **flags):
    model = build(PruningConfig(after_block=(0,), keep_tokens=(7,), **flags), model_config)
    return np.asarray(jax.jit(lambda t: model.encode_tokens(t, key=key)[1][0]["received"])(tokens))

  real = np.asarray(tokens.mask).sum(1)
  np.testing.assert_allclose(received().sum(1), 2 * real, rtol=1e-5)  # each head of each real query gives 1 in all
  np.testing.assert_allclose(received(score_padded_queries=True).sum(1), 2 * tokens.mask.shape[1], rtol=1e-5)
  np.testing.assert_array_equal(received(jax.random.key(0)), received(jax.random.key(1)))
  noisy = [received(jax.random.key(seed), score_dropout=True) for seed in (0, 1)]
  assert np.abs(noisy[0] - noisy[1]).max() > 0.1
