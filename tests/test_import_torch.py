"""The published model's weights become a run like any other."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from rastp_jax import config as config_lib
from rastp_jax.batches.buckets import bucket_lengths
from rastp_jax.errors import InputError
from rastp_jax.evaluation.evaluator import Evaluator
from rastp_jax.model.factory import make_model
from rastp_jax.model.torch_names import load_published
from rastp_jax.runtime import sharding
from rastp_jax.training import import_torch_weights, runs, trainer
from rastp_jax.training.setup import make_setup
from rastp_jax.training.workdir import Workdir

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def weights(published_run):
  return dict(np.load(published_run.parent / "weights.npz"))


@pytest.fixture(scope="module")
def saved(published_run):
  return runs.load_model(published_run)


@pytest.mark.parametrize(("method", "prefix"), [("rastp", "prune/"), ("none", "noprune/")])
def test_the_run_answers_like_the_published_model(published_run, method, prefix):
  golden = np.load(GOLDEN / "small_trained.npz")
  saved = runs.load_model(published_run, [f"reduction.method={method}"])
  assert saved.step == 0
  history = jnp.asarray(golden["input_ids"]).reshape(len(golden["labels"]), -1, 4)
  logits = np.stack(nnx.jit(lambda model, *codes: model(*codes))(saved.model, history, jnp.asarray(golden["labels"])))
  assert np.max(np.abs(logits - golden[prefix + "logits"])) <= 1e-5 * np.max(np.abs(golden[prefix + "logits"]))


def test_the_run_evaluates(published_run):
  saved = runs.load_model(published_run, ["data.bucket_lengths=(10,)"])
  evaluator = Evaluator(saved.config, saved.histories, saved.semantic_ids, saved.mesh)
  metrics = evaluator.evaluate(saved.model, "test", users=60)
  assert metrics["users"] == 60 and metrics["invalid_beams"] == metrics["repeated_beams"] == 0
  assert json.loads(Workdir(published_run).imported.read_text())["weights"] == "weights.npz"


def test_bucket_lengths_may_be_left_to_the_data(saved, weights, tmp_path):
  config = config_lib.with_values(saved.config, [("data.bucket_lengths", ())])
  imported = tmp_path / "run"
  import_torch_weights.import_weights(config, saved.histories, saved.semantic_ids, weights, imported, "somewhere")
  chosen = bucket_lengths(config.data, saved.histories)
  again = runs.load_model(imported)
  assert again.config.data.bucket_lengths == again.lengths == chosen and len(chosen) > 1
  assert (again.step, again.config) == (0, config_lib.with_values(config, [("data.bucket_lengths", chosen)]))
  jax.tree.map(np.testing.assert_array_equal, nnx.state(again.model), nnx.state(saved.model))


@pytest.mark.slow
def test_a_run_with_open_bucket_lengths_trains_on(saved, weights, tmp_path):
  changes = [("data.bucket_lengths", ()), ("data.num_buckets", 1), ("train.schedule", "constant")]
  changes += [("train.warmup", "1 steps")]
  config = config_lib.with_values(saved.config, [*changes, ("train.length", "2 steps"), ("train.batch_size", 16)])
  import_torch_weights.import_weights(config, saved.histories, saved.semantic_ids, weights, tmp_path / "run", "")
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  setup = make_setup(config, saved.histories, saved.semantic_ids, mesh=mesh)
  assert trainer.train(setup, Workdir(tmp_path / "run")).step == 2


def test_an_imported_run_whose_weights_are_gone_does_not_train_random_ones(published_run, saved, tmp_path):
  shutil.copytree(published_run, tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / "checkpoints")
  setup = make_setup(saved.config, saved.histories, saved.semantic_ids)
  with pytest.raises(InputError, match=r"run holds imported.json but no checkpoint .*: put its checkpoints back, or"):
    trainer.train(setup, Workdir(tmp_path / "run"))


def test_safetensors_hold_the_same(weights, tmp_path):
  save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, tmp_path / "w.safetensors")
  read = import_torch_weights.read_weights(tmp_path / "w.safetensors")
  assert read.keys() == weights.keys()
  assert all(np.array_equal(read[name], weights[name]) for name in weights)


def test_files_that_are_no_weights(weights, tmp_path):
  def refused(name, sentence):
    with pytest.raises(InputError, match=sentence):
      import_torch_weights.read_weights(tmp_path / name)

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
def test_weights_of_another_model_leave_no_run(saved, weights, change, sentence, tmp_path):
  changed = {name: value for name, value in (weights | change).items() if value is not None}
  with pytest.raises(InputError, match=sentence):
    import_torch_weights.import_weights(
      saved.config, saved.histories, saved.semantic_ids, changed, tmp_path / "run", "somewhere"
    )
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("setting", "parameter"),
  [("model.item_ages", "age_embedding"), ("model.item_scores", "item_embedding"), ("reduction.method", "reducers/")],
)
def test_what_the_published_model_has_not_is_named(saved, weights, setting, parameter):
  value = {"model.item_ages": 4, "model.item_scores": "vectors", "reduction.method": "learned_score"}[setting]
  config = config_lib.with_values(saved.config, [(setting, value)])
  ids = saved.semantic_ids
  model = make_model(config, ids.widths, num_items=ids.num_items, rngs=nnx.Rngs(0))
  with pytest.raises(InputError, match=f"The published model has no '{parameter}"):
    load_published(model, weights)


def test_a_run_is_never_overwritten(published_run, saved, weights):
  with pytest.raises(InputError, match="exists and is not empty"):
    import_torch_weights.import_weights(
      saved.config, saved.histories, saved.semantic_ids, weights, published_run, "somewhere"
    )
