"""The code table, its file and its lookup; item text and embeddings."""

import json
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import model2vec
import numpy as np
import pytest
import tokenizers

from rastp_jax.config import SemanticIdsConfig
from rastp_jax.data import vectors as item_vectors
from rastp_jax.data.items import Item
from rastp_jax.errors import InputError
from rastp_jax.generation import trie
from rastp_jax.semantic_ids import codes, collisions, embeddings
from rastp_jax.semantic_ids.codes import SemanticIds
from tests.helpers.codes import items_of

GOLDEN = pathlib.Path(__file__).parent / "golden" / "units.npz"


@pytest.fixture
def ids():
  learned = np.random.default_rng(0).integers(0, 8, (200, 3))  # 512 triples for 200 items: some collide
  return SemanticIds.from_learned(learned, 8, {"dataset": "beauty", "dataset_fingerprint": "abc"})


def test_disambiguation_follows_the_published_rule():
  golden = np.load(GOLDEN)
  np.testing.assert_array_equal(collisions.disambiguate(golden["dedup/in"]), golden["dedup/out"])


def test_items_and_codes_map_both_ways(ids):
  assert ids.widths[:3] == (8, 8, 8) and ids.widths[3] == ids.codes[:, 3].max() + 1 > 1
  np.testing.assert_array_equal(items_of(ids, ids.codes), np.arange(200))
  # Every combination of codes, also out of range, is found exactly if it is an item's.
  grid = np.stack(np.meshgrid(*[np.arange(-1, width + 2) for width in ids.widths], indexing="ij"), -1).reshape(-1, 4)
  found = jax.jit(trie.find_items)(trie.build_transitions(ids.codes), jnp.asarray(grid[None]))
  np.testing.assert_array_equal(found[0], items_of(ids, grid))


def test_reassigned_codes_keep_what_was_learned(tmp_path):
  learned = np.random.default_rng(0).integers(0, 8, (100, 3)).astype(np.int32)
  unique = collisions.reassign(learned, 8, lambda rows: np.random.default_rng(1).random((len(rows), 8)))
  table = SemanticIds(unique, (8, 8, 8), {}, learned)
  table.save(tmp_path / "ids.npz")
  loaded = codes.load(tmp_path / "ids.npz")
  np.testing.assert_array_equal(loaded.codes, unique)
  np.testing.assert_array_equal(loaded.learned, learned)
  np.testing.assert_array_equal(items_of(loaded, loaded.codes), np.arange(100))
  assert loaded.depth == 3 and loaded.fingerprint == table.fingerprint


def test_files_of_the_first_format_still_load(ids, tmp_path):
  widths, provenance = np.array(ids.widths), json.dumps(dict(ids.provenance))
  np.savez_compressed(tmp_path / "ids.npz", codes=ids.codes, widths=widths, provenance=provenance)
  loaded = codes.load(tmp_path / "ids.npz", dataset="beauty", fingerprint="abc", num_items=200)
  assert loaded.fingerprint == ids.fingerprint
  np.testing.assert_array_equal(loaded.learned, ids.codes[:, :3])


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


TEMPLATE = SemanticIdsConfig().text_template


def test_item_text_leaves_out_what_is_not_known():
  full = Item("1", "B0", "Soap", "Acme", ("Beauty > Bath", "Gifts"))
  assert embeddings.item_text(full, TEMPLATE) == "Title: Soap; Brand: Acme; Categories: Beauty > Bath, Gifts"
  assert embeddings.item_text(Item("1", title="Unknown", categories=("A > B",)), TEMPLATE) == "Categories: A > B"
  assert embeddings.item_text(Item("1"), TEMPLATE) == ""


def test_text_template_decides_what_is_embedded():
  item = Item("1", "B0", "Soap {x}", "Acme")
  assert embeddings.item_text(item, "{title} by {brand}; for sale; {categories}") == "Soap {x} by Acme; for sale"
  for template, sentence in {
    "{titel}": "unknown field {titel}: did you mean {title}",
    "{title.__class__}": "unknown field",
    "{}": "unknown field {}",
    "title": "names no field",
    "{title": "cannot be read",
    "{title}; {price:.2f}": "cannot be read .*: write fields in braces",
    "{title!z}": "cannot be read .*: write fields in braces",
    "{title:{brand.x}}": "cannot be read .*: write fields in braces",
  }.items():
    with pytest.raises(InputError, match=sentence):
      embeddings.check_template(template)
  embeddings.check_template("{title:>9}, {price!s} by {brand}")


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_embeddings_of_any_float_type_are_mapped(tmp_path, kind):
  np.save(tmp_path / "e.npy", np.array([[1, 2], [3, 4]], kind))
  loaded = item_vectors.load_embeddings(tmp_path / "e.npy", 2)
  assert isinstance(loaded, np.memmap) and loaded.dtype == kind and loaded.tolist() == [[1, 2], [3, 4]]
  assert item_vectors.fingerprint(loaded) == item_vectors.fingerprint(np.array([[1, 2], [3, 4]], np.float32))


