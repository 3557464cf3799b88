"""Whatever lies in a file: every reader gives a valid result or raises `InputError` with one sentence, nothing else.

Hypothesis draws the damage, from fixed seeds: mutations of valid files, JSON values in the place of others, and bytes.
`RASTP_JAX_FUZZ=20` draws twenty times as many cases.
"""

import contextlib
import csv
import dataclasses
import gzip
import io
import json
import os
import pathlib
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import safetensors.numpy
from hypothesis import strategies as st

from rastp_jax import config as config_lib
from rastp_jax.config import Config, DataConfig, SemanticIdsConfig
from rastp_jax.data import preparation, prepared, vectors
from rastp_jax.data.sources import csv_files, detect
from rastp_jax.data.vectors import Order
from rastp_jax.errors import InputError
from rastp_jax.evaluation import results
from rastp_jax.semantic_ids import codes, import_codes
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.semantic_ids.embeddings import TextSpace
from rastp_jax.semantic_ids.quantizers import registry
from rastp_jax.serving import recommendation_files
from rastp_jax.training import checkpoint, import_torch_weights
from rastp_jax.training.plan import SavedProgress
from rastp_jax.training.workdir import Workdir
from tests.helpers.codes import items_of
from tests.helpers.results import make_result

fuzz = hypothesis.settings(
  derandomize=True,
  database=None,
  deadline=None,
  max_examples=60 * int(os.environ.get("RASTP_JAX_FUZZ", "1")),
  phases=[hypothesis.Phase.generate],
  suppress_health_check=list(hypothesis.HealthCheck),
)


# What may be damaged: valid files, and what reads them


@dataclasses.dataclass(frozen=True)
class Reader:
  """Valid files of one directory, by name, and a function that reads all that is in them."""

  read: Callable[[pathlib.Path], Any]
  files: dict[str, bytes]


def lines(*rows: Any) -> bytes:
  return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows).encode()


def npy(array) -> bytes:
  buffer = io.BytesIO()
  np.save(buffer, array)
  return buffer.getvalue()


def npz(**arrays) -> bytes:
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  return buffer.getvalue()


def parquet(**columns) -> bytes:
  sink = pa.BufferOutputStream()
  pa.parquet.write_table(pa.table(columns), sink, compression="none")
  return sink.getvalue().to_pybytes()


def source(**changes) -> Callable[[pathlib.Path], Any]:
  """Reads a directory of raw files, as `prepare` does before it writes anything."""

  def read(root: pathlib.Path):
    config = DataConfig(dataset="mine", data_dir=str(root / "data"), k_core=1, **changes)
    found = detect.open_source(config, str(root))
    found.fingerprint()
    raw = found.read()
    assert len(raw.offsets) == len(raw.user_ids) + 1 and raw.offsets[-1] == len(raw.items)
    assert not len(raw.items) or 0 <= raw.items.min() <= raw.items.max() < raw.num_items
    for text in [*raw.user_ids.to_pylist(), *(part for item in raw.catalogue for part in strings(item))]:
      text.encode()
    found.embeddings(raw.num_items)

  return read


def strings(item):
  return [item.item_id, item.asin, item.title, item.brand, *item.categories, *item.extra.values()]


PAIRS = [(user, item, 10 * user + item) for user in range(3) for item in range(1, 5)]
ROWS = [{"user": f"u{user}", "item": f"i{item}", "timestamp": time} for user, item, time in PAIRS]
ITEMS = [{"item": f"i{k}", "title": f"Title {k}", "brand": "B", "categories": [["A", "B"]]} for k in range(1, 5)]
REVIEWS = [{"reviewerID": f"A{user}", "asin": f"B{item}", "unixReviewTime": time} for user, item, time in PAIRS]
NESTED = [{"session": u, "events": [{"aid": i, "ts": i} for i in range(1, 5)]} for u in range(3)]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}

