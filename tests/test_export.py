"""An export answers like the live model, with nothing installed but jax and what jax itself needs."""

import copy
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx
from jax import export
from safetensors.numpy import load_file

from rastp_jax import config as config_lib
from rastp_jax.errors import InputError
from rastp_jax.serving import artifact, exported_model, model_card
from rastp_jax.serving.recommender import Recommender
from tests.helpers.saved import make_saved

HISTORIES = [["1", "B001", "3"], [str(row) for row in range(10, 40)], ["gone"], [5, "gone", 7], ["8"] * 6]


@pytest.fixture(scope="module")
def live():
  return make_saved()


@pytest.fixture(scope="module")
def exported(live, tmp_path_factory):
  directory = tmp_path_factory.mktemp("export") / "model"
  artifact.write(directory, *live, metrics=None)
  return directory


@pytest.fixture(scope="module")
def jax_alone(tmp_path_factory):
  """A directory of packages that holds jax, numpy and what `pip install jax` brings along, and nothing else."""
  place = tmp_path_factory.mktemp("packages")
  installed = pathlib.Path(np.__file__).parent.parent
  for name in ("jax", "jaxlib", "numpy", "scipy", "ml_dtypes", "opt_einsum"):
    for package in (name, f"{name}.libs"):
      if (installed / package).exists():
        (place / package).symlink_to(installed / package)
  return place


def test_answers_equal_the_live_model_where_only_jax_is_installed(live, exported, jax_alone):
  program = f"""
import sys, json
sys.path[:0] = [{str(exported)!r}, {str(jax_alone)!r}]
from load import ExportedModel
answers = ExportedModel({str(exported)!r}).recommend({HISTORIES!r}, k=7)
print(json.dumps([[[item["item_id"], item["asin"], item["title"], score] for item, score in a] for a in answers]))
for name in ("flax", "rastp_jax", "safetensors", "orbax", "absl"):
  assert name not in sys.modules
import flatbuffers
assert flatbuffers.__file__.startswith({str(exported)!r})
"""
  # -I and -S: no user, environment or site packages.
  done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  theirs = json.loads(done.stdout)
  with pytest.warns(UserWarning, match="2 items in 2 of 5 histories"):
    ours = Recommender(*live).recommend(HISTORIES, k=7)
  assert [len(answer) for answer in theirs] == [7, 7, 0, 7, 7]
  for answer, live in zip(theirs, ours, strict=True):
    assert [item[:3] for item in answer] == [[item.item_id, item.asin, item.title] for item in live]
    np.testing.assert_allclose([item[3] for item in answer], [item.score for item in live], rtol=1e-5)


def test_programs_are_for_every_platform_and_any_number_of_users(exported):
  info = json.loads((exported / "export.json").read_text())
  assert info["programs"] == {"4": "decode_4_items.jax", "12": "decode_12_items.jax"}
  for items, name in info["programs"].items():
    program = export.deserialize(bytearray((exported / name).read_bytes()))
    assert set(program.platforms) == {"cpu", "cuda", "tpu"} and program.nr_devices == 1
    history = program.in_avals[-1]
    assert str(history.shape[0]) == "users" and history.shape[1:] == (int(items),)


def test_weights_are_those_of_the_model(live, exported):
  weights = load_file(exported / "model.safetensors")
  plain = exported_model.read_safetensors(exported / "model.safetensors")
  params = nnx.to_flat_state(nnx.state(live[0].model, nnx.Param))
  assert len(weights) == len(plain) == len(params)
  for path, param in params:
    name = ".".join(map(str, path))
    np.testing.assert_array_equal(weights[name], param[...])
    np.testing.assert_array_equal(plain[name], param[...])


def test_k_beyond_the_beams_is_refused(exported):
  with pytest.raises(ValueError, match="k=11 is more than this export's 10 beams"):
    exported_model.ExportedModel(exported).recommend([["1"]], k=11)


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    ([], "no item is given: give item ids or ASINs"),
    (["nix"], "'nix' is not in the catalogue"),
    (["1", "ni\x1bx", "nada"], r"'ni\x1bx' and 1 more are not in the catalogue"),
    ([b"\xff"], r"'\udcff' is not in the catalogue"),
  ],
)
def test_the_loader_says_what_is_wrong_and_ends_with_2(exported, arguments, sentence):
  done = subprocess.run([sys.executable, exported / "load.py", *arguments], capture_output=True, text=True, timeout=300)
  assert done.returncode == 2 and not done.stdout
  assert done.stderr.startswith("error: ") and sentence in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_loader_answers_with_fewer_than_ten_beams(exported, monkeypatch, capsys):
  model = exported_model.ExportedModel(exported)
  model.info = model.info | {"beam_width": 4}
  monkeypatch.setattr(exported_model, "ExportedModel", lambda _: model)
  assert exported_model.main(["1", "3"]) == 0
  assert len(capsys.readouterr().out.splitlines()) == 4