def test_named_rows_are_put_in_the_order_of_the_items(tmp_path):
  vectors = np.arange(8.0).reshape(4, 2) + 1
  np.savez(tmp_path / "e.npz", embeddings=vectors, ids=np.array(["c", "x", "a", "b"]))
  loaded = item_vectors.load_embeddings(tmp_path / "e.npz", 3, ["a", "b", "c"])
  np.testing.assert_array_equal(loaded, vectors[[2, 3, 0]])
  np.savez(tmp_path / "e.npz", embeddings=vectors, ids=np.array([4, 1, 3, 2]))
  loaded = item_vectors.load_embeddings(tmp_path / "e.npz", 4, ["1", "2", "3", "4"])
  np.testing.assert_array_equal(loaded, vectors[[1, 3, 2, 0]])
  np.savez(tmp_path / "e.npz", embeddings=vectors)
  np.testing.assert_array_equal(item_vectors.load_embeddings(tmp_path / "e.npz", 4, list("abcd")), vectors)


@pytest.mark.parametrize(
  ("ids", "sentence"),
  [
    ([1, 2, 2, 3], "names 1 ids more than once"),
    ([1, 2, 3, 5], r"no row for 1 of the 4 items, the first of them item '4' \(its own ids look like '1'\)"),
    ([1, 2, 3], r"ids of shape \(3,\) for 4 rows"),
  ],
)
def test_ids_that_do_not_fit_are_refused(tmp_path, ids, sentence):
  np.savez(tmp_path / "e.npz", embeddings=np.ones((4, 2)), ids=np.array(ids))
  with pytest.raises(InputError, match=sentence):
    item_vectors.load_embeddings(tmp_path / "e.npz", 4, ["1", "2", "3", "4"])


@pytest.mark.parametrize(
  ("array", "sentence"),
  [
    (np.ones((3, 2)), r"e.npy has 3 rows, expected 4"),
    (np.ones(4), r"shape \(4,\): expected floats of shape \(4, features\)"),
    (np.ones((4, 2), int), r"type int64 .*expected floats"),
    (np.array([[1, 2], [1, 2], [np.nan, 1], [1, 1]]), r"NaN or infinity in row 2 \(item 'c'; 1 such rows\)"),
    (np.array([[1, 2], [1, np.inf], [np.nan, 1], [1, 1]]), r"NaN or infinity in row 1 \(item 'b'; 2 such rows\)"),
    (np.array([[1, 2], [1, 2], [1, 1], [0, 0]]) * 1.0, r"only zeros in row 3"),
  ],
)
def test_unusable_embeddings_are_refused(tmp_path, array, sentence):
  np.save(tmp_path / "e.npy", array)
  with pytest.raises(InputError, match=sentence):
    item_vectors.load_embeddings(tmp_path / "e.npy", 4, list("abcd"))


def test_torn_embeddings_are_refused(tmp_path):
  np.save(tmp_path / "e.npy", np.ones((4, 2)))
  (tmp_path / "e.npy").write_bytes((tmp_path / "e.npy").read_bytes()[:-8])
  with pytest.raises(InputError, match="e.npy cannot be read as item embeddings"):
    item_vectors.load_embeddings(tmp_path / "e.npy", 4)


def test_tfidf_puts_like_texts_together():
  texts = ["red lip stick", "dark red lip stick", "shampoo for dry hair", "hair shampoo", ""]
  vectors, _ = embeddings.tfidf_svd(texts, 2, seed=0)
  assert vectors.dtype == np.float32 and vectors.shape == (5, 2) and np.isfinite(vectors).all()
  alike = vectors @ vectors.T
  assert alike[0, 1] > 0.8 and alike[2, 3] > 0.8 and alike[0, 2] < 0.3
  np.testing.assert_array_equal(vectors, embeddings.tfidf_svd(texts, 2, seed=0)[0])
  with pytest.raises(InputError, match="holds no words"):
    embeddings.tfidf_svd(["", ""], 3, seed=0)


@pytest.mark.parametrize("items", [1, 2, 40, 1500])  # above 1,000 items, words of a single item are left out
def test_the_space_of_texts_is_kept_to_the_last_bit(tmp_path, items):
  rng = np.random.default_rng(items)
  texts = [" ".join(rng.choice([f"Wörd{k}" for k in range(900)], rng.integers(1, 9))) for _ in range(items)]
  texts[-1] += " end"
  vectors, space = embeddings.tfidf_svd(texts, 16, seed=0)
  space.save(tmp_path / "text.npz")
  again = embeddings.TextSpace.load(tmp_path / "text.npz")
  new = ["wörd1 wörd2 and news", "", "nothing known"]
  found = again.embed([*new, *texts])
  np.testing.assert_array_equal(found[len(new) :], vectors)
  np.testing.assert_array_equal(found[: len(new)], again.embed(new))
  np.testing.assert_array_equal(again.embed(texts[:1]), vectors[:1])
  assert again.embed([]).shape == (0, vectors.shape[1]) and found.dtype == np.float32


