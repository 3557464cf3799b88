"""Health metrics against brute force, and the verdict on codes that are of no use."""

import itertools

import numpy as np
import pytest

from rastp_jax.data.items import Item
from rastp_jax.semantic_ids import health, health_plot
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.semantic_ids.health import HealthInputs


def random_ids(items=60, width=4, levels=2, seed=0):
  return SemanticIds.from_learned(np.random.default_rng(seed).integers(0, width, (items, levels)), width, {})


def catalogue(categories) -> list[Item]:
  return [Item(str(row), categories=tuple(paths)) for row, paths in enumerate(categories)]


def test_health_counts_what_it_says():
  learned = np.array([[0, 0], [0, 0], [0, 0], [1, 2], [1, 3], [2, 2], [3, 1], [3, 1]])
  metrics = health.measure(SemanticIds.from_learned(learned, 4, {}))
  assert (metrics["items"], metrics["colliding_items"], metrics["largest_group"]) == (8, 5, 3)
  assert metrics["colliding_percent"] == 62.5 and metrics["codes_in_use"] == [4, 4]
  assert metrics["items_a_code"] == [{"mean": 2.0, "max": 3}, {"mean": 2.0, "max": 3}]
  share = np.array([3, 2, 1, 2]) / 8
  assert metrics["entropy"][0] == pytest.approx(-(share * np.log(share)).sum() / np.log(4))
  assert metrics["shared_category"] is metrics["shared_prefix"] is metrics["reconstruction_error"] is None


def test_reassigned_codes_are_judged_by_what_was_learned():
  learned = np.zeros((4, 2), np.int32)
  reassigned = SemanticIds(np.array([[0, 0], [0, 1], [0, 2], [0, 3]], np.int32), (4, 4), {}, learned)
  assert health.measure(reassigned)["colliding_items"] == 4


def test_shared_category_equals_a_count_of_all_pairs():
  rng = np.random.default_rng(0)
  categories = [[f"A > {rng.integers(5)}"] for _ in range(40)] + [[], ["lonely"], ["A > 1", "A > 2"]]
  first = rng.integers(0, 3, len(categories))
  chances = []
  for row, paths in enumerate(categories):
    for path in paths:
      others = [other for other, theirs in enumerate(categories) if path in theirs and other != row]
      if others:
        chances.append(np.mean([first[other] == first[row] for other in others]))
  found = health.shared_category(first, catalogue(categories))
  assert found["share"] == pytest.approx(np.mean(chances))
  pairs = list(itertools.combinations(range(len(first)), 2))
  assert found["shuffled"] == pytest.approx(np.mean([first[a] == first[b] for a, b in pairs]))
  assert found["ratio"] == pytest.approx(found["share"] / found["shuffled"]) and found["items"] == 41
  assert health.shared_category(first, catalogue([["only one"]] + [[]] * 42)) is None


def test_shared_prefix_equals_a_count_of_all_pairs():
  rng = np.random.default_rng(1)
  learned = rng.integers(0, 3, (20, 3))
  users = [rng.integers(0, 20, length) for length in (6, 3, 9, 4)]
  history, ends = np.concatenate(users), np.cumsum([len(user) for user in users])
  first, stop = ends - [6, 3, 9, 4], ends - 2  # two held-out items per user; the second keeps a single item
  same = lambda a, b: [int((learned[a, :level] == learned[b, :level]).all()) for level in (1, 2, 3)]  # noqa: E731
  seen = [user[:-2] for user in users]
  consecutive = [same(a, b) for user in seen for a, b in itertools.pairwise(user) if a != b]
  every = np.concatenate(seen)
  random = [same(a, b) for a, b in itertools.product(every, every) if a != b]
  found = health.shared_prefix(learned, history, first, stop)
  np.testing.assert_allclose(found["consecutive_by_level"], np.mean(consecutive, 0))
  np.testing.assert_allclose(found["random_by_level"], np.mean(random, 0))
  assert found["consecutive"] == pytest.approx(np.sum(consecutive) / len(consecutive))
  assert found["difference"] == pytest.approx(found["consecutive"] - found["random"])
  assert found["pairs"] == len(consecutive)

  held_out = history.copy()  # what is held out plays no part
  for place in (ends - 1, ends - 2):
    held_out[place] = (held_out[place] + 7) % 20
  assert health.shared_prefix(learned, held_out, first, stop) == found