def test_the_loader_escapes_what_does_not_show(live, tmp_path):
  saved, items = live
  title = "\x1b[2J\u202eü\nline\ud800"
  hostile = [dataclasses.replace(item, title=title) for item in items]
  artifact.write(tmp_path / "model", saved, hostile, metrics=None)
  environment = {**os.environ, "PYTHONIOENCODING": "ascii"}  # a terminal without umlauts
  done = subprocess.run(
    [sys.executable, tmp_path / "model/load.py", "1"], capture_output=True, timeout=300, env=environment
  )
  assert done.returncode == 0, done.stderr
  lines = done.stdout.decode().splitlines()
  assert len(lines) == 10 and all(line.endswith(r"\x1b[2J\u202e\xfc\nline\ud800") for line in lines)


@pytest.mark.parametrize(
  ("histories", "k"),
  [
    *((histories, 5) for histories in (["12"], "12", [b"12"], [{"1": 2}], [5], [[True]], [[10**5000]], [[1.5]])),
    *((histories, 5) for histories in ([[None]], [["1"], [["2"]]], [[b"1"]], [[float("nan")]])),
    *(([["1"]], k) for k in (0, -1, "5", 2.0, True, None)),
  ],
)
def test_arguments_are_refused_as_the_live_model_refuses_them(live, exported, histories, k):
  with pytest.raises(InputError) as ours:
    Recommender(*live).recommend(histories, k)
  with pytest.raises(ValueError, match=r"is not a history: expected|k=.* cannot be used: give") as theirs:
    exported_model.ExportedModel(exported).recommend(histories, k)
  assert str(theirs.value) == str(ours.value)


def test_ids_are_text_or_whole_numbers_of_any_iterable(exported):
  model = exported_model.ExportedModel(exported)
  plain, *others = model.recommend([["12", "3"], [12.0, 3], (12, "3"), iter([" 12", "3.0"])], k=3)
  assert len(plain) == 3 and all(other == plain for other in others)


def test_an_export_whose_files_are_not_those_that_were_exported_is_refused(exported, tmp_path):
  shutil.copytree(exported, tmp_path / "model")
  names = exported_model.check_files(tmp_path / "model")
  unchecked = {"SHA256SUMS", "load.py", "flatbuffers", "README.md", "__pycache__"}
  assert names == {path.name for path in exported.iterdir()} - unchecked
  for name in sorted(names):
    content = (exported / name).read_bytes()
    for damage in (content[:-1], content[:7] + bytes([content[7] ^ 1]) + content[8:], None):
      (tmp_path / "model" / name).unlink()
      if damage is not None:
        (tmp_path / "model" / name).write_bytes(damage)
      with pytest.raises(ValueError, match=f"{name} is not the file that was exported: copy the export again"):
        exported_model.ExportedModel(tmp_path / "model")
      (tmp_path / "model" / name).write_bytes(content)
  sums = tmp_path / "model" / "SHA256SUMS"
  for damage, sentence in (("x", "cannot be read"), ("", "lacks export.json")):
    sums.write_text(damage)
    with pytest.raises(ValueError, match=f"SHA256SUMS {sentence}"):
      exported_model.ExportedModel(tmp_path / "model")
  sums.unlink()
  done = subprocess.run([sys.executable, tmp_path / "model/load.py", "1"], capture_output=True, text=True, timeout=300)
  assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