RAW = {
  "CSV": ({"interactions.csv": lines("user,item,timestamp", *(",".join(map(str, row.values())) for row in ROWS))}, {}),
  "CSV, quoted": (
    {"interactions.csv": lines("user\ttimestamp\titem", *(f'"{r["user"]}"\t{r["timestamp"]}\t"i\\""' for r in ROWS))},
    {},
  ),
  "CSV of dates, items": (
    {
      "interactions.tsv.gz": gzip.compress(
        lines("user\titem\ttimestamp", *(f"u\ti{k}\t2014-07-2{k}" for k in range(4)))
      ),
      "items.csv": lines("item,title", "i1,One", 'i2,"Two, 2"'),
    },
    {},
  ),
  "JSONL": ({"interactions.jsonl": lines(*ROWS), "items.jsonl": lines(*ITEMS)}, {"keep_all_items": True}),
  "nested JSONL": ({"interactions.jsonl": lines(*NESTED)}, {}),
  "Parquet": (
    {
      "interactions.parquet": parquet(**COLUMNS),
      "items.parquet": parquet(**{name: [row[name] for row in ITEMS] for name in ITEMS[0]}),
    },
    {},
  ),
  "nested Parquet": (
    {"interactions.parquet": parquet(**{name: [row[name] for row in NESTED] for name in NESTED[0]})},
    {},
  ),
  "sequences": (
    {
      "sequences.txt": lines("a 1 2 3", "b 3 1 2 2"),
      "items.jsonl": lines(*({"item_id": k, "title": "T", "categories": [["A", "B"]]} for k in (1, 2, 3))),
      "embeddings.npy": npy(np.ones((3, 2), np.float32)),
    },
    {},
  ),
  "Amazon 2014": (
    {
      "reviews_Soap_5.json": lines(*REVIEWS),
      "meta_Soap.json.gz": gzip.compress(
        lines(*(repr({"asin": f"B{k}", "title": "It's", "brand": "x"}) for k in (1, 2)))
      ),
    },
    {},
  ),
  "Amazon 2018": (
    {
      "Soap_5.json": lines(*REVIEWS),
      "meta_Soap.json": lines({"asin": "B1", "title": "One &amp; 1", "category": ["A", "B"], "price": "$1"}),
    },
    {},
  ),
  "Amazon 2023": (
    {
      "Soap.jsonl": lines(*({"user_id": f"A{u}", "parent_asin": f"B{i}", "timestamp": 1000 * t} for u, i, t in PAIRS)),
      "meta_Soap.jsonl": lines({"parent_asin": "B1", "title": "One", "features": ["a"], "categories": ["A", "B"]}),
    },
    {},
  ),
  "MovieLens 100K": (
    {
      "u.data": lines(*(f"{u + 1}\t{i}\t5\t{t}" for u, i, t in PAIRS)),
      "u.item": lines(*(f"{k}|Film {k} (1995)|01-Jan-1995||http://x|" + "|".join("01" * 9 + "0") for k in range(1, 5))),
    },
    {},
  ),
  "MovieLens, CSV": (
    {
      "ratings.csv": lines("userId,movieId,rating,timestamp", *(f"{u},{i},4.0,{t}" for u, i, t in PAIRS)),
      "movies.csv": lines("movieId,title,genres", '1,"One, The",Action|Drama', "2,Two,(no genres listed)"),
    },
    {},
  ),
  "RecBole": (
    {
      "x.inter": lines("user_id:token\titem_id:token\ttimestamp:float", *(f"{u}\t{i}\t{t}.0" for u, i, t in PAIRS)),
      "x.item": lines("item_id:token\ttitle:token_seq", "1\tOne", "2\tTwo"),
    },
    {},
  ),
}

IDS = [f"i{row}" for row in range(6)]
LEARNED = np.arange(12).reshape(6, 2) % 4


def load_vectors(path: pathlib.Path) -> None:
  vectors.has_ids(path)
  assert np.isfinite(vectors.load_embeddings(path, 6, IDS, Order(None, 6))).all()
  assert vectors.num_rows(path) >= 6


def load_codes(path: pathlib.Path) -> None:
  check_codes(codes.load(path, dataset="d", num_items=6))


def read_codes(path: pathlib.Path) -> None:
  provenance = {"dataset": "d", "dataset_fingerprint": "f"}
  check_codes(import_codes.read(path, IDS, Order(None, 6), SemanticIdsConfig(), provenance, []))


def check_codes(ids: SemanticIds) -> None:
  np.testing.assert_array_equal(items_of(ids, ids.codes), np.arange(6))
  assert ids.learned.dtype == ids.codes.dtype == np.int32 and (ids.learned >= 0).all()


