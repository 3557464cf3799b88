"""The prepare binary, and how binaries answer mistakes: one sentence, exit code 2, nothing changed."""

import dataclasses
import json
import pathlib
import re
import sys

import numpy as np
import pytest

from rastp_jax import config as config_lib
from rastp_jax.config import Config, DataConfig, SemanticIdsConfig
from rastp_jax.data import datasets, tfds_tables
from rastp_jax.data.sources import detect
from rastp_jax.errors import InputError
from rastp_jax.runtime import cli
from rastp_jax.semantic_ids import codes
from rastp_jax.semantic_ids.preparation import prepare
from rastp_jax.training import runs
from tests.helpers.commands import command, started

CONFIG = """
from rastp_jax import config

def get_config():
  values = config.default_config_dict()
  values.data.dataset = "synthetic"
  values.data.data_dir = {data_dir!r}
  values.semantic_ids.codebook_size = 16
  return values
"""


@pytest.fixture
def config(tmp_path):
  return Config(
    data=DataConfig(dataset="synthetic", data_dir=str(tmp_path / "data")),
    semantic_ids=SemanticIdsConfig(codebook_size=16),
  )


@pytest.fixture
def raw(tmp_path, monkeypatch):
  """A raw directory of 8 items that passes for dataset 'toys', with embeddings."""
  monkeypatch.setitem(datasets.DATASETS, "toys", datasets.NamedDataset("for tests", 2, 8, 8))
  root = tmp_path / "raw"
  root.mkdir()
  (root / "sequences.txt").write_text("1 1 2 3 4\n2 5 6 7 8\n")
  lines = [json.dumps({"item_id": k, "title": f"word{k} word{k % 2}"}) for k in range(1, 9)]
  (root / "items.jsonl").write_text("\n".join(lines) + "\n")
  np.save(root / "embeddings.npy", np.random.default_rng(0).normal(size=(8, 4)))
  return root


def with_ids(config, **changes):
  return dataclasses.replace(config, semantic_ids=dataclasses.replace(config.semantic_ids, **changes))


def files_under(root) -> dict[str, bytes]:
  return {str(path): path.read_bytes() for path in pathlib.Path(root).rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["synthetic", "interactions"])
def test_beam_writes_the_files_of_a_single_process(tmp_path, kind, monkeypatch):
  """With k-core, ties and repeats as well; in more than ten shards, which TFDS would count in another order."""
  pytest.importorskip("apache_beam", reason="needs the extra 'beam'")
  monkeypatch.setattr(tfds_tables, "SHARD_ROWS", 40)
  raw_dir = None
  if kind == "interactions":
    raw_dir, rng = str(tmp_path), np.random.default_rng(0)
    table = zip(
      rng.integers(0, 600, 9000), (60 * rng.random(9000) ** 2).astype(int), rng.integers(0, 900, 9000), strict=True
    )
    (tmp_path / "interactions.csv").write_text(
      "user,item,timestamp\n" + "".join(f"u{u},i{i},{t}\n" for u, i, t in table)
    )
  made = []
  for name, options in (("one", None), ("beam", ["runner=DirectRunner"])):
    data = DataConfig(dataset=kind, data_dir=str(tmp_path / name), k_core=10)
    found, _ = detect.prepare_dataset(data, raw_dir, beam_options=options)
    assert found.num_users > 11 * 40
    made.append({path.removeprefix(str(tmp_path / name)): text for path, text in files_under(tmp_path / name).items()})
  assert made[0] == made[1] and len(made[0]) > 20


@pytest.mark.parametrize(
  ("option", "reason"),
  [
    ("runner=Nope", "Unexpected pipeline runner: Nope"),
    ("rnner=DirectRunner", "there is no option rnner"),
    ("direct_num_workers=x", "invalid int value: 'x'"),
  ],
)
def test_beam_options_that_cannot_be_used(tmp_path, option, reason):
  pytest.importorskip("apache_beam", reason="needs the extra 'beam'")
  data = DataConfig(dataset="synthetic", data_dir=str(tmp_path / "data"))
  with pytest.raises(InputError, match=f"--beam_options={option} cannot be used .*{reason}"):
    detect.prepare_dataset(data, beam_options=[option])
  assert not (tmp_path / "data").exists()


