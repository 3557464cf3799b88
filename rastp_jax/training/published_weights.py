"""Weights of the published PyTorch model as a run of ours, to evaluate, recommend with, export or train further."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from rastp_jax import files, sharding
from rastp_jax.config import Config
from rastp_jax.data.batches import TrainingBatches
from rastp_jax.data.histories import Histories
from rastp_jax.errors import InputError
from rastp_jax.model import encoder_decoder
from rastp_jax.model.encoder_decoder import EncoderDecoder
from rastp_jax.model.published import load_published
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.training.checkpoint import Checkpoints
from rastp_jax.training.optimizer import make_optimizer
from rastp_jax.training.plan import Standing, make_plan
from rastp_jax.training.step import make_state, to_saved


def read_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads a state dict: arrays under their PyTorch names.

  Args:
    path: a .safetensors file, or an .npz.

  Raises:
    InputError: it is neither, cannot be read, or holds something else than finite numbers.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise InputError(f"There are no weights at {path}: give a .safetensors or .npz file.")
  if path.suffix not in (".safetensors", ".npz"):
    raise InputError(
      f"{path} is no .safetensors or .npz file (PyTorch's own are pickles, which can run code, and are not read): "
      "convert it where PyTorch is, by safetensors.torch.save_file({k: v.clone().contiguous() for k, v in "
      "torch.load(FILE)['state_dict'].items()}, 'weights.safetensors')."
    )
  try:
    if path.suffix == ".npz":
      with np.load(path, allow_pickle=False) as archive:
        weights = {name: archive[name] for name in archive.files}
    else:
      weights = load_file(path)
    weights = {name: np.asarray(value, np.float32) for name, value in weights.items()}
  except Exception as error:  # zipfile, numpy and safetensors each raise their own kinds on a torn file
    raise InputError(f"{path} cannot be read as weights ({type(error).__name__}: {error}): write it again.") from error
  for name, value in weights.items():
    if not np.isfinite(value).all():
      raise InputError(f"{path} holds NaN or infinity in {name!r}: these weights cannot answer anything.")
  return weights


def import_weights(
  config: Config,
  histories: Histories,
  semantic_ids: SemanticIds,
  weights: Mapping[str, np.ndarray],
  workdir: str | os.PathLike,
  origin: str,
) -> None:
  """Makes a workdir that stands before its first step with these weights instead of random ones.

  Args:
    config: the sizes and settings they were trained with, like `configs/beauty.py:reference`.
    histories: the prepared dataset.
    semantic_ids: the codes they were trained with.
    weights: from `read_weights`.
    workdir: new or empty; made whole or not at all.
    origin: where the weights come from, for imported.json.

  Raises:
    InputError: a weight is missing, left over or of another shape than config and codes ask for, or the workdir holds
      something already.
  """
  mesh = sharding.make_mesh(config.mesh)
  model = EncoderDecoder(config.model, config.pruning, semantic_ids.widths, rngs=nnx.Rngs(0))
  load_published(model, weights)
  source = TrainingBatches(
    histories,
    semantic_ids,
    config.data,
    batch_size=config.train.batch_size,
    seed=config.train.seed,
    row_multiple=sharding.row_multiple(mesh),
  )
  plan = make_plan(config, source.steps_per_epoch, source.samples_per_step)
  optimizer = make_optimizer(config.train, plan.total_updates, plan.warmup_updates)
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  state = make_state(params, optimizer, config.train.seed, _loss_parts(model))
  state = jax.device_put(state, sharding.placements(state, mesh))
  progress = {
    "next_batch": 0,
    "pending": False,
    "samples": 0.0,
    "seconds": 0.0,
    "logged_seconds": 0.0,
    "standing": dataclasses.asdict(Standing()),
    "best_step": None,
  }
  fingerprints = {"semantic IDs": semantic_ids.fingerprint, "dataset": histories.fingerprint}
  with files.new_directory(workdir) as out:
    with Checkpoints(out, config, fingerprints) as checkpoints:
      checkpoints.save(0, to_saved(state), progress)
    digest = hashlib.sha256()
    for name in sorted(weights):
      digest.update(name.encode() + np.ascontiguousarray(weights[name], "<f4").tobytes())
    files.write_json(out / "imported.json", {"weights": origin, "sha256": digest.hexdigest()})


def _loss_parts(model: EncoderDecoder) -> list[str]:
  """Names of what the loss reports beside itself."""
  codes = jnp.zeros((1, 1, model.depth), jnp.int32)
  return sorted(jax.eval_shape(lambda: encoder_decoder.loss(model, codes, codes[:, 0], jnp.ones(1))[1]))
