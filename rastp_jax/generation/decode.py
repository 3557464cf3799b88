"""Beam search on all devices at once, as evaluation and recommendation run it."""

from collections.abc import Callable

import jax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from rastp_jax.generation.beam_search import Beams, beam_search


def make_decode(mesh: Mesh, width: int, *, renormalize: bool) -> Callable[..., Beams]:
  """A function that decodes histories; it compiles once per shape.

  Args:
    mesh: devices that share the users.
    width: beams per user.
    renormalize: see `beam_search`.

  Returns:
    (graph, params, transitions, history) -> `Beams` of all rows. Graph and params are `nnx.split`'s, params and
    transitions (or None) replicated over the mesh; history is (B, N, C) int32, its rows split over "data".
  """

  def decode(graph, params, transitions, history):
    def decode_rows(params, transitions, history):
      model = nnx.merge(graph, params)
      return beam_search(model, model.encode(history), transitions, width, renormalize=renormalize)

    # Users are independent: each device decodes its own, without any communication.
    everywhere, rows = PartitionSpec(), PartitionSpec("data")
    by_rows = jax.shard_map(decode_rows, mesh=mesh, in_specs=(everywhere, everywhere, rows), out_specs=rows)
    return by_rows(params, transitions, history)

  return jax.jit(decode, static_argnums=0)