def codes_file() -> bytes:
  ids = SemanticIds.from_learned(LEARNED, 4, {"dataset": "d", "dataset_fingerprint": "f", "method": "rqvae"})
  arrays = {"codes": ids.codes, "widths": np.asarray(ids.widths), "provenance": json.dumps(dict(ids.provenance))}
  return npz(**arrays, learned=LEARNED)


CODEBOOKS = npz(method="residual_kmeans", centres=np.zeros((2, 4, 3), np.float32), normalize_residuals=False)
SPACE = npz(words="soap\nrose soap", idf=np.ones(2), components=np.ones((1, 2)), mean=np.ones(1))
EVALUATION = make_result("run", [0, 3, 10, 1])
WEIGHTS = {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)}
PROGRESS = {**SavedProgress(step=3).to_json(), "fingerprints": {"dataset": "f"}, "checksums": {"params/a": 1}}


def read_metrics(root: pathlib.Path) -> None:
  results.read_metrics(root / "eval_test.json", "run")
  results.load(root / "eval_test.json", "run")


def read_progress(root: pathlib.Path) -> None:
  """What `Checkpoints` makes of a checkpoint's progress; it reads the file and takes all that goes wrong for damage."""
  try:
    values = json.loads((root / "progress.json").read_bytes())
    found = checkpoint.parse_metadata(values, 3)
  except Exception:
    return
  assert found.progress.step >= 0 and all(isinstance(value, str) for value in found.fingerprints.values())


READERS = {name: Reader(source(**changes), files) for name, (files, changes) in RAW.items()} | {
  "vectors, .npy": Reader(lambda root: load_vectors(root / "v.npy"), {"v.npy": npy(np.ones((6, 3), np.float32))}),
  "vectors, .npz": Reader(
    lambda root: load_vectors(root / "v.npz"), {"v.npz": npz(embeddings=np.ones((6, 3)), ids=np.array(IDS[::-1]))}
  ),
  "codes": Reader(lambda root: load_codes(root / "c.npz"), {"c.npz": codes_file()}),
  "own codes, .npy": Reader(lambda root: read_codes(root / "c.npy"), {"c.npy": npy(LEARNED)}),
  "own codes, .json": Reader(
    lambda root: read_codes(root / "c.json"),
    {
      "c.json": json.dumps({name: [f"<a_{a}>", f"<b_{b}>"] for name, (a, b) in zip(IDS, LEARNED, strict=True)}).encode()
    },
  ),
  "space of texts": Reader(lambda root: TextSpace.load(root / "t.npz"), {"t.npz": SPACE}),
  "codebooks": Reader(lambda root: registry.load(root / "b.npz"), {"b.npz": CODEBOOKS}),
  "weights, .npz": Reader(lambda root: import_torch_weights.read_weights(root / "w.npz"), {"w.npz": npz(**WEIGHTS)}),
  "weights, .safetensors": Reader(
    lambda root: import_torch_weights.read_weights(root / "w.safetensors"),
    {"w.safetensors": safetensors.numpy.save(WEIGHTS)},
  ),
  "config": Reader(
    lambda root: Workdir(root).read_config(), {"config.json": json.dumps(config_lib.to_dict(Config())).encode()}
  ),
  "summary": Reader(
    lambda root: Workdir(root).read_summary(), {"summary.json": b'{"steps": 3, "seconds": 1.5, "best": {"best": 0.1}}'}
  ),
  "log": Reader(
    lambda root: Workdir(root).read_log(), {"metrics.jsonl": lines(*({"step": k, "loss": 1.0 / k} for k in (1, 2, 3)))}
  ),
  "evaluation": Reader(
    read_metrics,
    {
      "eval_test.json": json.dumps({**EVALUATION.metrics}).encode(),
      "eval_test.npz": npz(ranks=EVALUATION.ranks),
    },
  ),
  "progress": Reader(read_progress, {"progress.json": json.dumps(PROGRESS).encode()}),
  "histories": Reader(
    lambda root: recommendation_files.count_histories(root / "h.jsonl"),
    {"h.jsonl": lines({"user": 1, "history": ["a", 2]}, {"user": "b", "history": []})},
  ),
  "histories, gzipped": Reader(
    lambda root: recommendation_files.count_histories(root / "h.jsonl.gz"),
    {"h.jsonl.gz": gzip.compress(lines({"user": 1, "history": ["a", 2]}))},
  ),
}


