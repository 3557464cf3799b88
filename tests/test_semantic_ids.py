"""From item text to codes and back: quantiser, disambiguation, file, lookup, health."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from rastp_jax.errors import InputError
from rastp_jax.semantic_ids import codes, embeddings, residual_kmeans
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.semantic_ids.embeddings import Item

GOLDEN = pathlib.Path(__file__).parent / "golden" / "units.npz"


@pytest.fixture
def ids():
  learned = np.random.default_rng(0).integers(0, 8, (200, 3))  # 512 triples for 200 items: some collide
  return SemanticIds.from_learned(learned, 8, {"dataset": "beauty", "dataset_fingerprint": "abc"})


def test_disambiguation_follows_the_published_rule():
  golden = np.load(GOLDEN)
  np.testing.assert_array_equal(codes.disambiguate(golden["dedup/in"]), golden["dedup/out"])


def test_items_and_codes_map_both_ways(ids):
  assert ids.widths[:3] == (8, 8, 8) and ids.widths[3] == ids.codes[:, 3].max() + 1 > 1
  np.testing.assert_array_equal(ids.items_of(ids.codes), np.arange(200))
  np.testing.assert_array_equal(ids.items_of(ids.codes[:6].reshape(2, 3, 4)), [[0, 1, 2], [3, 4, 5]])
  # Every combination of codes, also out of range, is found exactly if it is an item's.
  grid = np.stack(np.meshgrid(*[np.arange(-1, width + 2) for width in ids.widths], indexing="ij"), -1).reshape(-1, 4)
  table = {tuple(row): item for item, row in enumerate(ids.codes.tolist())}
  np.testing.assert_array_equal(ids.items_of(grid), [table.get(tuple(row), -1) for row in grid.tolist()])


def test_too_many_combinations_for_a_key_are_refused():
  with pytest.raises(InputError, match="64-bit key"):
    SemanticIds(np.zeros((1, 8), np.int32), (256,) * 8)


def test_file_round_trip_and_fingerprint(ids, tmp_path):
  path = tmp_path / "new" / "beauty.npz"
  ids.save(path)
  loaded = codes.load(path, dataset="beauty", fingerprint="abc", num_items=200)
  np.testing.assert_array_equal(loaded.codes, ids.codes)
  assert loaded.codes.dtype == np.int32 and loaded.widths == ids.widths
  assert loaded.provenance == ids.provenance and loaded.fingerprint == ids.fingerprint
  assert [file.name for file in path.parent.iterdir()] == ["beauty.npz"]

  changed = ids.codes.copy()
  changed[[0, 1]] = changed[[1, 0]]
  assert SemanticIds(changed, ids.widths).fingerprint != ids.fingerprint
  assert SemanticIds(ids.codes, (*ids.widths[:3], ids.widths[3] + 1)).fingerprint != ids.fingerprint


def test_a_failing_save_keeps_the_old_file(ids, tmp_path, monkeypatch):
  path = tmp_path / "beauty.npz"
  ids.save(path)
  before = path.read_bytes()

  def full_disk(descriptor):
    raise OSError("no space left")

  monkeypatch.setattr("os.fsync", full_disk)
  with pytest.raises(OSError, match="no space"):
    ids.save(path)
  assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
  ("expected", "sentence"),
  [
    ({"dataset": "toys"}, "holds semantic IDs of dataset 'beauty', expected 'toys'"),
    ({"fingerprint": "abd"}, "another version of the prepared dataset .*abc, expected abd"),
    ({"num_items": 7}, "covers 200 items, expected the dataset's 7"),
  ],
)
def test_another_datasets_file_is_refused(ids, tmp_path, expected, sentence):
  ids.save(tmp_path / "ids.npz")
  with pytest.raises(InputError, match=sentence):
    codes.load(tmp_path / "ids.npz", **expected)


@pytest.mark.parametrize(
  ("row", "value", "sentence"),
  [
    (3, [8, 0, 0, 0], "gives item 3 the code 8 at level 0, expected 0 to 7"),
    (5, [0, -1, 0, 0], "gives item 5 the code -1 at level 1"),
    (9, "row 4", r"gives items 4 and 9 the same codes \["),
  ],
)
def test_impossible_codes_are_refused(ids, tmp_path, row, value, sentence):
  table = ids.codes.copy()
  table[row] = table[4] if value == "row 4" else value
  SemanticIds(table, ids.widths).save(tmp_path / "ids.npz")
  with pytest.raises(InputError, match=sentence):
    codes.load(tmp_path / "ids.npz")


def test_missing_and_torn_files_are_refused(ids, tmp_path):
  path = tmp_path / "ids.npz"
  with pytest.raises(InputError, match=r"no semantic IDs at .*rastp_jax.prepare` with the same --config"):
    codes.load(path, dataset="toys")
  ids.save(path)
  whole = path.read_bytes()
  for torn in (b"", whole[:100], whole[: len(whole) // 2], whole[:200] + b"\0" * 50 + whole[250:]):
    path.write_bytes(torn)
    with pytest.raises(InputError, match="cannot be read as semantic IDs.*remove it"):
      codes.load(path)
  np.savez(path, codes=ids.codes)
  with pytest.raises(InputError, match="cannot be read as semantic IDs"):
    codes.load(path)


def test_health_counts_what_it_says():
  learned = np.array([[0, 0], [0, 0], [0, 0], [1, 2], [1, 3], [2, 2], [3, 1], [3, 1]])
  health = SemanticIds.from_learned(learned, 4, {}).health()
  assert (health["items"], health["colliding_items"], health["largest_group"]) == (8, 5, 3)
  assert health["colliding_percent"] == 62.5 and health["codes_in_use"] == [4, 4]
  share = np.array([3, 2, 1, 2]) / 8
  assert health["entropy"][0] == pytest.approx(-(share * np.log(share)).sum() / np.log(4))


def test_collapsed_codes_are_called_so():
  spread = SemanticIds.from_learned(np.stack(np.divmod(np.arange(64), 8), 1), 8, {})
  assert not spread.health()["collapsed"] and "COLLAPSED" not in spread.describe()
  one_code = SemanticIds.from_learned(np.stack([np.zeros(64, int), np.arange(64)], 1), 64, {})
  many_collisions = SemanticIds.from_learned(np.stack(np.divmod(np.arange(64) // 2, 8), 1), 8, {})
  for bad in (one_code, many_collisions):
    assert bad.health()["collapsed"] and "COLLAPSED" in bad.describe()


def clustered(seed=0, items=600):
  """float32 (items, 8) around 6 centres, each with 4 smaller ones around it; and which of both an item belongs to."""
  rng = np.random.default_rng(seed)
  large, small = rng.integers(0, 6, items), rng.integers(0, 4, items)
  centres, steps = 10 * rng.normal(size=(6, 8)), 2 * rng.normal(size=(6, 4, 8))
  points = centres[large] + steps[large, small] + 0.01 * rng.normal(size=(items, 8))
  return points.astype(np.float32), large, small


def test_kmeans_finds_planted_clusters():
  points, large, small = clustered()
  found = residual_kmeans.encode(residual_kmeans.fit(points, 1, 24, normalize_residuals=False), points)[:, 0]
  # k-means may stop in a local optimum, but a code that mixes large clusters would be a bug.
  for code in np.unique(found):
    assert len(np.unique(large[found == code])) == 1


def test_empty_centres_move_to_far_points(monkeypatch):
  points, _, _ = clustered()
  all_alike = lambda points, key, width: jnp.broadcast_to(points[:1], (width, points.shape[1]))  # noqa: E731
  monkeypatch.setattr(residual_kmeans, "_plus_plus", all_alike)
  residual_kmeans._kmeans.clear_cache()
  found = residual_kmeans.encode(residual_kmeans.fit(points, 1, 24, normalize_residuals=False), points)[:, 0]
  residual_kmeans._kmeans.clear_cache()
  assert len(np.unique(found)) == 24


def test_levels_lower_the_error_and_centres_are_means():
  points, _, _ = clustered()
  books = residual_kmeans.fit(points, 3, 6, normalize_residuals=False)
  found = residual_kmeans.encode(books, points)
  residual, errors = points.astype(np.float64), []
  for level in range(3):
    for code in np.unique(found[:, level]):  # settled: each centre is the mean of its points
      mean = residual[found[:, level] == code].mean(0)
      np.testing.assert_allclose(books.centres[level, code], mean, atol=2e-4)
    residual = residual - books.centres[level][found[:, level]]
    errors.append((residual**2).sum())
  assert errors[0] > 2 * errors[1] > 2 * errors[2]


@pytest.mark.parametrize("normalize", [True, False])
def test_encode_takes_the_nearest_centre_in_batches(monkeypatch, normalize):
  points, _, _ = clustered()
  books = residual_kmeans.fit(points, 2, 16, seed=3, normalize_residuals=normalize)
  residual = points.astype(np.float64)
  for level, found in enumerate(residual_kmeans.encode(books, points).T):
    if normalize:
      residual = residual / np.linalg.norm(residual, axis=1, keepdims=True)
    distances = ((residual[:, None] - books.centres[level]) ** 2).sum(-1)
    np.testing.assert_allclose(distances[np.arange(600), found], distances.min(1), rtol=1e-3, atol=1e-5)
    residual = residual - books.centres[level][found]
  residual_kmeans._nearest.clear_cache()
  with monkeypatch.context() as patch:
    patch.setattr(residual_kmeans, "_BATCH", 64)  # 600 is no multiple of it
    small_batches = residual_kmeans.encode(books, points)
  residual_kmeans._nearest.clear_cache()
  np.testing.assert_array_equal(small_batches, residual_kmeans.encode(books, points))


def test_kmeans_depends_on_the_seed_alone():
  points, _, _ = clustered()
  one, same, other = (residual_kmeans.fit(points, 2, 10, seed=seed).centres for seed in (0, 0, 1))
  np.testing.assert_array_equal(one, same)
  assert not np.array_equal(one, other)


def test_kmeans_with_fewer_distinct_points_than_centres():
  points = np.repeat(np.eye(4, dtype=np.float32), 3, axis=0)
  found = residual_kmeans.encode(residual_kmeans.fit(points, 2, 8), points)
  assert len(np.unique(found[:, 0])) == 4
  np.testing.assert_array_equal(found[0::3], found[2::3])


def test_item_text_leaves_out_what_is_not_known():
  full = Item("1", "B0", "Soap", "Acme", ("Beauty > Bath", "Gifts"))
  assert embeddings.item_text(full) == "Title: Soap; Brand: Acme; Categories: Beauty > Bath, Gifts"
  assert embeddings.item_text(Item("1", title="Unknown", categories=("A > B",))) == "Categories: A > B"
  assert embeddings.item_text(Item("1")) == ""


def test_embeddings_of_any_float_type_become_float32(tmp_path):
  np.save(tmp_path / "e.npy", np.array([[1, 2], [3, 4]], np.float16))
  loaded = embeddings.load_embeddings(tmp_path / "e.npy", 2)
  assert loaded.dtype == np.float32 and loaded.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
  ("array", "sentence"),
  [
    (np.ones((3, 2)), r"e.npy has 3 rows, expected 4"),
    (np.ones(4), r"shape \(4,\): expected floats of shape \(4, features\)"),
    (np.ones((4, 2), int), r"type int64 .*expected floats"),
    (np.array([[1, 2], [1, 2], [np.nan, 1], [1, 1]]), r"NaN or infinity in row 2 \(item id 3; 1 such rows\)"),
    (np.array([[1, 2], [1, np.inf], [np.nan, 1], [1, 1]]), r"NaN or infinity in row 1 \(item id 2; 2 such rows\)"),
    (np.array([[1, 2], [1, 2], [1, 1], [0, 0]]) * 1.0, r"only zeros in row 3"),
  ],
)
def test_unusable_embeddings_are_refused(tmp_path, array, sentence):
  np.save(tmp_path / "e.npy", array)
  with pytest.raises(InputError, match=sentence):
    embeddings.load_embeddings(tmp_path / "e.npy", 4)


def test_torn_embeddings_are_refused(tmp_path):
  np.save(tmp_path / "e.npy", np.ones((4, 2)))
  (tmp_path / "e.npy").write_bytes((tmp_path / "e.npy").read_bytes()[:-8])
  with pytest.raises(InputError, match="e.npy cannot be read as a .npy array"):
    embeddings.load_embeddings(tmp_path / "e.npy", 4)


def test_tfidf_puts_like_texts_together():
  texts = ["red lip stick", "dark red lip stick", "shampoo for dry hair", "hair shampoo", ""]
  vectors = embeddings.tfidf_svd(texts, 2, seed=0)
  assert vectors.dtype == np.float32 and vectors.shape == (5, 2) and np.isfinite(vectors).all()
  alike = vectors @ vectors.T
  assert alike[0, 1] > 0.8 and alike[2, 3] > 0.8 and alike[0, 2] < 0.3
  np.testing.assert_array_equal(vectors, embeddings.tfidf_svd(texts, 2, seed=0))
  with pytest.raises(InputError, match="holds no words"):
    embeddings.tfidf_svd(["", ""], 3, seed=0)