def test_beam_that_is_not_installed(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
  with pytest.raises(InputError, match=r"--beam_options needs Apache Beam .*: pip install 'rastp_jax\[beam\]'"):
    detect.prepare_dataset(DataConfig(dataset="synthetic", data_dir=str(tmp_path / "data")), beam_options=[])
  assert not (tmp_path / "data").exists()


def test_synthetic_is_prepared_once_and_then_found(config, capsys):
  """What was made with other settings is refused also by what trains on it; a run that goes on is told."""
  first = prepare(config)
  assert not first.dataset.reused and not first.codes.reused
  assert first.semantic_ids.codes.shape == (240, 4) and not first.codes.metrics["collapsed"]
  assert first.semantic_ids.provenance["dataset_fingerprint"] == first.dataset.fingerprint
  before = files_under(config.data.data_dir)
  second = prepare(config)
  assert second.dataset.reused and second.codes.reused
  assert second.semantic_ids.fingerprint == first.semantic_ids.fingerprint
  assert files_under(config.data.data_dir) == before
  assert "2000 users, 240 items" in second.describe() and f"found {second.codes.path}" in second.describe()
  assert runs.load_data(config)[1].fingerprint == first.semantic_ids.fingerprint
  for name, value, told in (
    ("data.hold_out", 0, "data.hold_out=2, but now data.hold_out=0"),
    ("data.split", "time", "data.split='leave_one_out', but now data.split='time'"),
    ("semantic_ids.levels", 4, "levels=3, but now levels=4"),
    ("semantic_ids.method", "random", "method='residual_kmeans', but now method='random'"),
    ("semantic_ids.collaborative_weight", 0.5, "collaborative_weight=0.0, but now collaborative_weight=0.5"),
    ("semantic_ids.collisions", "reassign", "collisions='extra_level', but now collisions='reassign'"),
  ):
    other = config_lib.with_values(config, [(name, value), *([("data.time_cut", "0.8")] if value == "time" else [])])
    with pytest.raises(InputError, match=re.escape(told)):
      runs.load_data(other)
    runs.load_data(other, begun=True)
    assert re.search(f"WARNING: .*{re.escape(told)}", capsys.readouterr().out)


@pytest.mark.parametrize("change", [{"seed": 1}, {"codebook_size": 8}, {"levels": 2}])
def test_other_settings_are_refused_and_overwrite_nothing(config, change):
  prepare(config)
  before = files_under(config.data.data_dir)
  (name,) = change
  with pytest.raises(InputError, match=rf"synthetic.npz was made with {name}=.*remove the file"):
    prepare(with_ids(config, **change))
  assert files_under(config.data.data_dir) == before


def test_raw_directory_with_and_without_embeddings(config, raw):
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, dataset="toys"))
  first = prepare(with_ids(config, codebook_size=4), str(raw))
  assert first.semantic_ids.num_items == 8
  assert prepare(with_ids(config, codebook_size=4)).codes.reused  # all is there: no raw files needed

  np.save(raw / "embeddings.npy", np.random.default_rng(1).normal(size=(8, 4)))
  with pytest.raises(InputError, match="was made with embeddings_sha256="):
    prepare(with_ids(config, codebook_size=4), str(raw))
  (raw / "embeddings.npy").unlink()
  with pytest.raises(InputError, match="but now embeddings='tfidf_svd of 256 dimensions'"):
    prepare(with_ids(config, codebook_size=4), str(raw))

  first.codes.path.unlink()
  with pytest.raises(InputError, match="give --raw_dir"):
    prepare(with_ids(config, codebook_size=4))
  again = prepare(with_ids(config, codebook_size=4), str(raw))
  assert again.semantic_ids.provenance["embeddings"].startswith("tfidf_svd")


def test_unusable_embeddings_leave_no_codes(config, raw):
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, dataset="toys"))
  np.save(raw / "embeddings.npy", np.zeros((8, 4)))
  with pytest.raises(InputError, match="only zeros in row 0"):
    prepare(config, str(raw))
  assert not list((pathlib.Path(config.data.data_dir) / "semantic_ids").rglob("*.npz"))


