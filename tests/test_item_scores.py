"""Scores of all items at once: what they are made of, how they train, and that every way to an answer agrees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rastp_jax.batches.batches import what_is_read, with_codes
from rastp_jax.config import EvalConfig
from rastp_jax.errors import InputError
from rastp_jax.evaluation.evaluator import Evaluator
from rastp_jax.evaluation.user_ranks import UserRanks
from rastp_jax.experiments.tiny import make_config, make_data
from rastp_jax.generation import decode
from rastp_jax.model.dropout import Dropout
from rastp_jax.model.factory import make_model
from rastp_jax.semantic_ids.collaborative import cooccurrence_vectors
from rastp_jax.serving import artifact
from rastp_jax.serving.exported_model import ExportedModel
from rastp_jax.serving.recommender import Recommender
from tests.helpers.saved import make_saved
from tests.helpers.training import run, setup_of

KINDS = ("set", "vectors")


def with_scores(kind: str, share: float = 0.5, repeats: bool = False):
  """A small random model that scores all items, as if loaded from a workdir."""
  saved, items = make_saved()
  config = dataclasses.replace(
    saved.config,
    model=dataclasses.replace(saved.config.model, item_scores=kind, item_repeats=repeats),
    eval=EvalConfig(batch_size=8, beam_width=12, item_share=share),
  )
  ids = saved.semantic_ids
  model = make_model(config, ids.widths, num_items=ids.num_items, rngs=nnx.Rngs(0))
  return dataclasses.replace(saved, config=config, model=model), items


def make_batch(saved, rows=6):
  rng = np.random.default_rng(0)
  history = rng.integers(0, 50, (rows, 5)).astype(np.int32)
  history[0, 2:] = -1
  batch = {"history": history, "target": rng.integers(0, 50, rows), "weight": np.asarray([1.0] * (rows - 1) + [0.0])}
  batch["weight"] = batch["weight"].astype(np.float32)
  return batch, jax.tree.map(jnp.asarray, with_codes(batch, what_is_read(saved.semantic_ids, saved.config.model)))


def first_of_newest(saved, memory):
  """Where the first token of each row's newest item is, of the tokens that were kept."""
  found, places = [], np.broadcast_to(memory.positions, memory.mask.shape)
  length = saved.model.layout.item_length
  for mask, row in zip(np.asarray(memory.mask), places, strict=True):
    kept = np.flatnonzero(mask)
    found.append(min(place for place in kept if row[place] // length == row[kept[-1]] // length))
  return found


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_probabilities_of_all_items(kind):
  saved, _ = with_scores(kind)
  rows, batch = make_batch(saved)
  model, codes = saved.model, jnp.asarray(saved.semantic_ids.codes)
  alone = nnx.jit(lambda model, memory: model._set_logits(memory, Dropout(None)))
  memory = nnx.jit(lambda model, history: model.encode(history))(model, batch["history"])
  found = nnx.jit(lambda model, memory: model.item_log_probs(memory, codes))(model, memory)
  assert found.shape == (6, 50) and found.dtype == jnp.float32
  np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-5)
  if kind == "vectors":  # the state of the newest item's first token, which the item's vector was added to
    state = np.asarray(memory.hidden)[np.arange(6), first_of_newest(saved, memory)]
    scores = state @ np.asarray(model.item_embedding[...]).T
  else:  # a level's query alone gives what all of them give together: none sees another
    scores = np.zeros((6, 50))
    for level in range(2):
      other = nnx.clone(model)
      queries = np.random.default_rng(1).normal(size=model.level_queries.shape).astype(np.float32)
      queries[level] = model.level_queries[level]
      other.level_queries[...] = jnp.asarray(queries)
      logits = alone(other, memory)[level]
      scores += np.asarray(jax.nn.log_softmax(logits))[:, saved.semantic_ids.codes[:, level]]
  expected = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
  # The loss counts real rows only.
  _, parts = nnx.jit(lambda model, batch: model.loss(batch))(model, batch)
  assert set(parts) == {"loss_level_0", "loss_level_1", "loss_items"}
  if kind == "vectors":
    real = rows["weight"] > 0
    wanted = np.take_along_axis(expected, rows["target"][:, None], axis=1)[:, 0]
    np.testing.assert_allclose(parts["loss_items"], -wanted[real].mean(), rtol=1e-4)


item_logits = nnx.jit(lambda model, history: model._item_logits(model.encode(history)))


def test_items_of_the_history_get_one_learned_number_more():
  """Once, however often an item comes, whatever a reduction has left of it; padding gets nothing."""
  saved, model = with_scores("vectors")[0], with_scores("vectors", repeats=True)[0].model
  rows, batch = make_batch(saved)
  history = np.asarray(batch["history"]).copy()
  history[1] = history[1, :1]  # one item, five times
  items, history = history[..., -1], jnp.asarray(history)
  plain = np.asarray(item_logits(saved.model, history))
  np.testing.assert_array_equal(plain, item_logits(model, history))  # nothing is known at first
  model.repeat_score[...] = jnp.asarray(-3.0 / model.config.d_model**0.5)
  found = np.asarray(item_logits(model, history))
  taken = np.zeros(plain.shape, bool)
  for row, its in enumerate(items):
    taken[row, its[its >= 0]] = True
  assert taken.sum(axis=1).tolist()[:2] == [len(set(rows["history"][0, :2])), 1]
  np.testing.assert_allclose(found - plain, np.where(taken, -3.0, 0.0), atol=1e-5)


def test_the_number_is_learned_from_what_users_take():
  """Its gradient is the probability that the history's items have, less how often one of them is the target."""
  saved, _ = with_scores("vectors", repeats=True)
  model = saved.model
  rows, batch = make_batch(saved)
  table = jnp.asarray(what_is_read(saved.semantic_ids, saved.config.model))
  probabilities = np.exp(jax.nn.log_softmax(item_logits(model, batch["history"])))
  slope = nnx.jit(nnx.grad(lambda model, batch: model.loss(batch)[0]))
  taken = [set(items[items >= 0]) for items in rows["history"]]
  never = [next(item for item in range(50) if item not in items) for items in taken]
  for targets, again in ((rows["history"][:, 1], 1), (np.asarray(never), 0)):
    target = jnp.where(batch["weight"][:, None] > 0, table[targets], 0)
    given = [probabilities[row, list(taken[row])].sum() - again for row in range(len(targets)) if rows["weight"][row]]
    found = slope(model, batch | {"target": target})["repeat_score"][...]
    np.testing.assert_allclose(found, model.config.d_model**0.5 * np.mean(given), rtol=1e-4)


def test_repeats_need_vectors():
  with pytest.raises(InputError, match="item_repeats=True adds to scores by vectors of items, which model.item_sc"):
    make_config(model__item_repeats=True)


def test_scores_by_vectors_are_not_rounded_to_bfloat16():
  saved, _ = with_scores("vectors")
  config = dataclasses.replace(saved.config, model=dataclasses.replace(saved.config.model, dtype="bfloat16"))
  ids = saved.semantic_ids
  model = make_model(config, ids.widths, num_items=ids.num_items, rngs=nnx.Rngs(0))
  _, batch = make_batch(saved)
  memory = jax.jit(model.encode)(batch["history"])
  newest = first_of_newest(saved, memory)
  wide = lambda x: np.asarray(x.astype(jnp.bfloat16).astype(jnp.float32))
  scores = wide(memory.hidden)[np.arange(6), newest] @ wide(model.item_embedding[...]).T
  np.testing.assert_allclose(model._item_logits(memory), scores, rtol=1e-5, atol=1e-6)


def test_a_model_without_them_has_the_weights_it_had():
  plain, _ = make_saved()
  names = {kind: set(nnx.to_pure_dict(nnx.state(with_scores(kind)[0].model, nnx.Param))) for kind in KINDS}
  own = set(nnx.to_pure_dict(nnx.state(plain.model, nnx.Param)))
  assert names == {"set": own | {"level_queries"}, "vectors": own | {"item_embedding"}}
  codes = jnp.asarray(plain.semantic_ids.codes)
  history = jnp.asarray(plain.semantic_ids.codes[None, :3])
  assert jax.eval_shape(lambda: plain.model.item_log_probs(plain.model.encode(history), codes)) is None


def test_vectors_begin_as_what_users_take_together_and_are_read_with_the_history():
  setup = setup_of(model__item_scores="vectors")
  histories, _ = make_data()
  params = setup.fresh_state().params
  expected = cooccurrence_vectors(
    histories.items, *histories.training_spans(), histories.num_items, setup.config.model.d_model, 0
  )
  found, width = np.asarray(params["item_embedding"]), expected.shape[1]
  known = (expected != 0).any(axis=1)
  assert known.any()
  np.testing.assert_allclose(found[known][:, :width], expected[known], rtol=1e-6)
  assert (found[known][:, width:] == 0).all() and (found[~known] != 0).all()
  batch = jax.tree.map(jnp.asarray, setup.batches[0])

  def loss(vectors):
    return nnx.merge(setup.graph, {**params, "item_embedding": vectors}).encode(batch["history"]).hidden.sum()

  gradient = np.asarray(jax.jit(jax.grad(loss))(params["item_embedding"]))
  read = np.unique(np.asarray(batch["history"])[..., -1])
  assert set(np.flatnonzero((gradient != 0).any(axis=1))) == set(read[read >= 0])


@pytest.mark.parametrize("kind", ["set", pytest.param("vectors", marks=pytest.mark.slow)])
def test_a_run_trains_them_and_resumes(kind, tmp_path):
  run(tmp_path / "run", train__length="6 steps", model__item_scores=kind)
  again = run(tmp_path / "run", train__length="6 steps", model__item_scores=kind)
  assert again.step == 6 and "loss_items" in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("share", [0.0, pytest.param(0.5, marks=pytest.mark.slow), 1.0])
def test_evaluation_recommendation_and_export_agree(share, tmp_path):
  saved, items = with_scores("vectors", share, repeats=share == 0.5)
  if share == 0.5:
    saved.model.repeat_score[...] = jnp.asarray(-1.0)
  ranks = UserRanks(saved.histories.num_users, saved.histories.num_items)
  Evaluator(saved.config, saved.histories, saved.semantic_ids, saved.mesh).evaluate(saved.model, "test", ranks=ranks)
  starts, ends = saved.histories.spans("test")
  asked = [
    [items[row].item_id for row in saved.histories.items[start : end - 1]]
    for start, end in zip(starts, ends, strict=True)
  ]
  targets = [items[row].item_id for row in saved.histories.items[ends - 1]]
  ours = [[item.item_id for item in answer] for answer in Recommender(saved, items).recommend(asked, k=12)]
  counted = [answer.index(target) if target in answer else 12 for answer, target in zip(ours, targets, strict=True)]
  assert ranks.ranks.tolist() == counted and min(counted) < 12
  if share == 0.5:
    artifact.write(tmp_path / "export", saved, items, None)
    theirs = ExportedModel(tmp_path / "export").recommend(asked[:9], k=12)
    assert [[item["item_id"] for item, _ in answer] for answer in theirs] == ours[:9]


def test_share_1_needs_no_beams_and_is_the_ranking_of_all_items():
  saved, _ = with_scores("set", 1.0)
  tables = decode.item_tables(saved.semantic_ids, saved.histories, saved.config)
  rows = jnp.asarray(make_batch(saved)[0]["history"])
  answer = lambda rows: decode.answer(saved.model, tables, rows, saved.config.eval, saved.config.counts)
  found = jax.jit(answer)(rows)

  def ranking(rows):
    memory = saved.model.encode(jnp.where(rows[..., None] >= 0, tables.read[rows], -1))
    return jax.lax.top_k(saved.model.item_log_probs(memory, tables.codes), 12)

  best, items = jax.jit(ranking)(rows)
  np.testing.assert_array_equal(found.items, items)
  np.testing.assert_allclose(found.log_probs, best, rtol=1e-5)
  beams = jax.jit(
    lambda rows: decode.answer(
      saved.model, tables, rows, dataclasses.replace(saved.config.eval, item_share=0.5), saved.config.counts
    )
  )
  assert answer_flops(jax.jit(answer), rows) < 0.8 * answer_flops(beams, rows)


def answer_flops(program, rows) -> float:
  return program.lower(rows).cost_analysis()["flops"]


def test_one_dataset_serves_models_with_and_without():
  config = make_config(model__item_scores="vectors")
  _, ids = make_data()
  assert what_is_read(ids, config.model).shape == (ids.num_items, ids.depth + 1)
  assert what_is_read(ids, make_config().model) is ids.codes
