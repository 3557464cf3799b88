"""From histories to items, on all devices at once, as evaluation, recommendation and exported programs run it.

Shapes: B users, N history items, I items of the catalogue, C codes per item, W answers.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int

from rastp_jax.batches.batches import what_is_read
from rastp_jax.config import Config, CountsConfig, EvalConfig
from rastp_jax.data.histories import Histories
from rastp_jax.generation import trie
from rastp_jax.generation.beam_search import beam_search
from rastp_jax.generation.counts import Counts, Neighbours
from rastp_jax.generation.mixture import NO_BEAM, Answers, Source, mix
from rastp_jax.generation.trie import Transitions
from rastp_jax.model.interface import GenerativeModel
from rastp_jax.runtime import target
from rastp_jax.semantic_ids.codes import SemanticIds


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ItemTables:
  """What decoding knows of the items, on every device. Make it with `item_tables`.

  Attributes:
    read: (I, R) int32, what the model reads of each item (`batches.what_is_read`).
    codes: (I, C) int32.
    transitions: the same as a table of what may follow.
    neighbours: of each item; None where no counts are mixed in.
  """

  read: Int[Array, "I R"]
  codes: Int[Array, "I C"]
  transitions: Transitions
  neighbours: Neighbours | None


def item_tables(semantic_ids: SemanticIds, histories: Histories, config: Config) -> ItemTables:
  """The tables of a catalogue.

  Args:
    semantic_ids: codes of every item.
    histories: whose training part is counted, where `counts.share` asks for it.
    config: its `model` and `counts`.
  """
  neighbours = Counts.fit(histories, config.counts).table() if config.counts.share else None
  read, codes = what_is_read(semantic_ids, config.model), semantic_ids.codes
  return ItemTables(jnp.asarray(read), jnp.asarray(codes), trie.build_transitions(codes), neighbours)


def answer(
  model: GenerativeModel, tables: ItemTables, history: Int[Array, "B N"], settings: EvalConfig, counts: CountsConfig
) -> Answers:
  """The most probable next items: `settings.beam_width` of them.

  Args:
    model: the recommender.
    tables: of its catalogue; with neighbours where `counts.share` is above 0.
    history: item rows, most recent last, padded on the right with -1.
    settings: beams, whether they must be items, and the share of the model's scores of all items.
    counts: their share in the answers.
  """
  memory = model.encode(jnp.where(history[..., None] >= 0, tables.read[history], -1))
  width, of_model, sources = settings.beam_width, 1.0, []
  if tables.neighbours is not None:
    of_model -= counts.share
    sources.append(Source(*tables.neighbours.candidates(history), counts.share))
  log_probs = model.item_log_probs(memory, tables.codes) if settings.item_share else None
  of_items = settings.item_share if log_probs is not None else 0.0
  if log_probs is not None:
    best, items = jax.lax.top_k(log_probs, min(width, log_probs.shape[1]))
    sources.append(Source(items, jnp.exp(best), of_model * of_items))
  if of_items == 1:
    return mix(sources, width)
  transitions = tables.transitions if settings.constrained else None
  beams = beam_search(model, memory, transitions, width, renormalize=settings.renormalize)
  items = trie.find_items(tables.transitions, beams.codes)
  searched = jnp.where(jnp.isneginf(beams.log_probs), NO_BEAM, items)
  if not sources:
    return Answers(items, beams.log_probs, searched)
  sources.append(Source(items, jnp.exp(beams.log_probs), of_model * (1 - of_items)))
  return dataclasses.replace(mix(sources, width), beams=searched)


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
      with target.tracing_for(mesh, split=False):
        return answer(nnx.merge(graph, params), tables, history, settings, counts)

    # Users are independent: each device decodes its own, without any communication.
    everywhere, rows = PartitionSpec(), PartitionSpec("data")
    specs = {"in_specs": (everywhere, everywhere, rows), "out_specs": rows}
    # Unchecked: kernels, and loops of a reduction that start from constants, do not say what varies with the device.
    by_rows = jax.shard_map(decode_rows, mesh=mesh, check_vma=False, **specs)
    return by_rows(params, tables, history)

  return jax.jit(decode, static_argnums=0)
