"""All methods of learning codes, by their one interface; and what each promises besides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rastp_jax import config as config_lib
from rastp_jax.config import SemanticIdsConfig
from rastp_jax.errors import InputError
from rastp_jax.semantic_ids.quantizers import base, minibatches, registry, residual_kmeans
from rastp_jax.semantic_ids.quantizers.residual_kmeans import ResidualKMeans

MINIBATCHES = {"train_steps": 100, "train_batch": 128}
TINY = {
  "levels": 2,
  "codebook_size": 12,
  "residual_vq": MINIBATCHES,
  "rqvae": {**MINIBATCHES, "hidden": (16,), "latent": 4, "learning_rate": 0.01},
}
METHODS = list(registry.QUANTIZERS)
LEARNED = [method for method in METHODS if method != "random"]


def clustered(seed=0, items=600):
  """float32 (items, 8) around 6 centres, each with 4 smaller ones around it; and which of both an item belongs to."""
  rng = np.random.default_rng(seed)
  large, small = rng.integers(0, 6, items), rng.integers(0, 4, items)
  centres, steps = 10 * rng.normal(size=(6, 8)), 2 * rng.normal(size=(6, 4, 8))
  points = centres[large] + steps[large, small] + 0.01 * rng.normal(size=(items, 8))
  return points.astype(np.float32), large, small


def tiny(**changes) -> SemanticIdsConfig:
  """Small settings, with changes by name; an option of several methods (a former name) is set for all of them."""
  config = config_lib.from_dict({"semantic_ids": TINY})
  return config_lib.with_values(
    config, [(f"semantic_ids.{name}", value) for name, value in changes.items()]
  ).semantic_ids


def fit(points, **changes):
  settings = tiny(**changes)
  return registry.QUANTIZERS[settings.method].fit(points, settings)


def fit_kmeans(points, levels, codebook_size=12, seed=0, normalize=False) -> ResidualKMeans:
  return fit(points, levels=levels, codebook_size=codebook_size, seed=seed, normalize_residuals=normalize)


@pytest.mark.parametrize("rows", [5, 603])
def test_devices_share_the_rows_of_a_batch(rows, monkeypatch):
  points, batches = clustered()[0][:rows], []
  monkeypatch.setattr(base, "_BATCH", 16)
  doubled = base.in_batches(lambda batch: batches.append(batch) or 2 * batch, points)
  np.testing.assert_array_equal(doubled, 2 * points)
  devices = jax.local_device_count()
  assert devices > 1 and len(batches) == -(-rows // (16 * devices)) and len({batch.shape for batch in batches}) == 1
  for batch in batches:
    parts = [part.data.shape[0] for part in batch.addressable_shards]
    assert len(parts) == devices and set(parts) == {len(batch) // devices}


@pytest.mark.parametrize("method", ["residual_kmeans", "rqvae"])
def test_codes_do_not_depend_on_the_number_of_devices(method, monkeypatch):
  points = clustered()[0]
  quantizer = fit(points, method=method)
  found, errors = quantizer.encode(points), quantizer.squared_errors(points)
  monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
  np.testing.assert_array_equal(quantizer.encode(points), found)
  np.testing.assert_allclose(quantizer.squared_errors(points), errors, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_the_interface(method, tmp_path):
  points, _, _ = clustered()
  np.save(tmp_path / "points.npy", points)
  mapped = np.load(tmp_path / "points.npy", mmap_mode="r")
  first = fit(mapped, method=method)
  found = first.encode(mapped)
  assert found.shape == (600, 2) and found.dtype == np.int32 and found.min() >= 0 and found.max() < 12
  assert first.widths == (12, 12)
  np.testing.assert_array_equal(fit(points, method=method).encode(points), found)  # same arguments, same codes

  first.save(tmp_path / "codebooks.npz")
  again = registry.load(tmp_path / "codebooks.npz")
  assert type(again) is type(first) and again.widths == first.widths
  np.testing.assert_array_equal(again.encode(points), found)
  np.testing.assert_array_equal(again.last_costs(points[:50]), first.last_costs(points[:50]))
  if method != "random":
    np.testing.assert_array_equal(again.squared_errors(points), first.squared_errors(points))
    np.testing.assert_array_equal(first.last_costs(points).argmin(1), found[:, -1])
  if method == "residual_kmeans":
    assert not np.array_equal(fit(points, method=method, seed=1).encode(points), found)


@pytest.mark.parametrize("method", LEARNED)
def test_vectors_of_another_width_are_refused_and_none_are_none(method):
  points, _, _ = clustered()
  features = points.shape[1]
  learned = fit(points, method=method)
  for apply in (learned.encode, learned.last_costs, learned.squared_errors):
    for wrong in (points[:, 1:], points[0], np.zeros((0, 1))):
      with pytest.raises(InputError, match=rf"cannot be encoded: the codebooks .* \(items, {features}\) is expected"):
        apply(wrong)
  assert learned.encode(points[:0]).shape == (0, 2)


@pytest.mark.parametrize("method", LEARNED)
def test_learned_codes_follow_the_clusters_and_lower_the_error(method):
  points, large, _ = clustered()
  learned = fit(points, method=method, normalize_residuals=False)
  first = learned.encode(points)[:, 0]
  pure = sum(np.bincount(large[first == code]).max() for code in np.unique(first))
  assert pure > 0.95 * len(points)
  errors = learned.squared_errors(points).mean(0) / ((points - points.mean(0)) ** 2).sum(1).mean()
  assert errors[1] < errors[0] < 0.25


@pytest.mark.parametrize("method", METHODS)
def test_batches_do_not_show_in_the_codes(method, monkeypatch):
  points, _, _ = clustered()
  learned = fit(points, method=method)
  whole = learned.encode(points)
  monkeypatch.setattr(base, "_BATCH", 64)  # 600 is not a multiple of it
  np.testing.assert_array_equal(learned.encode(points), whole)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", None])
def test_unreadable_codebooks_are_refused(tmp_path, content):
  path = tmp_path / "codebooks.npz"
  if content is None:
    np.savez(path, method="of tomorrow")
  else:
    path.write_bytes(content)
  with pytest.raises(InputError, match="cannot be read as codebooks"):
    registry.load(path)


def test_dead_codes_are_found_and_revived():
  use = jnp.array([[30.0, 0.1, 30.0, 2.0]])
  dead = minibatches.is_dead(use, 64)
  assert dead.tolist() == [[False, True, False, False]]
  residuals = jnp.arange(20.0).reshape(10, 2) + 100
  moved = minibatches.revive(jnp.zeros((4, 2)), dead[0], residuals, residual_kmeans.jax.random.key(0))
  assert moved[0].tolist() == [0, 0] and moved[1].tolist() in residuals.tolist()


@pytest.mark.parametrize("method", ["residual_vq", "rqvae"])
def test_codes_that_start_dead_come_into_use(method, monkeypatch):
  points, _, _ = clustered()
  far = lambda points, settings, normalize: np.concatenate(  # one centre among the points, all others out of reach
    [
      np.zeros((settings.levels, 1, points.shape[1])),
      np.full((settings.levels, settings.codebook_size - 1, points.shape[1]), 1e3),
    ],
    axis=1,
  ).astype(np.float32)
  monkeypatch.setattr(residual_kmeans, "fit_levels", far)
  learned = fit(points, method=method, train_steps=1000, normalize_residuals=False)
  assert len(np.unique(learned.encode(points)[:, 0])) > 6


def test_minibatches_cover_each_epoch_and_repeat_with_the_seed():
  rows = np.arange(10.0)[:, None]
  drawn = [batch[:, 0].tolist() for batch in minibatches.batches(rows, steps=5, rows=4, seed=0)]
  assert [len(batch) for batch in drawn] == [4] * 5
  assert sorted(sum(drawn, [])) == sorted([*range(10)] * 2)
  assert drawn == [batch[:, 0].tolist() for batch in minibatches.batches(rows, steps=5, rows=4, seed=0)]
  assert drawn != [batch[:, 0].tolist() for batch in minibatches.batches(rows, steps=5, rows=4, seed=1)]


def test_kmeans_finds_planted_clusters():
  points, large, _ = clustered()
  found = fit_kmeans(points, 1).encode(points)[:, 0]
  # k-means may stop in a local optimum, but a code that mixes large clusters would be a bug.
  for code in np.unique(found):
    assert len(np.unique(large[found == code])) == 1


def test_empty_centres_move_to_far_points(monkeypatch):
  points, _, _ = clustered()
  all_alike = lambda points, key, width: jnp.broadcast_to(points[:1], (width, points.shape[1]))  # noqa: E731
  monkeypatch.setattr(residual_kmeans, "_plus_plus", all_alike)
  residual_kmeans._kmeans.clear_cache()
  found = fit_kmeans(points, 1).encode(points)[:, 0]
  residual_kmeans._kmeans.clear_cache()
  assert len(np.unique(found)) == 12


def test_levels_lower_the_error_and_centres_are_means():
  points, _, _ = clustered()
  books = fit_kmeans(points, 3)
  found = books.encode(points)
  residual, errors = points.astype(np.float64), []
  for level in range(3):
    for code in np.unique(found[:, level]):  # settled: each centre is the mean of its points
      mean = residual[found[:, level] == code].mean(0)
      np.testing.assert_allclose(books.centres[level, code], mean, atol=2e-4)
    residual = residual - books.centres[level][found[:, level]]
    errors.append((residual**2).sum())
  assert errors[0] > 2 * errors[1] > 2 * errors[2]
  np.testing.assert_allclose(books.squared_errors(points).sum(0), errors, rtol=1e-3)


@pytest.mark.parametrize("normalize", [True, False])
def test_encode_takes_the_nearest_centre(normalize):
  points, _, _ = clustered()
  books = fit_kmeans(points, 2, seed=3, normalize=normalize)
  residual, scale = points.astype(np.float64), 1.0
  for level, found in enumerate(books.encode(points).T):
    if normalize:
      length = np.linalg.norm(residual, axis=1, keepdims=True)
      residual, scale = residual / length, scale * length
    distances = ((residual[:, None] - books.centres[level]) ** 2).sum(-1)
    np.testing.assert_allclose(distances[np.arange(600), found], distances.min(1), rtol=1e-3, atol=1e-5)
    residual = residual - books.centres[level][found]
    left = ((scale * residual) ** 2).sum(1)
    np.testing.assert_allclose(books.squared_errors(points)[:, level], left, rtol=1e-2, atol=1e-3)


def test_kmeans_of_a_sample_serves_the_whole_catalogue(monkeypatch):
  points, large, _ = clustered(items=3000)
  monkeypatch.setattr(residual_kmeans, "_LEAST_SAMPLE", 500)
  monkeypatch.setattr(residual_kmeans, "_POINTS_PER_CENTRE", 10)
  seen = []
  fit_levels = residual_kmeans.fit_levels
  monkeypatch.setattr(residual_kmeans, "fit_levels", lambda *a: seen.append(len(a[0])) or fit_levels(*a))
  found = fit_kmeans(points, 1).encode(points)[:, 0]
  assert seen == [500] and len(found) == 3000
  for code in np.unique(found):
    assert len(np.unique(large[found == code])) == 1


def test_kmeans_with_fewer_distinct_points_than_centres():
  points = np.repeat(np.eye(4, dtype=np.float32), 3, axis=0)
  found = fit_kmeans(points, 2, 8, normalize=True).encode(points)
  assert len(np.unique(found[:, 0])) == 4
  np.testing.assert_array_equal(found[0::3], found[2::3])