def test_model_card_shows_the_metrics_of_this_checkpoint_only(live, exported):
  saved, _ = live
  info = {**json.loads((exported / "export.json").read_text()), "config": config_lib.to_dict(saved.config)}
  metrics = {"users": 2000, "beam_width": 10, "invalid_beams": 0, "step": 1, "config": config_lib.to_dict(saved.config)}
  metrics |= {"recall@5": 0.125, "recall@10": 0.25, "ndcg@5": 0.0625, "ndcg@10": 0.03125}
  card = model_card.render(info, saved, metrics)
  assert "2,000 users, all items ranked, 10 beams, unconstrained" in card
  assert "| recall@5 | recall@10 | ndcg@5 | ndcg@10 |" in card and "| 0.1250 | 0.2500 | 0.0625 | 0.0312 |" in card
  assert saved.histories.fingerprint in card and saved.semantic_ids.fingerprint in card
  assert "`rastp`" in card and "arXiv 2511.16943" in card
  assert "the 36 positions of the longest history become 12 after block 1." in card
  for name, value in (("batch_size", 99), ("beam_width", 50), ("constrained", True), ("top_k", (5,))):
    assert "0.1250" in model_card.render(_with(info, "eval", name, value), saved, metrics)
  others = [
    _with(metrics, section, name, value)
    for section, name, value in (
      ("reduction", "method", "none"),
      ("data", "bucket_lengths", (12,)),
      ("counts", "share", 0.5),
      ("counts", "decay", 0.5),
      ("eval", "exclude_history", True),
      ("eval", "item_share", 0.0),
      ("eval", "renormalize", True),
    )
  ]
  for other in (metrics | {"step": 7}, *others, None):
    card = model_card.render(info, saved, other)
    assert "Unknown: before it was exported, this checkpoint was not evaluated" in card and "0.1250" not in card


def _with(values, section, name, value):
  """Metrics, or export.json, of a run with another setting."""
  values = copy.deepcopy(values)
  values["config"][section][name] = value
  return values


def test_model_card_says_who_was_trained_on_and_what_was_held_out(live, exported):
  saved, _ = live
  info, histories = json.loads((exported / "export.json").read_text()), saved.histories
  some = dataclasses.replace(histories, offsets=histories.offsets[:31], train_only=histories.offsets[30:])
  none = dataclasses.replace(histories, offsets=histories.offsets[:1], train_only=histories.offsets)
  for split, held_out, words in (
    ("leave_one_out", histories, "leave-one-out (each user's last two items held out)"),
    ("time", some, "split at data.time_cut=0.1 (of 30 users, the first item after it and the last one before it held"),
    ("leave_one_out", none, "nothing held out |"),
  ):
    config = dataclasses.replace(saved.config, data=dataclasses.replace(saved.config.data, split=split))
    card = model_card.render(info, dataclasses.replace(saved, config=config, histories=held_out), None)
    assert f"90 users, 50 items, {words}" in card


@pytest.mark.parametrize(
  ("method", "sentence"),
  [("none", "keeps every token"), ("item_mean", "one token per item.*arXiv 2506.05781.*become 12 after block 1")],
)
def test_model_card_describes_any_reduction(exported, method, sentence):
  saved, _ = make_saved(method)
  info = {**json.loads((exported / "export.json").read_text()), "config": config_lib.to_dict(saved.config)}
  assert re.search(sentence, model_card.render(info, saved, None))


def test_an_export_is_whole_or_not_there(published_run, exported, tmp_path, monkeypatch):
  monkeypatch.setattr(artifact, "export_decode", lambda *_: 1 / 0)
  with pytest.raises(InputError, match="exists and is not empty: choose a new directory"):
    artifact.export_workdir(published_run, exported)
  with pytest.raises(ZeroDivisionError):
    artifact.export_workdir(published_run, tmp_path / "model")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("module", "flags", "stubs", "following"),
  [
    ("export", ["--workdir=run", "--output=my exp"], "serving.artifact.export_workdir", "python 'my exp/load.py' ITEM"),
    (
      "import_torch",
      ["--weights=w.npz", "--workdir=my exp"],
      "runtime.cli.load_config training.import_torch_weights.read_weights training.runs.load_data "
      "training.import_torch_weights.import_weights",
      "python -m rastp_jax.evaluate --workdir='my exp'",
    ),
  ],
)
def test_the_command_that_is_suggested_can_be_pasted(module, flags, stubs, following):
  program = f"""
from unittest import mock
from rastp_jax import {module}
{module}.flags.FLAGS(["program", *{flags!r}])
for name in {stubs!r}.split():
  mock.patch("rastp_jax." + name, return_value=({{}}, {{}})).start()
{module}.main()
"""
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  assert following in done.stdout