def test_useful_codes_are_told_from_random_and_collapsed_ones():
  rng = np.random.default_rng(0)
  items = catalogue([[f"A > {row % 8}"] for row in range(64)])
  history = np.concatenate([rng.permutation(np.arange(kind, 64, 8)) for kind in range(8)])
  spans = (np.arange(0, 64, 8), np.arange(8, 72, 8))
  inputs = HealthInputs(items, history, spans, errors=[0.5, 0.2])
  by_kind = np.stack([np.arange(64) % 8, np.arange(64) // 8], 1)

  useful = health.measure(SemanticIds.from_learned(by_kind, 8, {}), inputs)
  assert not useful["collapsed"] and not useful["uninformative"] and not useful["advice"]
  assert useful["shared_category"]["share"] == 1 and useful["reconstruction_error"] == [0.5, 0.2]

  wrong_order = health.measure(SemanticIds.from_learned(rng.permutation(by_kind), 8, {}), inputs)
  assert wrong_order["uninformative"] and not wrong_order["collapsed"]
  assert "order of the items" in health.describe(wrong_order)

  one_code = SemanticIds.from_learned(np.stack([np.zeros(64, int), np.arange(64)], 1), 64, {})
  crowded = SemanticIds.from_learned(np.stack(np.divmod(np.arange(64) // 2, 8), 1), 8, {})
  for ids, advice in ((one_code, "Level 0 has COLLAPSED"), (crowded, "100 % of the items share all learned codes")):
    metrics = health.measure(ids, inputs)
    assert metrics["collapsed"] and advice in health.describe(metrics)
  assert "COLLAPSED" not in health.describe(useful)


def test_advice_on_collapsed_codes_is_of_use():
  """Not the method that is in use already, and not more codes where vectors are alike."""
  one_code = SemanticIds.from_learned(np.zeros((64, 2), int), 8, {"method": "rqvae"})
  measured = lambda ids, *errors: health.describe(
    health.measure(ids, HealthInputs(catalogue([["A"]] * 64), errors=errors))
  )
  assert "method=residual_kmeans" in measured(one_code, 0.5, 0.2) and "use more levels" in measured(one_code, 0.5, 0.2)
  ours = SemanticIds(one_code.codes, one_code.widths, {"method": "residual_kmeans"}, one_code.learned)
  alike = measured(ours, 0.5, 0.0)
  assert "another seed" in alike and "residual_kmeans" not in alike
  assert "so that more codes would hardly help" in alike and "use more levels" not in alike


def test_levels_with_nothing_left_to_code_are_named_and_not_called_collapsed():
  pairs = np.stack(np.divmod(np.arange(64), 8), 1)
  ids = SemanticIds.from_learned(np.concatenate([pairs, np.zeros((64, 1), int)], 1), 8, {})
  metrics = health.measure(ids)
  assert metrics["advice"] == ["Level 2 has nothing left to code: two levels are enough (semantic_ids.levels=2)."]
  assert not metrics["collapsed"] and metrics["largest_group_by_level"] == [8, 1, 1]
  # The same told from the vectors: equal items share their codes, and the first level has coded all there was.
  twins = SemanticIds.from_learned(np.stack([np.arange(64) // 2, np.zeros(64, int)], 1), 32, {})
  metrics = health.measure(twins, HealthInputs(errors=[0.001, 0.001]))
  assert "one level is enough" in metrics["advice"][0] and "100 % of the items share" in metrics["advice"][1]


@pytest.mark.parametrize("known", [True, False])
def test_plot_is_a_picture_whatever_is_known(known):
  ids = random_ids()
  spans = (np.array([0]), np.array([60]))
  inputs = HealthInputs(catalogue([["A"]] * 60), np.arange(60), spans, [0.6, 0.3]) if known else HealthInputs()
  picture = health_plot.draw(ids, health.measure(ids, inputs), "Some codes")
  assert picture.startswith(b"\x89PNG") and len(picture) > 20_000