# What becomes of them

TEXTS = st.one_of(
  st.sampled_from(["", "1_0", "-1", "1e999", "NaN", "\x00", "\ud800", "../x", "9" * 5000, "i1", "2014-07-23", "١"]),
  st.text(max_size=8),
)
NUMBERS = st.one_of(
  st.sampled_from([0, -1, 2**31, 2**63, 2**70, 10**400, 1e308, -0.5, float("nan"), float("inf")]), st.integers(-3, 9)
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
  LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
# JSON that no value of Python's is written as.
STRANGE = st.sampled_from(
  [
    "[" * 100_000,
    '{"a":' * 3000 + "1" + "}" * 3000,
    '{"a": 1, "a": 2}',
    "9" * 5000,
    "1e999",
    '"\\ud800"',
    "\ufeff1",
    "'a'",
  ]
)


@st.composite
def replaced(draw, text: str) -> str:
  """JSON in which a value, a name, or all of it is another."""
  new = draw(st.one_of(VALUES.map(json.dumps), STRANGE))
  value = json.loads(text)
  places: list[tuple[Any, Any]] = []
  inner = [value]
  while inner:
    one = inner.pop()
    found = list(one.items()) if isinstance(one, dict) else list(enumerate(one)) if isinstance(one, list) else []
    places += [(one, key) for key, _ in found]
    inner += [below for _, below in found]
  if not places or draw(st.integers(0, 9)) == 0:
    return new
  where, key = draw(st.sampled_from(places))
  kind = draw(st.sampled_from(["value", "value", "gone", "name"]))
  if kind == "value" or isinstance(where, list):
    where[key] = "@@"
  elif kind == "gone":
    del where[key]
  else:
    where[draw(TEXTS)] = where.pop(key)
  return json.dumps(value).replace('"@@"', new)


@st.composite
def damaged(draw, content: bytes) -> bytes:
  """Bytes that are flipped, lost, put in, cut off, doubled or moved; or other ones altogether."""
  content = bytearray(content)
  for _ in range(draw(st.integers(1, 3))):
    first, second = sorted(draw(st.integers(0, len(content))) for _ in range(2))
    kind = draw(st.sampled_from(["flip", "flip", "lose", "put in", "cut off", "double", "swap", "all"]))
    if kind == "flip" and content:
      content[min(first, len(content) - 1)] ^= draw(st.integers(1, 255))
    elif kind == "lose":
      del content[first : min(second, first + 16)]
    elif kind == "put in":
      content[first:first] = draw(
        st.binary(max_size=6) | st.sampled_from([b"\x00", b"\xff", b'"', b"\n", b",", b"{", b"1_0"])
      )
    elif kind == "cut off":
      del content[second:]
    elif kind == "double":
      content[second:second] = content[first:second]
    elif kind == "swap":
      content = content[second:] + content[first:second] + content[:first]
    elif kind == "all":
      content = bytearray(draw(st.binary(max_size=60)))
  return bytes(content)


@st.composite
def with_damage(draw, files: dict[str, bytes]) -> dict[str, bytes]:
  """The files, one of them damaged: as JSON where it is JSON, unpacked where it is gzipped, or as it is."""
  name = draw(st.sampled_from(sorted(files)))
  content = files[name]
  packed = name.endswith(".gz") and draw(st.booleans())
  content = gzip.decompress(content) if packed else content
  if name.removesuffix(".gz").endswith((".json", ".jsonl")) and content[:1] == b"{" and draw(st.integers(0, 2)):
    rows = content.decode().splitlines() if ".jsonl" in name or b"\n" in content else [content.decode()]
    place = draw(st.integers(0, len(rows) - 1))
    with contextlib.suppress(ValueError):  # Python's literals are not JSON
      rows[place] = draw(replaced(rows[place]))
    content = "\n".join(rows).encode(errors="surrogatepass")
  else:
    content = draw(damaged(content))
  return {**files, name: gzip.compress(content, 1) if packed else content}


def check(read: Callable[[], Any]) -> None:
  """Runs a reader: it returns, or says in one sentence what is wrong."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", SyntaxWarning)  # of Python's literals
      read()
  except InputError as error:
    sentence = str(error)
    assert "\n" not in sentence and len(sentence) < 1100 and ": " in sentence, sentence


def write(root: pathlib.Path, files: dict[str, bytes]) -> None:
  shutil.rmtree(root, ignore_errors=True)
  root.mkdir()
  for name, content in files.items():
    (root / name).write_bytes(content)


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(tmp_path, name):
  reader, root = READERS[name], tmp_path / "files"
  write(root, reader.files)
  reader.read(root)  # as they are they can be read

  @fuzz
  @hypothesis.given(with_damage(reader.files))
  def run(files):
    write(root, files)
    check(lambda: reader.read(root))

  run()


CELLS = [
  "fine",
  "a, b",
  'he said "no"',
  '5" pipe',
  "two\nlines",
  "",
  "a;b",
  "a\tb",
  "a\\b",
  'end"',
  '"',
  "end\\",
  "1,2,3",
]


def test_csv_of_any_dialect_is_read_as_it_was_written(tmp_path, monkeypatch):
  root = tmp_path / "raw"
  rows = [{"user": f"u{k % 2}", "item": f"i{k % 5}", "timestamp": k} for k in range(12)]

  @fuzz
  @hypothesis.given(
    st.randoms(use_true_random=False), st.booleans(), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
  )
  def run(random, doubled, quoting):
    # Where nothing is escaped but a backslash, nothing tells that it is.
    cells = random.sample([cell for cell in CELLS if doubled or "\\" not in cell], 3)
    names = random.sample(["user", "item", "timestamp", "review", "note"], 5)
    form = {
      "delimiter": random.choice(",;\t"),
      "quoting": quoting,
      "doublequote": doubled,
      "escapechar": None if doubled else "\\",
      "lineterminator": random.choice(["\n", "\r\n"]),
    }
    log, items = io.StringIO(), io.StringIO()
    writer = csv.DictWriter(log, names, **form)
    writer.writeheader()
    writer.writerows(row | {"review": random.choice(cells), "note": random.choice(cells)} for row in rows)
    titles = {f"i{k}": random.choice(cells) for k in range(5)}
    csv.writer(items, **form).writerows([("item", "title"), *titles.items()])
    write(root, {"interactions.csv": log.getvalue().encode(), "items.csv": items.getvalue().encode()})
    monkeypatch.setattr(csv_files, "_BLOCK", random.choice([64, 300, 1 << 20]))
    raw = detect.open_source(DataConfig(dataset="mine", k_core=1), str(root)).read()
    assert raw.items.tolist() == [0, 2, 4, 1, 3, 0, 1, 3, 0, 2, 4, 1] and raw.user_ids.to_pylist() == ["u0", "u1"]
    assert [item.title for item in raw.catalogue] == list(titles.values())

  run()


@fuzz
@hypothesis.given(VALUES)
def test_settings(values):
  for section in ("train", "data", "reduction", "semantic_ids"):
    check(lambda section=section: config_lib.from_dict({section: values}))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  """A prepared dataset's data_dir and raw_dir."""
  root = tmp_path_factory.mktemp("prepared")
  write(root / "raw", RAW["JSONL"][0])
  preparation.prepare(
    str(root / "data"), "mine", detect.open_source(DataConfig(dataset="mine", k_core=1), str(root / "raw"))
  )
  return root / "data"


def test_prepared_datasets(tmp_path, dataset):
  found = {str(path.relative_to(dataset)): path.read_bytes() for path in sorted(dataset.rglob("*")) if path.is_file()}
  root = tmp_path / "data"
  shutil.copytree(dataset, root)

  def read():
    table = prepared.open_prepared(str(root), "mine")
    table.describe()
    table.histories()
    assert len(table.items) == table.num_items
    assert table.file_rows is None or len(table.file_rows) == table.num_items

  read()

  @fuzz
  @hypothesis.given(with_damage(found))
  def run(files):
    changed = [name for name in files if files[name] != found[name]]
    for name in changed:
      (root / name).write_bytes(files[name])
    check(read)
    for name in changed:
      (root / name).write_bytes(found[name])

  run()