def test_own_codes_instead_of_learned_ones(config, tmp_path):
  file = tmp_path / "mine.npy"
  np.save(file, np.stack(np.divmod(np.arange(240), 16), 0))  # levels x items
  made = prepare(config, codes_file=str(file)).codes
  np.testing.assert_array_equal(made.semantic_ids.codes, np.stack(np.divmod(np.arange(240), 16), 1))
  assert made.metrics["shared_prefix"]["pairs"] > 1000  # the histories were read
  assert prepare(config, codes_file=str(file)).codes.reused


def test_missing_config_flag():
  with pytest.raises(InputError, match="--config is missing"):
    cli.load_config(None)


def test_binary_prints_what_it_did(tmp_path):
  file = tmp_path / "synthetic.py"
  file.write_text(CONFIG.format(data_dir=str(tmp_path / "data")))
  code, out, err = started("rastp_jax.prepare", f"--config={file}", "--config.semantic_ids.codebook_size=8")
  assert code == 0, err
  assert "2000 users, 240 items" in out and "entropy" in out
  assert f"wrote {tmp_path / 'data' / 'semantic_ids' / 'synthetic.npz'}" in out
  assert err == ""


MISTAKES = {
  "misspelt": ("--config.reduction.keep_ration=0.5", "did you mean config.reduction.keep_ratio?"),
  "wrong type": ("--config.data.max_items=many", "--config.data.max_items=many cannot be read: expected int."),
  "unknown choice": ("--config.data.dataset=syntetic", "did you mean 'synthetic'?"),
  "unknown flag": ("--raw_dirr=x", "raw_dirr"),
  "no flag": ("beauty", "'beauty' is not a flag: flags are written --name=value."),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_end_in_one_sentence(tmp_path, case):
  file = tmp_path / "synthetic.py"
  file.write_text(CONFIG.format(data_dir=str(tmp_path / "data")))
  argument, sentence = MISTAKES[case]
  assert_refused(command("rastp_jax.prepare", f"--config={file}", argument), sentence)
  assert not (tmp_path / "data").exists()


def test_config_files_that_cannot_be_used(tmp_path):
  (tmp_path / "beauty.py").write_text(
    CONFIG.replace("semantic_ids.codebook_size", "semantic_ids.widht").format(data_dir="x")
  )
  assert_refused(command("rastp_jax.prepare", f"--config={tmp_path}/beuty.py"), f"did you mean {tmp_path}/beauty.py?")
  assert_refused(command("rastp_jax.prepare", f"--config={tmp_path}/beauty.py"), "widht")


def test_the_config_json_of_a_run_is_a_config(tmp_path):
  file = tmp_path / "config.json"
  sections = {"data": {"dataset": "synthetic", "data_dir": str(tmp_path / "data")}, "semantic_ids": {"width": 16}}
  file.write_text(json.dumps(sections))  # with a name of 0.1.0
  arguments = ("rastp_jax.prepare", f"--config={file}")
  code, out, err = command(*arguments, "--config.semantic_ids.levels=2")
  assert code == 0, err
  ids = codes.load(tmp_path / "data" / "semantic_ids" / "synthetic.npz")
  assert ids.widths[:2] == (16, 16) and ids.learned.shape[1] == 2
  for text, sentence in (
    ("{", "config.json cannot be read (Expecting property name"),
    ('{"data": {"max_item": 5}}', "config.json cannot be read (config.data.max_item is not a setting of this program"),
    (None, "config.json cannot be read (No such file or directory): give the config.json of a run, or a Python file"),
  ):
    file.unlink() if text is None else file.write_text(text)
    assert_refused(command(*arguments), sentence)
  assert_refused(
    command(*arguments[:-1], f"--config={file}:cpu"), f"{file} takes no variants: leave out :cpu, and give"
  )


def assert_refused(done: tuple[int, str, str], sentence: str):
  code, out, err = done
  assert code == 2
  assert sentence in err and err.startswith("error: ")
  assert err.count("\n") == 1 and out == ""