@pytest.mark.parametrize("texts", [["title a", "title b", "title"], ["soap", "x", ""], ["茶x", "茶", "x"]])
def test_texts_with_a_single_word_between_them_are_all_alike(texts):
  vectors, space = embeddings.tfidf_svd(texts, 4, seed=0)
  assert vectors.tolist() == [[1.0]] * 3 and len(space.words) == 1
  assert space.embed(["any", texts[0]]).tolist() == [[1.0]] * 2


@pytest.mark.parametrize(
  "changes", [{"words": "a\na"}, {"words": "a"}, {"idf": np.array([1, 2])}, {"mean": np.array([np.nan])}, {"mean": 1.0}]
)
def test_a_space_of_texts_that_is_damaged_is_refused(tmp_path, changes):
  whole = {"words": "a\nb", "idf": np.ones(2), "components": np.ones((1, 2)), "mean": np.ones(1)}
  np.savez(tmp_path / "text.npz", **whole)
  embeddings.TextSpace.load(tmp_path / "text.npz")
  np.savez(tmp_path / "text.npz", **{**whole, **changes})
  with pytest.raises(InputError, match=r"text.npz cannot be read as the words of a catalogue \(ValueError: "):
    embeddings.TextSpace.load(tmp_path / "text.npz")


TEXTS = ["red lip stick", "dark red lip stick", "shampoo for dry hair", "hair shampoo"]


def test_missing_sentence_transformers_are_asked_for(monkeypatch):
  monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # as if not installed
  with pytest.raises(InputError, match=r"needs the package sentence-transformers.*rastp_jax\[text\]"):
    embeddings.sentence_transformer(TEXTS, "any")


def test_sentence_transformers_are_asked_for_unit_vectors(monkeypatch):
  class Fake:
    def __init__(self, model):
      if model != "known":
        raise OSError(f"{model} is not a local folder\nand much more")

    def encode(self, texts, *, convert_to_numpy, normalize_embeddings):
      assert convert_to_numpy and normalize_embeddings
      return np.array([[len(text), 1.0] for text in texts])

  monkeypatch.setitem(sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=Fake))
  found = embeddings.sentence_transformer(TEXTS, "known")
  assert found.dtype == np.float32 and found[:, 0].tolist() == [len(text) for text in TEXTS]
  with pytest.raises(InputError, match=r"'unknown' cannot be loaded \(unknown is not a local folder\)"):
    embeddings.sentence_transformer(TEXTS, "unknown")


def test_missing_model2vec_is_asked_for(monkeypatch):
  monkeypatch.setitem(sys.modules, "model2vec", None)  # as if not installed
  with pytest.raises(InputError, match=r"needs the package model2vec.*rastp_jax\[light-text\]"):
    embeddings.model2vec(TEXTS, "any")


def test_a_real_static_model_from_a_directory(tmp_path, monkeypatch):
  """Alike texts get alike vectors, one of unknown words the mean direction; other directories are refused."""
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  words = ["[UNK]", "[PAD]", *sorted({word for text in TEXTS for word in text.split()})]
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(dict(zip(words, range(99), strict=False)), "[UNK]"))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  model2vec.StaticModel(np.eye(len(words)), tokenizer).save_pretrained(str(tmp_path / "static"))
  vectors = embeddings.model2vec([*TEXTS, "unheard of"], str(tmp_path / "static"))
  assert vectors.shape == (5, len(words)) and vectors.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
  alike = vectors @ vectors.T
  assert alike[0, 1] > 0.8 and alike[2, 3] > 0.6 and alike[0, 2] < 0.1
  shares = [[text.split().count(word) / len(text.split()) for word in words] for text in TEXTS]
  wanted = np.sum(shares, axis=0)
  np.testing.assert_allclose(vectors[4], wanted / np.linalg.norm(wanted), atol=1e-5)
  with pytest.raises(InputError, match="knows no word of the 2 items' text"):
    embeddings.model2vec(["unheard", "of"], str(tmp_path / "static"))
  with pytest.raises(InputError, match="nothing_here' cannot be loaded"):
    embeddings.model2vec(TEXTS, str(tmp_path / "nothing_here"))


def test_a_real_sentence_transformer_from_a_directory(tmp_path, monkeypatch):
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # read at import: what is not in a directory is not looked for elsewhere
  pytest.importorskip("sentence_transformers")
  transformers = pytest.importorskip("transformers")
  words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text in TEXTS for word in text.split()})]
  (tmp_path / "vocab.txt").write_text("\n".join(words))
  tokenizer = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"))
  shape = transformers.BertConfig(
    vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
  )
  for part in (transformers.BertModel(shape), tokenizer):
    part.save_pretrained(tmp_path / "bert")
  vectors = embeddings.sentence_transformer(TEXTS, str(tmp_path / "bert"))  # mean pooling of a plain encoder
  assert vectors.shape == (4, 16) and vectors.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
  with pytest.raises(InputError, match="cannot be loaded"):
    embeddings.sentence_transformer(TEXTS, str(tmp_path / "nothing_here"))
