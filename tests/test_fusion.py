"""Counts mixed into answers: against a plain sum, against all scores, and the same by every way to an answer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rastp_jax import config as config_lib
from rastp_jax.config import CountsConfig, EvalConfig
from rastp_jax.errors import InputError
from rastp_jax.evaluation.evaluator import Evaluator
from rastp_jax.evaluation.user_ranks import UserRanks
from rastp_jax.generation import decode, trie
from rastp_jax.generation.beam_search import beam_search
from rastp_jax.generation.counts import Counts
from rastp_jax.generation.mixture import Source, mix
from rastp_jax.serving import artifact
from rastp_jax.serving.exported_model import ExportedModel
from rastp_jax.serving.recommender import Recommender
from tests.helpers.codes import items_of
from tests.helpers.saved import make_saved

COUNTS = CountsConfig(share=0.6, window=3, distance_power=0.7, backward=0.3, decay=0.6, last_items=4)


@pytest.fixture(scope="module")
def saved():
  saved, items = make_saved()
  config = dataclasses.replace(saved.config, counts=COUNTS, eval=EvalConfig(batch_size=8, beam_width=12))
  return dataclasses.replace(saved, config=config), items


def test_a_mixture_is_the_sum_over_its_sources():
  rng = np.random.default_rng(0)
  items = [rng.integers(-1, 9, (5, width)) for width in (7, 11)]
  shares = [rng.random((5, width)).astype(np.float32) for width in (7, 11)]
  sources = [Source(jnp.asarray(i), jnp.asarray(p), s) for i, p, s in zip(items, shares, (0.25, 0.75), strict=True)]
  answers = mix(sources, 12)
  for row in range(5):
    expected = np.zeros(9)
    for one, p, share in zip(items, shares, (0.25, 0.75), strict=True):
      np.add.at(expected, one[row][one[row] >= 0], share * p[row][one[row] >= 0])
    order = np.argsort(-expected, kind="stable")
    order = order[expected[order] > 0]
    assert answers.items[row].tolist() == [*order, *[-1] * (12 - len(order))]
    np.testing.assert_allclose(np.exp(answers.log_probs[row, : len(order)]), expected[order], rtol=1e-5)
    assert np.isneginf(answers.log_probs[row, len(order) :]).all()


def _history(saved, split="test"):
  histories = saved.histories
  starts, ends = histories.spans(split)
  rows = np.full((len(starts), 16), -1, np.int32)
  for row, (start, end) in enumerate(zip(starts, ends - 1, strict=True)):
    read = histories.items[start:end][-16:]
    rows[row, : len(read)] = read
  return rows


def test_the_table_makes_the_candidates_that_counting_scores(saved):
  counts = Counts.fit(saved[0].histories, COUNTS)
  rows = _history(saved[0])
  items, probabilities = jax.jit(counts.table().candidates)(rows)
  found = np.zeros((len(rows), 50))
  np.add.at(found, (np.arange(len(rows))[:, None], np.asarray(items)), np.asarray(probabilities))
  expected = counts.scores(rows)
  np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-7)


def test_of_many_neighbours_the_strongest_are_kept(saved):
  histories = saved[0].histories
  whole = Counts.fit(histories, COUNTS).table()
  few = Counts.fit(histories, dataclasses.replace(COUNTS, neighbours=3)).table()
  assert whole.items.shape[1] > 3 and few.items.shape == (50, 3)
  np.testing.assert_array_equal(few.weights, whole.weights[:, :3])
  np.testing.assert_array_equal(few.items, whole.items[:, :3])


def test_codes_are_found_and_others_are_not(saved):
  codes = saved[0].semantic_ids.codes
  transitions = trie.build_transitions(codes)
  rng = np.random.default_rng(0)
  asked = np.concatenate([codes[rng.permutation(50)], rng.integers(-1, 9, (70, codes.shape[1]))])[None]
  found = jax.jit(trie.find_items)(transitions, jnp.asarray(asked))
  np.testing.assert_array_equal(found, items_of(saved[0].semantic_ids, asked))
  assert (np.asarray(found) < 0).any()


def test_an_answer_mixes_the_model_with_counts(saved):
  saved, _ = saved
  histories, rows = saved.histories, _history(saved)[:20]
  tables = decode.item_tables(saved.semantic_ids, histories, saved.config)
  graph, params = nnx.split(saved.model)
  mixed = jax.jit(
    lambda params, rows: decode.answer(nnx.merge(graph, params), tables, rows, saved.config.eval, COUNTS)
  )(params, rows)
  codes = jnp.where(rows[..., None] >= 0, jnp.asarray(saved.semantic_ids.codes)[rows], -1)
  beams = jax.jit(
    lambda params: beam_search(
      (model := nnx.merge(graph, params)), model.encode(codes), tables.transitions, 12, renormalize=False
    )
  )(params)
  scores = Counts.fit(histories, COUNTS).scores(rows)
  expected = COUNTS.share * scores / scores.sum(axis=1, keepdims=True)
  items = items_of(saved.semantic_ids, np.asarray(beams.codes))
  np.put_along_axis(
    expected, items, np.take_along_axis(expected, items, 1) + (1 - COUNTS.share) * np.exp(beams.log_probs), 1
  )
  best = np.sort(expected, axis=1)[:, ::-1][:, :12]
  np.testing.assert_allclose(np.exp(mixed.log_probs), best, rtol=1e-4)
  outside = [set(row) - set(model_row) for row, model_row in zip(mixed.items.tolist(), items.tolist(), strict=True)]
  assert any(outside)  # counts bring items that no beam holds


@pytest.mark.slow
@pytest.mark.parametrize("exclude", [False, True])
def test_evaluation_recommendation_and_export_give_the_same_mixture(saved, tmp_path, exclude):
  saved, items = saved
  if exclude:  # with beams for all items, since recommending takes more of them than evaluation
    settings = dataclasses.replace(saved.config.eval, exclude_history=True, beam_width=50)
    saved = dataclasses.replace(saved, config=dataclasses.replace(saved.config, eval=settings))
  ranks = UserRanks(saved.histories.num_users, saved.histories.num_items)
  found = Evaluator(saved.config, saved.histories, saved.semantic_ids, saved.mesh).evaluate(
    saved.model, "test", ranks=ranks
  )
  starts, ends = saved.histories.spans("test")
  asked = [
    [items[row].item_id for row in saved.histories.items[start : end - 1]]
    for start, end in zip(starts, ends, strict=True)
  ]
  targets = [items[row].item_id for row in saved.histories.items[ends - 1]]
  ours = Recommender(saved, items).recommend(asked, k=10)
  listed = [[item.item_id for item in answer] for answer in ours]
  hits = [target in answer for target, answer in zip(targets, listed, strict=True)]
  assert found["recall@10"] == np.mean(hits) and 0 < sum(hits) < len(hits)
  artifact.write(tmp_path / "export", saved, items, None)
  theirs = ExportedModel(tmp_path / "export").recommend(asked[:9], k=10)
  assert [[item["item_id"] for item, _ in answer] for answer in theirs] == listed[:9]
  seen = [set(history) & set(answer) for history, answer in zip(asked, listed, strict=True)]
  assert any(seen) != exclude
  np.testing.assert_allclose(
    [[score for _, score in answer] for answer in theirs],
    [[item.score for item in answer] for answer in ours[:9]],
    rtol=1e-4,
  )


def test_evaluation_without_the_history_leaves_it_out(saved):
  saved, _ = saved
  settings = dataclasses.replace(saved.config.eval, beam_width=50)
  lists = []
  for exclude in (False, True):
    config = dataclasses.replace(saved.config, eval=dataclasses.replace(settings, exclude_history=exclude))
    ranks = UserRanks(saved.histories.num_users, saved.histories.num_items)
    evaluator = Evaluator(config, saved.histories, saved.semantic_ids, saved.mesh)
    lists.append((evaluator.evaluate(saved.model, "test", ranks=ranks), ranks.ranks))
  starts, ends = saved.histories.spans("test")
  repeated = np.asarray(
    [
      saved.histories.items[end - 1] in saved.histories.items[start : end - 1]
      for start, end in zip(starts, ends, strict=True)
    ]
  )
  (with_it, before), (without, after) = lists
  assert (after[~repeated] <= before[~repeated]).all() and (after[~repeated] < before[~repeated]).any()
  assert (after[repeated] == 50).all() and repeated.any()
  assert without["invalid_beams"] == with_it["invalid_beams"] == 0


def test_beams_that_are_not_an_item_are_counted_before_counts_are_mixed_in(saved):
  saved, _ = saved
  unconstrained = dataclasses.replace(saved.config.eval, constrained=False)
  invalid = []
  for share in (0.0, 0.6):
    config = dataclasses.replace(saved.config, eval=unconstrained, counts=dataclasses.replace(COUNTS, share=share))
    evaluator = Evaluator(config, saved.histories, saved.semantic_ids, saved.mesh)
    invalid.append(evaluator.evaluate(saved.model, "test")["invalid_beams"])
  assert invalid[0] == invalid[1] > 0


def test_too_few_beams_to_leave_the_history_out_are_refused(saved):
  values = config_lib.to_dict(saved[0].config)
  values["eval"] |= {"exclude_history": True, "beam_width": 12}
  with pytest.raises(InputError, match="beam_width=12"):
    config_lib.from_dict(values)
