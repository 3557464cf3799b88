"""From a dataset to files: every kind of embeddings and codes; what is refused, and that nothing of it is left."""

import dataclasses
import json
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rastp_jax import config as config_lib
from rastp_jax.config import Config, DataConfig, SemanticIdsConfig
from rastp_jax.data import preparation
from rastp_jax.data.items import Item
from rastp_jax.data.prepared import Prepared
from rastp_jax.data.sources.source import RawData
from rastp_jax.errors import InputError
from rastp_jax.semantic_ids import code_sets, codes, embeddings, health_plot, new_items, pipeline
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.semantic_ids.quantizers import registry
from rastp_jax.semantic_ids.quantizers.base import Quantizer

NUM_ITEMS = 40
KINDS = 4
ITEMS = [
  Item(f"i{row}", title=f"word{row} kind{row % KINDS}", categories=(f"All > {row % KINDS}",))
  for row in range(NUM_ITEMS)
]
VECTORS = np.random.default_rng(0).normal(size=(NUM_ITEMS, 6)) + 5 * np.eye(6)[np.arange(NUM_ITEMS) % KINDS]
CODES = np.stack([np.arange(NUM_ITEMS) % KINDS, np.arange(NUM_ITEMS) // KINDS * 2 + 1], 1)  # all different


class Shop:
  """A source of 40 items and 4 users who each took all items of one kind."""

  where = "the shop"
  settings: Mapping[str, Any] = {}

  def __init__(self, vectors: np.ndarray | None = VECTORS):
    self._vectors = vectors

  def fingerprint(self) -> str:
    return "abc"

  def read(self) -> RawData:
    items = np.concatenate([np.arange(kind, NUM_ITEMS, KINDS) for kind in range(KINDS)])
    offsets = np.arange(0, NUM_ITEMS + 1, NUM_ITEMS // KINDS)
    return RawData(pa.array(list("abcd"), pa.large_string()), items.astype(np.int32), offsets, ITEMS, NUM_ITEMS)

  def embeddings(self, num_items: int) -> np.ndarray | None:
    assert num_items == NUM_ITEMS
    return self._vectors


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Prepared:
  return preparation.prepare(str(tmp_path_factory.mktemp("prepared")), "shop", Shop())


@pytest.fixture(autouse=True)
def quick_plot(request, monkeypatch):
  """Drawing takes a second; one test does it for all."""
  if "draws" not in request.node.name:
    monkeypatch.setattr(health_plot, "draw", lambda *_: b"a picture")


@pytest.fixture
def config(tmp_path) -> Config:
  settings = SemanticIdsConfig(levels=2, codebook_size=8, text_dims=8)
  return Config(data=DataConfig(dataset="shop", data_dir=str(tmp_path / "data")), semantic_ids=settings)


def with_ids(config, **changes) -> Config:
  return config_lib.with_values(config, [(f"semantic_ids.{name}", value) for name, value in changes.items()])


def files_under(root) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in pathlib.Path(root).rglob("*") if path.is_file()}


def index_json(table) -> dict[str, list[str]]:
  return {
    item.item_id: [f"<{letter}_{code}>" for letter, code in zip("abcdef", row, strict=False)]
    for item, row in zip(ITEMS, table, strict=True)
  }


def test_prepare_draws_and_writes_once_and_finds_all_again(config, shop):
  first = pipeline.learn_or_load(config, shop, Shop())
  assert not first.reused and first.metrics["shared_category"]["share"] > 0.5
  assert first.metrics["reconstruction_error"][1] < first.metrics["reconstruction_error"][0] < 1
  before = files_under(config.data.data_dir)
  assert before["shop.health.png"].startswith(b"\x89PNG")
  assert set(before) == {"shop.npz", "shop.codebooks.npz", "shop.health.json", "shop.health.png"}
  assert json.loads(before["shop.health.json"]) == first.metrics

  second = pipeline.learn_or_load(config, shop, Shop())
  assert second.reused and second.metrics == first.metrics
  assert second.semantic_ids.fingerprint == first.semantic_ids.fingerprint
  assert pipeline.learn_or_load(config, shop).reused
  assert files_under(config.data.data_dir) == before

  # New items get codes from the saved codebooks.
  quantizer = registry.load(pipeline.beside(first.path, "codebooks.npz"))
  np.testing.assert_array_equal(quantizer.encode(VECTORS[:3]), first.semantic_ids.learned[:3])


def test_health_of_other_codes_is_not_believed(config, shop):
  config = with_ids(config, method="random")
  made = pipeline.learn_or_load(config, shop, Shop())
  stale = pipeline.beside(made.path, "health.json")
  stale.write_text(json.dumps({**made.metrics, "identity": "of others", "items": 7}))
  assert pipeline.learn_or_load(config, shop, Shop()).metrics["items"] == NUM_ITEMS
  assert json.loads(stale.read_text())["items"] == NUM_ITEMS


def test_codes_without_an_extra_level(config, shop):
  config = with_ids(config, collisions="reassign", codebook_size=12, method="random")
  made = pipeline.learn_or_load(config, shop, Shop())
  ids = codes.load(made.path)
  assert ids.widths == (12, 12) and len(np.unique(ids.codes, axis=0)) == NUM_ITEMS
  assert not np.array_equal(ids.learned, ids.codes) and made.metrics["colliding_items"] > 0
  np.testing.assert_array_equal(ids.learned[:, 0], ids.codes[:, 0])


def test_every_origin_of_embeddings_is_told(config, shop, tmp_path):
  np.save(tmp_path / "e.npy", VECTORS.astype(np.float16))
  np.savez(tmp_path / "e.npz", embeddings=VECTORS[::-1], ids=[item.item_id for item in ITEMS][::-1])
  origins = {}
  for name in ("auto", "tfidf_svd", str(tmp_path / "e.npy"), str(tmp_path / "e.npz")):
    place = dataclasses.replace(config.data, data_dir=str(tmp_path / f"of {len(origins)}"))
    made = pipeline.learn_or_load(dataclasses.replace(with_ids(config, embeddings=name), data=place), shop, Shop())
    origins[name] = made.semantic_ids.provenance["embeddings"], made.semantic_ids.fingerprint
  assert [what for what, _ in origins.values()] == [
    "embeddings of the source",
    "tfidf_svd of 8 dimensions",
    "embeddings of a file",
    "embeddings of a file",
  ]
  assert origins["auto"][1] == origins[str(tmp_path / "e.npz")][1] != origins["tfidf_svd"][1]


@pytest.mark.parametrize("name", embeddings.TEXT_MODELS)
def test_the_text_model_that_was_taken_is_recorded(name, config, shop, monkeypatch):
  asked = []
  embed = lambda texts, model: asked.append(model) or VECTORS[: len(texts)]
  monkeypatch.setitem(embeddings.TEXT_MODELS, name, embed)  # pyright: ignore[reportArgumentType]
  made = pipeline.learn_or_load(with_ids(config, embeddings=name, text_model="one"), shop, Shop())
  assert made.semantic_ids.provenance["text_model"] == "one" and asked == ["one"]
  assert pipeline.learn_or_load(with_ids(config, embeddings=name, text_model="one"), shop, Shop()).reused
  with pytest.raises(InputError, match="text_model='one', but now text_model='another'"):
    pipeline.learn_or_load(with_ids(config, embeddings=name, text_model="another"), shop, Shop())


def test_text_stands_in_where_the_source_has_no_embeddings(config, shop):
  made = pipeline.learn_or_load(config, shop, Shop(None))
  assert made.semantic_ids.provenance["embeddings"] == "tfidf_svd of 8 dimensions"
  with pytest.raises(InputError, match="was made with text_template="):
    pipeline.learn_or_load(with_ids(config, text_template="{title}"), shop, Shop(None))


NEW = [Item("n1", title="word3 kind1", categories=("All > 1",)), Item("n2", title="unheard of"), Item("n3")]


@pytest.mark.parametrize("collisions", ["extra_level", "reassign"])
def test_new_items_get_codes_in_the_space_of_the_old_ones(config, shop, collisions):
  config = with_ids(config, codebook_size=16, collisions=collisions)
  made = pipeline.learn_or_load(config, shop, Shop(None))
  found = new_items.encode(made.path, [*NEW, *ITEMS])
  np.testing.assert_array_equal(found[len(NEW) :], made.semantic_ids.learned)
  np.testing.assert_array_equal(found[: len(NEW)], new_items.encode(made.path, NEW))
  np.testing.assert_array_equal(found[2], found[1])  # without a known word
  assert found.dtype == np.int32 and new_items.encode(made.path, []).shape == (0, 2)


def test_the_example_of_the_docs_runs(config, shop):
  made = pipeline.learn_or_load(config, shop, Shop(None))
  page = (pathlib.Path(__file__).parents[1] / "docs/semantic_ids.md").read_text()
  (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
  names: dict[str, Any] = {}
  assert example.count("data/semantic_ids/own.npz") == 1
  exec(example.replace("data/semantic_ids/own.npz", str(made.path)), names)
  assert names["codes"].shape == (1, 2) and names["codes"].dtype == np.int32


def test_new_items_are_coded_like_items_that_nobody_took(config, tmp_path):
  class Quiet(Shop):
    def read(self):
      raw = super().read()
      offsets = np.minimum(raw.offsets, 30)  # the fourth user, who took items 3, 7, … of kind 3, took nothing
      return dataclasses.replace(raw, user_ids=raw.user_ids[:3], items=raw.items[:30], offsets=offsets[:4])

  quiet = preparation.prepare(str(tmp_path / "prepared"), "shop", Quiet())
  for weight in (0.3, 0.9):
    place = dataclasses.replace(config.data, data_dir=str(tmp_path / f"of {weight}"))
    changed = dataclasses.replace(with_ids(config, collaborative_weight=weight, codebook_size=16), data=place)
    made = pipeline.learn_or_load(changed, quiet, Quiet(None))
    alone = np.arange(3, NUM_ITEMS, KINDS)
    found = new_items.encode(made.path, ITEMS)
    np.testing.assert_array_equal(found[alone], made.semantic_ids.learned[alone])
    assert not np.array_equal(found, made.semantic_ids.learned)


def test_new_items_are_refused_where_their_text_does_not_make_codes(config, shop):
  made = pipeline.learn_or_load(config, shop, Shop(None))
  with pytest.raises(InputError, match="'Soap' is not an item: give rastp_jax.data.items.Item"):
    new_items.encode(made.path, ["Soap"])  # pyright: ignore[reportArgumentType]
  made.path.unlink()
  for changes in ({}, {"collaborative_weight": 1.0, "embeddings": "tfidf_svd"}):  # vectors of the source; none
    made = pipeline.learn_or_load(with_ids(config, **changes), shop, Shop())
    with pytest.raises(InputError, match="cannot encode new items by their text: there is no shop.text.npz beside it"):
      new_items.encode(made.path, NEW)
    made.path.unlink()


def test_a_catalogue_of_one_item_is_prepared(config, tmp_path):
  class Single(Shop):
    def read(self):
      return RawData(pa.array(["a"], pa.large_string()), np.zeros(4, np.int32), np.array([0, 4]), ITEMS[:1], 1)

    def embeddings(self, num_items):
      return None

  single = preparation.prepare(str(tmp_path / "prepared"), "shop", Single())
  for weight in (0.0, 0.35, 1.0):
    place = dataclasses.replace(config.data, data_dir=str(tmp_path / f"of {weight}"))
    changed = dataclasses.replace(with_ids(config, collaborative_weight=weight), data=place)
    assert pipeline.learn_or_load(changed, single, Single()).semantic_ids.codes.shape == (1, 3)


def test_histories_tell_what_the_content_does_not(config, shop, tmp_path):
  noise = np.random.default_rng(1).normal(size=(NUM_ITEMS, 6))
  shared = []
  for weight in (0.0, 0.9):
    place = dataclasses.replace(config.data, data_dir=str(tmp_path / f"of {weight}"))
    changed = dataclasses.replace(with_ids(config, collaborative_weight=weight, collaborative_dims=4), data=place)
    shared.append(pipeline.learn_or_load(changed, shop, Shop(noise)).metrics["shared_prefix"])
  assert shared[1]["consecutive"] > 2 * shared[0]["consecutive"]
  with pytest.raises(InputError, match="was made with collaborative_weight=0.9, but now collaborative_weight=0.5"):
    pipeline.learn_or_load(
      dataclasses.replace(with_ids(config, collaborative_weight=0.5, collaborative_dims=4), data=place),
      shop,
      Shop(noise),
    )


def own(config, shop, tmp_path, name, content, **changes):
  path = tmp_path / name
  if isinstance(content, SemanticIds):
    content.save(path)
  elif name.endswith(".npy"):
    np.save(path, content)
  else:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
  return pipeline.learn_or_load(with_ids(config, **changes), shop, Shop(), str(path))


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("mine.npy", CODES),
    ("grid.npy", CODES.T.astype(np.uint8)),
    ("index.json", index_json(CODES)),
    ("rows.json", dict(zip(map(str, range(NUM_ITEMS)), index_json(CODES).values(), strict=True))),
    ("other.npz", SemanticIds(CODES, (4, 20), {"dataset": "shop", "dataset_fingerprint": "abc"}, CODES)),
  ],
)
def test_own_codes_that_are_unique_stay_as_they_are(config, shop, tmp_path, name, content):
  made = own(config, shop, tmp_path, name, content)
  np.testing.assert_array_equal(made.semantic_ids.codes, CODES)
  assert made.semantic_ids.widths == (4, 20) and made.semantic_ids.provenance["method"] == "own codes"
  assert made.metrics["levels"] == 2 and made.metrics["shared_category"]["share"] == 1
  assert set(files_under(config.data.data_dir)) == {"shop.npz", "shop.health.json", "shop.health.png"}
  assert own(config, shop, tmp_path, name, content).reused
  with pytest.raises(InputError, match="made with method='own codes'.*or give --codes again"):
    pipeline.learn_or_load(config, shop, Shop())


def test_own_codes_get_a_level_only_where_they_collide(config, shop, tmp_path):
  colliding = CODES // [1, 4]
  made = own(config, shop, tmp_path, "mine.npy", colliding)
  assert made.semantic_ids.widths == (4, 5, 3) and made.metrics["colliding_percent"] == 100
  np.testing.assert_array_equal(made.semantic_ids.learned, colliding)

  made.path.unlink()
  counted = own(config, shop, tmp_path, "counted.npy", made.semantic_ids.codes)  # they bring that level along
  np.testing.assert_array_equal(counted.semantic_ids.codes, made.semantic_ids.codes)
  np.testing.assert_array_equal(counted.semantic_ids.learned, colliding)
  assert counted.metrics["colliding_percent"] == 100


def vectors_file(vectors, name="e.npy", **arrays):
  def write(root: pathlib.Path) -> dict:
    np.savez(root / name, embeddings=vectors, **arrays) if arrays else np.save(root / name, vectors)
    return {"embeddings": str(root / name)}

  return write


def codes_file(name, content):
  def write(root: pathlib.Path) -> dict:
    if isinstance(content, np.ndarray):
      np.save(root / name, content)
    elif isinstance(content, SemanticIds):
      content.save(root / name)
    else:
      (root / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return {"codes": str(root / name)}

  return write


def settings(**values):
  return lambda root: values


def directory_is_a_file(root: pathlib.Path) -> dict:
  (root / "data").mkdir()
  (root / "data" / "semantic_ids").write_text("not a directory")
  return {}


def with_value(table, row, level, value):
  changed = np.array(table, float if isinstance(value, float) else int)
  changed[row, level] = value
  return changed


SQUARE = np.arange(NUM_ITEMS**2).reshape(NUM_ITEMS, NUM_ITEMS)
SHORT = dict(list(index_json(CODES).items())[:-2])


def archive_of_codes(root: pathlib.Path) -> dict:
  np.savez(root / "c.npz", codes=CODES)
  (root / "c.npz").rename(root / "c.npy")
  return {"codes": str(root / "c.npy")}


BAD_INPUTS = {
  "embeddings one row short": (vectors_file(VECTORS[:-1]), "has 39 rows, expected 40"),
  "embeddings with NaN": (vectors_file(with_value(VECTORS, 3, 1, np.nan)), r"NaN or infinity in row 3 \(item 'i3'"),
  "embeddings of integers": (vectors_file(CODES), "holds type int64"),
  "embeddings of text": (vectors_file(np.array([["a"]])), "holds type <U1"),
  "embeddings with pickles": (vectors_file(np.array([[{}]], object)), "cannot be read as item embeddings"),
  "embeddings of other ids": (vectors_file(VECTORS, "e.npz", ids=np.arange(NUM_ITEMS)), "no row for 40 of the 40"),
  "embeddings named twice": (vectors_file(VECTORS, "e.npz", ids=np.zeros(NUM_ITEMS)), "names 39 ids more than once"),
  "embeddings archive of other arrays": (
    lambda root: np.savez(root / "e.npz", x=VECTORS) or {"embeddings": str(root / "e.npz")},
    "with an array named embeddings",
  ),
  "embeddings file missing": (settings(embeddings="nowhere/e.npy"), "There is no file nowhere/e.npy"),
  "unknown origin of embeddings": (settings(embeddings="tfidf"), "did you mean 'tfidf_svd'"),
  "unknown method": (settings(method="residual_kmean"), "did you mean 'residual_kmeans'"),
  "unknown way with collisions": (settings(collisions="extra"), "did you mean 'extra_level'"),
  "unknown template field": (settings(text_template="{titel}"), r"unknown field \{titel\}: did you mean \{title\}"),
  "template without a field": (settings(text_template="an item"), "names no field"),
  "sentence-transformers not installed": (settings(embeddings="sentence_transformers"), "needs the package"),
  "reassignment that cannot be": (
    settings(collisions="reassign", codebook_size=2, levels=2),
    "items share the codes .* more than the 2 codes",
  ),
  "more combinations than a key holds": (settings(levels=8, codebook_size=256), "64-bit key"),
  "codes file missing": (settings(codes="nowhere.npy"), "no file nowhere.npy: --codes must name one"),
  "codes of an unknown kind": (codes_file("codes.csv", "1,2"), "codes.csv is not of a known kind"),
  "codes below 0": (codes_file("c.npy", with_value(CODES, 5, 1, -1)), "gives item 'i5' the code -1 at level 1"),
  "codes with offsets": (codes_file("c.npy", CODES + [0, 256]), "gives item 'i0' the code 257 .* without offsets"),
  "codes that are floats": (codes_file("c.npy", CODES / 2), "holds type float64"),
  "codes of fewer items": (codes_file("c.npy", CODES[1:]), r"\(39, 2\), in which no side is the dataset's 40 items"),
  "codes of either orientation": (codes_file("c.npy", SQUARE), "may be items x levels or levels x items"),
  "codes in one row": (codes_file("c.npy", CODES[:, 0]), r"shape \(40,\)"),
  "codes of another dataset": (
    codes_file("c.npz", SemanticIds(CODES, (4, 20), {"dataset": "beauty"}, CODES)),
    "holds semantic IDs of dataset 'beauty', expected 'shop'",
  ),
  "codes of another version of the dataset": (
    codes_file("c.npz", SemanticIds(CODES, (4, 20), {"dataset": "shop", "dataset_fingerprint": "abd"}, CODES)),
    "another version of the prepared dataset",
  ),
  "equal codes that only codebooks could move": (
    lambda root: {**codes_file("c.npy", CODES // 2)(root), "collisions": "reassign"},
    "gives items 'i0' and 'i1' the same codes .*use semantic_ids.collisions='extra_level'",
  ),
  "an archive in the place of codes": (
    archive_of_codes,
    "c.npy cannot be read .* .it is an archive of arrays",
  ),
  "torn codes": (codes_file("c.npy", "\x93NUMPY"), "cannot be read as a .npy array"),
  "unreadable json": (codes_file("index.json", '{"i0": ["<a_1>"'), r"index.json cannot be read \(Expecting"),
  "json without items": (codes_file("index.json", ["<a_1>"]), "does not hold names with values"),
  "json that misses items": (codes_file("index.json", SHORT), "misses 2 of the 40 items, like 'i38'"),
  "json with other items": (
    codes_file("index.json", {**SHORT, "x": ["<a_1>", "<b_1>"]}),
    "and has 1 that are not items, like 'x'",
  ),
  "json with a level too few": (
    codes_file("index.json", {**index_json(CODES), "i7": ["<a_1>"]}),
    "item 'i7' the codes",
  ),
  "json with another alphabet": (
    codes_file("index.json", {**index_json(CODES), "i7": ["<b_1>", "<a_1>"]}),
    r"item 'i7' the codes \['<b_1>', '<a_1>'\]: expected 2 like",
  ),
  "directory that cannot be written": (directory_is_a_file, "semantic_ids cannot be written"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs_end_in_one_sentence_and_leave_nothing(config, shop, tmp_path, monkeypatch, case):
  prepare, sentence = BAD_INPUTS[case]
  monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # as if not installed
  values = prepare(tmp_path)
  before = files_under(config.data.data_dir)
  codes_path = values.pop("codes", None)
  with pytest.raises(InputError, match=sentence) as caught:
    asked = with_ids(config, **values)
    pipeline.check(asked, codes_path)
    pipeline.learn_or_load(asked, shop, Shop(), codes_path)
  text = str(caught.value)
  assert "\n" not in text and text.endswith((".", "?")) and len(text) < 500
  assert files_under(config.data.data_dir) == before


@pytest.mark.parametrize("kind", ["codebooks.npz", "health.png", "health.json", "npz"])
def test_a_full_disk_leaves_no_codes_behind(config, shop, monkeypatch, kind):
  config = with_ids(config, method="random")
  whole = pipeline.files.write_atomic

  def full(path, content):
    if pathlib.Path(path).name == f"shop.{kind}":
      raise OSError(28, "No space left on device")
    whole(path, content)

  monkeypatch.setattr("rastp_jax.runtime.files.write_atomic", full)
  with pytest.raises(InputError, match=rf"shop.{kind} cannot be written \(No space left on device\): make room"):
    pipeline.learn_or_load(config, shop, Shop())
  assert "shop.npz" not in files_under(config.data.data_dir)
  monkeypatch.undo()
  assert not pipeline.learn_or_load(config, shop, Shop()).reused  # the next run makes all of it


def test_code_sets_are_compared_side_by_side(config, shop, tmp_path):
  np.save(tmp_path / "own.npy", CODES)
  np.save(tmp_path / "vectors.npy", VECTORS)
  config = with_ids(config, embeddings=str(tmp_path / "vectors.npy"))
  learn = ["method=random,seed=3", "levels=1,residual_kmeans.normalize_residuals=False"]
  rows = code_sets.compare(config, shop, learn, [str(tmp_path / "own.npy")])
  assert [row["name"] for row in rows] == [*learn, "own.npy"]
  assert [row["metrics"]["levels"] for row in rows] == [2, 1, 2]
  assert rows[0]["provenance"]["seed"] == 3 and rows[0]["metrics"]["reconstruction_error"] is None
  text = code_sets.table(rows)
  assert text.count("\n") == 3 and "own.npy" in text
  assert not pathlib.Path(config.data.data_dir).exists()
  for wrong, sentence in {
    "method": "expected NAME=VALUE",
    "metod=rqvae": "did you mean config.semantic_ids.method",
  }.items():
    with pytest.raises(InputError, match=sentence):
      code_sets.compare(config, shop, [wrong], [])
  with pytest.raises(InputError, match="nothing to compare"):
    code_sets.compare(config, shop, [], [])


def test_code_sets_without_vectors_are_refused_before_the_first_is_learned(config, shop, monkeypatch):
  monkeypatch.setattr(pipeline, "measure", lambda *_: pytest.fail("a code set was learned"))
  with pytest.raises(InputError, match="'levels=1' is made from vectors.*: set config.semantic_ids.embeddings to"):
    code_sets.compare(config, shop, ["method=random", "levels=1"], [])


@dataclasses.dataclass(frozen=True)
class DigitsOptions:
  """Digits (semantic_ids.method=digits)."""

  bases: tuple[int, ...] = config_lib.setting((5, 3), "codes per level, one number for each level", at_least=2)


@dataclasses.dataclass(frozen=True)
class Digits(Quantizer):
  """A method as a stranger would add it: an item's first feature, ranked and cut in digits; as wide as `bases`."""

  bases: tuple[int, ...]
  method = "digits"
  summary = "the rank of the first feature, in digits"
  options = DigitsOptions

  @classmethod
  def fit(cls, embeddings, settings):
    return cls(settings.of(DigitsOptions).bases)

  @property
  def widths(self):
    return self.bases

  def encode(self, embeddings):
    rank = np.argsort(np.argsort(embeddings[:, 0], kind="stable"))
    return np.stack(np.unravel_index(rank * np.prod(self.bases) // len(rank), self.bases), 1).astype(np.int32)

  def last_costs(self, embeddings):
    return np.ones((len(embeddings), self.bases[-1]), np.float32)

  def squared_errors(self, embeddings):
    return None

  def arrays(self):
    return {"bases": np.array(self.bases)}

  @classmethod
  def from_arrays(cls, arrays):
    return cls(tuple(arrays["bases"].tolist()))


@pytest.mark.parametrize(
  ("collisions", "bases", "widths"), [("extra_level", (5, 3), (5, 3, 4)), ("reassign", (2, 6, 7), (2, 6, 7))]
)
def test_a_new_method_is_one_class_and_one_line(config, shop, monkeypatch, collisions, bases, widths):
  monkeypatch.setitem(registry.QUANTIZERS, "digits", Digits)
  config = with_ids(config, method="digits", collisions=collisions, **{"digits.bases": bases})
  assert config_lib.from_dict(json.loads(config_lib.to_json(config))) == config
  assert "--config.semantic_ids.digits.bases=(5, 3): codes per level" in config_lib.describe_settings()
  pipeline.check(config)
  made = pipeline.learn_or_load(config, shop, Shop())
  assert made.semantic_ids.widths == widths and made.metrics["widths"] == list(widths)
  assert made.semantic_ids.provenance["digits.bases"] == list(bases)
  assert len(np.unique(made.semantic_ids.codes, axis=0)) == NUM_ITEMS
  assert pipeline.learn_or_load(config, shop, Shop()).reused
  again = registry.load(pipeline.beside(made.path, "codebooks.npz"))
  np.testing.assert_array_equal(again.encode(VECTORS), made.semantic_ids.learned)
  with pytest.raises(InputError, match=r"was made with digits.bases=\[.*\], but now digits.bases=\[9, 9\]"):
    pipeline.learn_or_load(with_ids(config, **{"digits.bases": (9, 9)}), shop, Shop())


# What commit afe1aff wrote into the file for these settings; the dataset's and the vectors' fingerprints are ours.
AFE1AFF = {
  "residual_kmeans": (
    {"residual_kmeans.normalize_residuals": False},
    """{"collisions": "extra_level", "created_by": "rastp_jax.prepare", "method": "residual_kmeans", "seed": 0,
    "levels": 2, "width": 8, "normalize_residuals": false, "behaviour": 0.0}""",
  ),
  "residual_vq": (
    {"residual_vq.train_steps": 20, "collaborative_weight": 0.3, "collaborative_dims": 4},
    """{"collisions": "extra_level", "created_by": "rastp_jax.prepare", "method": "residual_vq", "seed": 0,
    "levels": 2, "width": 8, "normalize_residuals": true, "train_steps": 20, "train_batch": 1024, "behaviour": 0.3,
    "behaviour_dims": 4}""",
  ),
  "rqvae": (
    {"rqvae.hidden": (16, 8), "rqvae.latent": 4, "rqvae.train_batch": 64},
    """{"collisions": "extra_level", "created_by": "rastp_jax.prepare", "method": "rqvae", "seed": 0, "levels": 2,
    "width": 8, "train_steps": 2000, "train_batch": 64, "rqvae_hidden": [16, 8], "rqvae_latent": 4,
    "rqvae_learning_rate": 0.001, "rqvae_commitment": 0.25, "behaviour": 0.0}""",
  ),
  "random": (  # as written before collisions and collaborative vectors were settings
    {},
    """{"created_by": "rastp_jax.prepare", "method": "random", "seed": 0, "levels": 2, "width": 8}""",
  ),
}


@pytest.mark.parametrize("method", AFE1AFF)
def test_codes_of_former_versions_are_found_again(config, shop, method):
  changes, written = AFE1AFF[method]
  config = with_ids(config, method=method, **changes)
  inputs = pipeline.find_inputs(config.semantic_ids, shop, Shop())
  ours = ("dataset", "dataset_fingerprint", "embeddings", "embeddings_sha256")
  former = json.loads(written) | {name: inputs.provenance[name] for name in ours}
  path = codes.semantic_ids_path(config)
  SemanticIds(CODES.astype(np.int32), (4, 20), former, CODES).save(path)
  found = pipeline.learn_or_load(config, shop, Shop())
  assert found.reused
  if method != "random":
    assert found.semantic_ids.provenance == inputs.provenance
  for name in ("codebook_size", *changes):
    value = {"collaborative_weight": 0.5, "rqvae.hidden": (9,)}.get(name, 7)
    if name.endswith("normalize_residuals"):
      value = True
    with pytest.raises(InputError, match=f"was made with {name}=.*but now {name}="):
      pipeline.learn_or_load(with_ids(config, **{name: value}), shop, Shop())
