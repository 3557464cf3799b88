"""The compiled training step, and the state it changes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from rastp_jax.config import Config
from rastp_jax.model import factory
from rastp_jax.runtime import sharding, target
from rastp_jax.semantic_ids.codes import SemanticIds

# The model hashes its dropout masks from a few words of the step's key, so only the reproducibility of these counts,
# and threefry gives the same ones on every backend and number of devices.
KEY_GENERATOR = "threefry2x32"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that a step changes.

  Attributes:
    step: int32 (), steps done.
    params: nested dict of float32 arrays.
    opt_state: Optax's.
    key: random key, never changed: a step uses fold_in(key, step).
    sums: float32 scalars over the open log interval: "samples", "steps", "grad_norm" (before clipping), and the loss
      and its parts, each times the batch's samples. A step whose loss or gradient is not finite changes nothing but
      "skipped", their number.
    skipped: int32 scalars over the whole run: such steps "in_a_row" up to now, and the "last" one's number (0: none).
  """

  step: jax.Array
  params: Any
  opt_state: Any
  key: jax.Array
  sums: dict[str, jax.Array]
  skipped: dict[str, jax.Array]


def make_state(
  params: Any, optimizer: optax.GradientTransformation, seed: int, loss_parts: Sequence[str]
) -> TrainState:
  """The state before the first step."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    key=jax.random.key(seed, impl=KEY_GENERATOR),
    sums=zero_sums(loss_parts),
    skipped={"in_a_row": jnp.zeros((), jnp.int32), "last": jnp.zeros((), jnp.int32)},
  )


def zero_sums(loss_parts: Sequence[str]) -> dict[str, jax.Array]:
  return {
    name: jnp.zeros((), jnp.float32) for name in ("samples", "steps", "skipped", "grad_norm", "loss", *loss_parts)
  }


def make_train_step(
  graph: nnx.GraphDef, optimizer: optax.GradientTransformationExtraArgs, mesh: Mesh
) -> Callable[[TrainState, Mapping[str, jax.Array]], TrainState]:
  """The compiled program: (state, stacked batches (steps, rows, ...)) -> the state after these steps.

  It consumes the state it is given, and compiles once per batch shape.
  """

  def one_step(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, None]:
    def loss_of(params):
      model = nnx.merge(graph, sharding.gather(params, mesh))
      key = jax.random.fold_in(state.key, state.step)
      return model.loss(batch, key=key)

    (loss, parts), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    gradient = jax.lax.with_sharding_constraint(gradient, sharding.placements(gradient, mesh))
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    samples = jnp.sum(batch["weight"])
    seen = {"samples": samples, "steps": jnp.ones(()), "grad_norm": norm}
    seen |= {name: value * samples for name, value in {"loss": loss, **parts}.items()}
    counted = {name: state.sums[name] for name in seen}

    def update():
      change, opt_state = optimizer.update(gradient, state.opt_state, state.params, norm=norm)
      return optax.apply_updates(state.params, change), opt_state, {name: counted[name] + seen[name] for name in seen}

    # A branch, not a choice between two results: that would cost another pass over parameters and moments.
    params, opt_state, sums = jax.lax.cond(finite, update, lambda: (state.params, state.opt_state, counted))
    return TrainState(
      step=state.step + 1,
      params=params,
      opt_state=opt_state,
      key=state.key,
      sums={**sums, "skipped": state.sums["skipped"] + jnp.where(finite, 0.0, 1.0)},
      skipped={
        "in_a_row": jnp.where(finite, 0, state.skipped["in_a_row"] + 1),
        "last": jnp.where(finite, state.skipped["last"], state.step + 1),
      },
    ), None

  def train_step(state: TrainState, batches: Mapping[str, jax.Array]) -> TrainState:
    with target.tracing_for(mesh):
      state = jax.lax.scan(one_step, state, batches)[0]
    return jax.lax.with_sharding_constraint(state, sharding.placements(state, mesh))

  return jax.jit(train_step, donate_argnums=0)


def to_saved(state: TrainState) -> dict[str, Any]:
  """The state as the two trees a checkpoint holds; random keys go as plain integers."""
  rest = {name: getattr(state, name) for name in ("step", "opt_state", "sums", "skipped")}
  return {"params": state.params, "rest": {**rest, "key": jax.random.key_data(state.key)}}


def from_saved(saved: Mapping[str, Any]) -> TrainState:
  rest = {**saved["rest"], "key": jax.random.wrap_key_data(saved["rest"]["key"], impl=KEY_GENERATOR)}
  return TrainState(params=saved["params"], **rest)


def fresh_params(config: Config, semantic_ids: SemanticIds) -> Any:
  """The parameters that the config's seed gives, as a nested dict."""
  rngs = nnx.Rngs(config.train.seed)
  model = factory.make_model(config, semantic_ids.widths, num_items=semantic_ids.num_items, rngs=rngs)
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def abstract_model(config: Config, semantic_ids: SemanticIds, mesh: Mesh) -> tuple[nnx.GraphDef, Any]:
  """The model without its numbers: (graph, parameters as `jax.ShapeDtypeStruct`s placed on the mesh)."""
  graph, params = factory.abstract_model(config, semantic_ids.widths, semantic_ids.num_items)
  return graph, placed(nnx.to_pure_dict(params), mesh)


def placed(tree: Any, mesh: Mesh) -> Any:
  """Shapes and types of a tree with the placement that sharding.py's table gives them."""
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
    tree,
    sharding.placements(tree, mesh),
  )
