"""The published model's weights become a run like any other."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from rastp_jax import loading
from rastp_jax.errors import InputError
from rastp_jax.evaluation.evaluator import Evaluator
from rastp_jax.training import published_weights

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def weights(published_run):
  return dict(np.load(published_run.parent / "weights.npz"))


@pytest.mark.parametrize(("criterion", "prefix"), [("rastp", "prune/"), ("none", "noprune/")])
def test_the_run_answers_like_the_published_model(published_run, criterion, prefix):
  golden = np.load(GOLDEN / "small_trained.npz")
  saved = loading.load_model(published_run, [f"pruning.criterion={criterion}"])
  assert saved.step == 0
  history = jnp.asarray(golden["input_ids"]).reshape(len(golden["labels"]), -1, 4)
  logits = np.stack(nnx.jit(lambda model, *codes: model(*codes))(saved.model, history, jnp.asarray(golden["labels"])))
  assert np.max(np.abs(logits - golden[prefix + "logits"])) <= 1e-5 * np.max(np.abs(golden[prefix + "logits"]))


def test_the_run_evaluates(published_run):
  saved = loading.load_model(published_run, ["data.bucket_items=(10,)"])
  figures = Evaluator(saved.config, saved.histories, saved.semantic_ids, saved.mesh).evaluate(
    saved.model, "test", users=60
  )
  assert figures["users"] == 60 and figures["invalid_beams"] == figures["repeated_beams"] == 0
  assert json.loads((published_run / "imported.json").read_text())["weights"] == "weights.npz"


def test_safetensors_hold_the_same(weights, tmp_path):
  save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, tmp_path / "w.safetensors")
  read = published_weights.read_weights(tmp_path / "w.safetensors")
  assert read.keys() == weights.keys()
  assert all(np.array_equal(read[name], weights[name]) for name in weights)


def test_files_that_are_no_weights(weights, tmp_path):
  def refused(name, sentence):
    with pytest.raises(InputError, match=sentence):
      published_weights.read_weights(tmp_path / name)

  refused("nothing.npz", "There are no weights at")
  (tmp_path / "model.ckpt").write_bytes(b"pickle")
  refused("model.ckpt", "pickles, which can run code, and are not read.*save_file")
  (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
  refused("torn.safetensors", "cannot be read as weights")
  np.savez(tmp_path / "objects.npz", a=np.asarray([{}], dtype=object))
  refused("objects.npz", "cannot be read as weights")
  np.savez(tmp_path / "nan.npz", **(weights | {"sep_token": np.full((1, 32), np.nan)}))
  refused("nan.npz", "NaN or infinity in 'sep_token'")


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    ({"sep_token": None}, "lack 'sep_token'"),
    ({"decoder.sixth_finger": np.zeros(3)}, "hold 'decoder.sixth_finger'"),
    ({"decoder.decoder_mlp.0.weight": np.zeros((17, 32))}, r"'decoder.decoder_mlp.0.weight' has shape"),
  ],
)
def test_weights_of_another_model_leave_no_run(published_run, weights, change, sentence, tmp_path):
  saved = loading.load_model(published_run)
  changed = {name: value for name, value in (weights | change).items() if value is not None}
  with pytest.raises(InputError, match=sentence):
    published_weights.import_weights(
      saved.config, saved.histories, saved.semantic_ids, changed, tmp_path / "run", "somewhere"
    )
  assert not list(tmp_path.iterdir())


def test_a_run_is_never_overwritten(published_run, weights):
  saved = loading.load_model(published_run)
  with pytest.raises(InputError, match="exists and is not empty"):
    published_weights.import_weights(
      saved.config, saved.histories, saved.semantic_ids, weights, published_run, "somewhere"
    )
