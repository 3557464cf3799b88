"""Our numbers against vectors that the published PyTorch code produced (`tests/golden`)."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rastp_jax.config import ModelConfig, ReductionConfig
from rastp_jax.generation.beam_search import beam_search
from rastp_jax.generation.trie import build_transitions
from rastp_jax.model.encoder_decoder import EncoderDecoder
from rastp_jax.model.layers import relative_bucket
from rastp_jax.model.torch_names import load_published, published_names
from rastp_jax.reduction import scores
from rastp_jax.reduction.tokens import Seen

GOLDEN = pathlib.Path(__file__).parent / "golden"


class Case:
  """One golden file with pruning on or off, and our model with its weights."""

  def __init__(self, name: str, pruned: bool):
    self.arrays = np.load(GOLDEN / f"{name}.npz")
    self.prefix = "prune/" if pruned else "noprune/"
    sizes = json.loads(str(self.arrays["config"]))
    model_config = ModelConfig(
      d_model=sizes["d_model"],
      num_heads=sizes["num_heads"],
      head_dim=sizes["d_kv"],
      d_ff=sizes["d_ff"],
      encoder_blocks=sizes["num_layers"],
      decoder_blocks=sizes["num_layers"],
      mlp_hidden_layers=sizes["mlp_layers"],
      uniform_width=True,
    )
    reduction = ReductionConfig(
      method="rastp" if pruned else "none",
      after_block=(sizes["prune_layer_index"],),
      keep_ratio=(sizes["keep_ratio"],),
      positions="none",
      score_dropout=True,
      score_padded_queries=True,
    )
    widths = (sizes["num_embeddings_per_hierarchy"],) * sizes["num_hierarchies"]
    self.model = EncoderDecoder(model_config, reduction, widths, rngs=nnx.Rngs(0))
    load_published(self.model, {k[6:]: v for k, v in self.arrays.items() if k.startswith("param/")})
    self.history = jnp.asarray(self.arrays["input_ids"]).reshape(len(self.arrays["labels"]), -1, len(widths))
    self.labels = jnp.asarray(self.arrays["labels"])

  def __getitem__(self, name: str) -> np.ndarray:
    return self.arrays[self.prefix + name]


@pytest.fixture(
  scope="module",
  params=[(n, p) for n in ("small_init", "small_trained") for p in (True, False)],
  ids=lambda p: f"{p[0]}-{'pruned' if p[1] else 'dense'}",
)
def case(request):
  return Case(*request.param)


def close(name, ours, theirs, tolerance, differences):
  """The largest difference, relative to the largest golden value, is within the tolerance; the figure is kept."""
  difference = float(np.max(np.abs(np.asarray(ours) - theirs)) / np.max(np.abs(theirs)))
  seen = differences.setdefault(name, {"tolerance": tolerance, "largest difference": 0.0})
  seen["largest difference"] = max(seen["largest difference"], difference)
  assert difference <= tolerance, f"{name}: {difference:.2e} > {tolerance:.0e}"


def compiled(function, model, *arguments):
  """function(model, *arguments), compiled once for models that differ in their weights alone."""
  graph, params = nnx.split(model)
  return _compiled(function, graph)(params, *arguments)


@functools.cache
def _compiled(function, graph):
  return jax.jit(lambda params, *arguments: function(nnx.merge(graph, params), *arguments))


def loss_and_gradients(model, batch):
  graph, params = nnx.split(model)
  return jax.value_and_grad(lambda params: nnx.merge(graph, params).loss(batch), has_aux=True)(params)


def ten_beams(model, history, transitions):
  return beam_search(model, model.encode(history), transitions, 10, renormalize=True)


def equal(name, ours, theirs, differences):
  np.testing.assert_array_equal(ours, theirs, err_msg=name)
  differences.setdefault(name, {"tolerance": 0.0, "largest difference": 0.0})


def test_forward(case, differences):
  tokens = case.model.embed_history(case.history)
  close("embeddings", tokens.hidden, case["enc_in"], 1e-5, differences)
  np.testing.assert_array_equal(tokens.mask, case.arrays["enc_mask"] == 1)
  encoded, stages = compiled(EncoderDecoder.encode_tokens, case.model, tokens)
  mask = np.asarray(encoded.mask)
  if stages:
    full_mask = case.arrays["enc_mask"] == 1
    (stage,) = stages
    hidden, kept = stage.before.hidden, np.asarray(stage.after.positions)
    close("hidden at the scored block", hidden[full_mask], case["enc_h_after_layer1"][full_mask], 1e-5, differences)
    seen = Seen(stage.before, stage.evidence, case.model.layout, case.model.reduction, budget=mask.shape[1])
    close("attention received", scores.attention(seen), case["attn_colsum"], 1e-5, differences)
    close("importance", scores.rastp(seen)[full_mask], case["importance"][full_mask], 1e-5, differences)
    np.testing.assert_array_equal(mask, case["pruned_mask"] == 1)
    equal("kept positions", kept[mask], case["kept_idx"][mask], differences)
    close("pruned hidden", stage.after.hidden[mask], case["pruned_hidden"][mask], 1e-5, differences)
  else:
    assert mask.shape[1] == tokens.mask.shape[1]
  close("encoder output", encoded.hidden[mask], case["enc_out"][mask], 1e-5, differences)
  decoded = compiled(EncoderDecoder.decode, case.model, encoded, case.labels)
  close("decoder output", decoded, case["dec_out"][:, :-1], 1e-5, differences)
  close("logits", np.stack(case.model.logits(decoded)), case["logits"], 1e-5, differences)


def test_loss_and_gradients(case, differences):
  batch = {"history": case.history, "target": case.labels, "weight": jnp.ones(len(case.labels))}
  (value, metrics), gradients = compiled(loss_and_gradients, case.model, batch)
  close("loss", value, case["loss"], 1e-5, differences)
  per_level = [metrics[f"loss_level_{level}"] for level in range(4)]
  close("loss per level", per_level, case["loss_per_hierarchy"], 1e-5, differences)
  norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradients)))
  close("gradient norm", norm, case["grad_global_l2"], 1e-4, differences)
  names = {name: (path, transposed) for path, (name, transposed) in published_names(case.model).items()}
  flat = dict(nnx.to_flat_state(gradients))
  stored = [k.split("grad/")[1] for k in case.arrays.files if k.startswith(case.prefix + "grad/")]
  assert len(stored) == 8
  for name in stored:
    path, transposed = names[name]
    ours = np.asarray(flat[path][...])
    theirs = case[f"grad/{name}"]
    close("gradients", (ours.T if transposed else ours).reshape(theirs.shape), theirs, 1e-4, differences)


@pytest.mark.parametrize("constrained", [False, True], ids=["free", "constrained"])
def test_beams(case, constrained, differences):
  transitions = build_transitions(case.arrays["catalogue_sids"]) if constrained else None
  beams = compiled(ten_beams, case.model, case.history, transitions)
  theirs = case[f"beam_ids_prefix{int(constrained)}"]
  close(
    "beam probabilities",
    np.exp(beams.log_probs),
    case[f"beam_probs_prefix{int(constrained)}"],
    1e-5,
    differences,
  )
  items = {tuple(row) for row in case.arrays["catalogue_sids"]}
  for ours, expected, is_item in zip(
    np.asarray(beams.codes), theirs, case[f"beam_is_item_prefix{int(constrained)}"], strict=True
  ):
    rows = [tuple(row) for row in ours]
    # As a set: two neighbouring probabilities of the fresh weights are closer than float32 tells apart.
    assert set(rows) == {tuple(row) for row in expected}
    if "trained" in case.arrays.fid.name:
      equal("beams", ours, expected, differences)
    assert [row in items for row in rows].count(True) == is_item.sum()
    if constrained:
      assert all(row in items for row in rows) and len(set(rows)) == 10


def test_relative_buckets():
  units = np.load(GOLDEN / "units.npz")
  sizes = dict(buckets=32, max_distance=128)
  for causal, name in ((False, "bucket_bidirectional"), (True, "bucket_causal")):
    np.testing.assert_array_equal(relative_bucket(jnp.asarray(units["relpos"]), causal=causal, **sizes), units[name])
