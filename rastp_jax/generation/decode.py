"""From histories to items, on all devices at once, as evaluation, recommendation and exported programs run it.

Shapes: B users, N history items, I items of the catalogue, C codes per item, W answers.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int

from rastp_jax.config import CountsConfig, EvalConfig
from rastp_jax.data.histories import Histories
from rastp_jax.generation import trie
from rastp_jax.generation.beam_search import beam_search
from rastp_jax.generation.counts import Counts, Neighbours
from rastp_jax.generation.mixture import Answers, Source, mix
from rastp_jax.generation.trie import Transitions
from rastp_jax.model.interface import GenerativeModel


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ItemTables:
  """What decoding knows of the items, on every device. Make it with `item_tables`.

  Attributes:
    codes: (I, C) int32.
    transitions: the same as a table of what may follow.
    neighbours: of each item; None where no counts are mixed in.
  """

  codes: Int[Array, "I C"]
  transitions: Transitions
  neighbours: Neighbours | None


def item_tables(codes: np.ndarray, histories: Histories, counts: CountsConfig) -> ItemTables:
  """The tables of a catalogue.

  Args:
    codes: (I, C) integers, row = item.
    histories: whose training part is counted, where `counts.share` asks for it.
    counts: what is counted.
  """
  neighbours = Counts.fit(histories, counts).table() if counts.share else None
  return ItemTables(jnp.asarray(codes, jnp.int32), trie.build_transitions(codes), neighbours)


def answer(
  model: GenerativeModel, tables: ItemTables, history: Int[Array, "B N"], settings: EvalConfig, counts: CountsConfig
) -> Answers:
  """The most probable next items: `settings.beam_width` of them.

  Args:
    model: the recommender.
    tables: of its catalogue; with neighbours where `counts.share` is above 0.
    history: item rows, most recent last, padded on the right with -1.
    settings: beams, and whether they must be items.
    counts: their share in the answers.
  """
  codes = jnp.where(history[..., None] >= 0, tables.codes[history], -1)
  transitions = tables.transitions if settings.constrained else None
  beams = beam_search(model, model.encode(codes), transitions, settings.beam_width, renormalize=settings.renormalize)
  items = trie.find_items(tables.transitions, beams.codes)
  if tables.neighbours is None:
    return Answers(items, beams.log_probs)
  sources = [
    Source(items, jnp.exp(beams.log_probs), 1.0 - counts.share),
    Source(*tables.neighbours.candidates(history), counts.share),
  ]
  return mix(sources, settings.beam_width)


def make_decode(mesh: Mesh, settings: EvalConfig, counts: CountsConfig) -> Callable[..., Answers]:
  """A function that answers histories; it compiles once per shape.

  Args:
    mesh: devices that share the users.
    settings: see `answer`.
    counts: see `answer`.

  Returns:
    (graph, params, tables, history) -> `Answers` of all rows. Graph and params are `nnx.split`'s, params and tables
    replicated over the mesh; history is (B, N) int32 item rows, split over "data".
  """

  def decode(graph, params, tables, history):
    def decode_rows(params, tables, history):
      return answer(nnx.merge(graph, params), tables, history, settings, counts)

    # Users are independent: each device decodes its own, without any communication.
    everywhere, rows = PartitionSpec(), PartitionSpec("data")
    by_rows = jax.shard_map(decode_rows, mesh=mesh, in_specs=(everywhere, everywhere, rows), out_specs=rows)
    return by_rows(params, tables, history)

  return jax.jit(decode, static_argnums=0)
