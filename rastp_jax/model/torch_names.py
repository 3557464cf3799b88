"""Parameter names of the published PyTorch model, as paths into ours."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rastp_jax.errors import InputError
from rastp_jax.model.encoder_decoder import EncoderDecoder


def published_names(model: EncoderDecoder) -> dict[tuple, tuple[str, bool]]:
  """Maps each of our parameter paths to (published name, whether a transpose lies between them).

  PyTorch keeps a Linear's weight as (out, in), we as (in, out).
  """
  names = {
    ("code_embedding",): ("item_sid_embedding_table_encoder.weight", False),
    ("bos",): ("decoder.bos_token", False),
    ("encoder_norm", "scale"): ("model.encoder.final_layer_norm.weight", False),
    ("decoder_norm", "scale"): ("decoder.decoder.final_layer_norm.weight", False),
  }
  if model.separator is not None:
    names["separator",] = ("sep_token", False)
  for level in range(model.layout.depth):
    names["heads", level, "kernel"] = (f"decoder.decoder_mlp.{level}.weight", True)
  for stack, ours, sublayers in (
    ("model.encoder", "encoder", [("attention", "attention_norm", "SelfAttention")]),
    (
      "decoder.decoder",
      "decoder",
      [("self_attention", "self_norm", "SelfAttention"), ("cross_attention", "cross_norm", "EncDecAttention")],
    ),
  ):
    table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    names[f"{ours}_bias", "table"] = (table, False)
    for index in range(len(getattr(model, f"{ours}_blocks"))):
      block, layer = (f"{ours}_blocks", index), f"{stack}.block.{index}.layer"
      for place, (attention, norm, theirs) in enumerate(sublayers):
        names[*block, norm, "scale"] = (f"{layer}.{place}.layer_norm.weight", False)
        for matrix in "qkvo":
          names[*block, attention, matrix, "kernel"] = (f"{layer}.{place}.{theirs}.{matrix}.weight", True)
      place = len(sublayers)
      names[*block, "mlp_norm", "scale"] = (f"{layer}.{place}.layer_norm.weight", False)
      hidden = model.config.mlp_hidden_layers
      torch_indices = [0] + [
        2 + 3 * i for i in range(hidden)
      ]  # each hidden Linear but the first: Linear, dropout, ReLU
      for i, torch_index in enumerate(torch_indices):
        path = f"{layer}.{place}.mlp.model.{torch_index}"
        names[*block, "mlp", "layers", i, "kernel"] = (f"{path}.weight", True)
        names[*block, "mlp", "layers", i, "bias"] = (f"{path}.bias", False)
  return names


def load_published(model: EncoderDecoder, weights: Mapping[str, np.ndarray]) -> None:
  """Overwrites the model's parameters with published ones.

  Args:
    model: a recommender of the same sizes, with `uniform_width=True`.
    weights: arrays under their PyTorch names.

  Raises:
    InputError: a parameter is missing, left over, of another shape, or one that the published model lacks.
  """
  names = published_names(model)
  params = nnx.to_flat_state(nnx.state(model, nnx.Param))
  left_over = sorted(set(weights) - {name for name, _ in names.values()})
  if left_over:
    raise InputError(
      f"The weights hold {left_over[0]!r} and {len(left_over) - 1} more parameters this model has no place for: give "
      "the config they were trained with."
    )
  unknown = [path for path, _ in params if path not in names]
  if unknown:
    raise InputError(
      f"The published model has no {'/'.join(map(str, unknown[0]))!r}: leave out model.item_ages, "
      "model.item_scores and reductions with weights of their own."
    )
  for path, param in params:
    name, transposed = names[path]
    if name not in weights:
      raise InputError(f"The weights lack {name!r}: give the config they were trained with.")
    value = np.asarray(weights[name], np.float32)
    value = value.T if transposed else value.reshape(param[...].shape) if value.size == param[...].size else value
    if value.shape != param[...].shape:
      raise InputError(
        f"The weights' {name!r} has shape {value.shape}, this model needs {param[...].shape}: give the config they "
        "were trained with."
      )
    param[...] = jnp.asarray(value)
