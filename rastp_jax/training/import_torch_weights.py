"""Weights of the published PyTorch model as a run of ours, to evaluate, recommend with, export or train further."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping

import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from rastp_jax.config import Config
from rastp_jax.data.histories import Histories
from rastp_jax.errors import InputError
from rastp_jax.model.encoder_decoder import EncoderDecoder
from rastp_jax.model.factory import make_model
from rastp_jax.model.torch_names import load_published
from rastp_jax.runtime import buckets, files
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.training.plan import SavedProgress
from rastp_jax.training.setup import make_setup
from rastp_jax.training.step import to_saved
from rastp_jax.training.workdir import Workdir


def read_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads a state dict: arrays under their PyTorch names.

  Args:
    path: a .safetensors file, or an .npz.

  Raises:
    InputError: it is neither, cannot be read, or holds anything but finite numbers.
  """
  path = files.check_path(path)
  if not path.is_file():
    raise InputError(f"There are no weights at {path}: give a .safetensors or .npz file.")
  if path.suffix not in (".safetensors", ".npz"):
    raise InputError(
      f"{path} is not a .safetensors or .npz file (PyTorch's own are pickles, which can run code, and are not read): "
      "convert it where PyTorch is, by safetensors.torch.save_file({k: v.clone().contiguous() for k, v in "
      "torch.load(FILE)['state_dict'].items()}, 'weights.safetensors')."
    )
  try:
    if path.suffix == ".npz":
      with files.open_npz(path) as archive:
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
    workdir: new or empty; made whole or not at all. In a bucket, one that is not whole is refused by `Workdir.claim`.
    origin: where the weights come from, for imported.json.

  Raises:
    InputError: a weight is missing, left over or of another shape than config and codes ask for, or the workdir holds
      something already.
  """
  setup = make_setup(config, histories, semantic_ids)
  model = make_model(config, semantic_ids.widths, num_items=semantic_ids.num_items, rngs=nnx.Rngs(0))
  if not isinstance(model, EncoderDecoder):
    raise InputError(
      f"config.model.architecture={config.model.architecture!r} is not the published model's: give 'encoder_decoder'."
    )
  load_published(model, weights)
  state = setup.state_with(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
  imported = {"weights": origin, "sha256": _sha256(weights)}
  with _new(workdir) as out, out.claim(config, setup.lengths, setup.fingerprints, imported) as checkpoints:
    checkpoints.save(0, to_saved(state), SavedProgress())


def _sha256(weights: Mapping[str, np.ndarray]) -> str:
  digest = hashlib.sha256()
  for name in sorted(weights):
    digest.update(name.encode() + np.ascontiguousarray(weights[name], "<f4").tobytes())
  return digest.hexdigest()


@contextlib.contextmanager
def _new(workdir: str | os.PathLike) -> Iterator[Workdir]:
  """A workdir that appears once it is whole. In a bucket, which renames no directory, it is not trained in before."""
  out = Workdir(workdir)
  place = buckets.remote(out.path)
  if place is None:
    with files.new_directory(workdir) as temporary:
      yield Workdir(temporary)
    return
  if place.exists() and any(place.iterdir()):
    raise InputError(f"{out} exists and is not empty: choose a new directory, or remove it.")
  yield out
