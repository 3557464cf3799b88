"""Optimizers and learning-rate schedules, from `TrainConfig` to Optax.

Two words are kept apart everywhere in training/: a *step* is one batch, an *update* is one change of the parameters.
They are the same unless `train.grad_accumulation_steps` = k > 1: then the gradients of k batches are averaged into one
update.
"""

import jax
import jax.numpy as jnp
import optax

from rastp_jax.config import TrainConfig
from rastp_jax.errors import InputError

# Parameters that AdamW leaves undecayed, by a word in their path. Norms, biases and single vectors (BOS, separator) by
# common practice. Embedding tables too (as in minGPT, unlike nanoGPT): a row whose code is rare would otherwise shrink
# at every update in which it does not even occur. The relative-position "bias" is such a table.
_UNDECAYED = ("bias", "norm", "embed", "separator", "bos", "queries")


def make_schedule(train: TrainConfig, total_updates: int | None, warmup_updates: int) -> optax.Schedule:
  """The learning rate as a function of the update's number, from 0.

  It rises linearly over the warm-up, so that already the first update moves and the last warm-up update has the full
  rate; then it stays ("constant") or falls along a half cosine to 0 at `total_updates` ("cosine").

  Args:
    train: schedule and peak rate.
    total_updates: the run's length; None (a length in minutes) only with the constant schedule.
    warmup_updates: 0 switches warm-up off.
  """
  if train.schedule == "cosine" and total_updates is None:
    raise ValueError("the cosine schedule needs total_updates")

  falling = max(1, (total_updates or 0) - warmup_updates)

  def learning_rate(update):
    rate = jnp.minimum(1.0, (update + 1) / max(1, warmup_updates))
    if train.schedule == "cosine":
      share = (update - warmup_updates) / falling
      rate = rate * 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(share, 0.0, 1.0)))
    return train.learning_rate * rate

  return learning_rate


def make_optimizer(
  train: TrainConfig, total_updates: int | None, warmup_updates: int = 0
) -> optax.GradientTransformationExtraArgs:
  """Builds the gradient transformation: accumulate, clip, then one of three rules.

  Its `update` may be given the gradient's global norm as `norm`, so that clipping need not take it again.

  - "adamw": decay decoupled from the gradient (Loshchilov & Hutter 2019) and scaled by the learning rate, on weight
    matrices only (`decay_mask`).
  - "adam": no decay.
  - "adam_l2": PyTorch's `Adam(weight_decay=...)`, the published optimizer: the decay times the parameter is added to
    the gradient of *every* parameter before the moments are taken; epsilon is added to the bias-corrected root.

  Clipping acts on the averaged gradient, before any L2 term, as `clip_grad_norm_` does in PyTorch.

  Args:
    train: which rule, its rate, decay, clipping and accumulation.
    total_updates: updates in the whole run; see `make_schedule`.
    warmup_updates: updates until the full learning rate.

  Raises:
    InputError: a weight decay is given to "adam", which has none.
  """
  schedule = make_schedule(train, total_updates, warmup_updates)
  if train.optimizer == "adamw":
    rule = optax.adamw(schedule, eps=1e-8, weight_decay=train.weight_decay, mask=decay_mask)
  elif train.optimizer == "adam_l2":
    rule = optax.chain(optax.add_decayed_weights(train.weight_decay), optax.adam(schedule, eps=1e-8))
  elif train.weight_decay:
    raise InputError(
      f"config.train.weight_decay={train.weight_decay:g} has no effect with train.optimizer='adam': set it to 0, or "
      "use 'adamw' (decoupled decay) or 'adam_l2' (L2 in the gradient)."
    )
  else:
    rule = optax.adam(schedule, eps=1e-8)
  if train.clip_norm:
    rule = optax.chain(_clip_by_global_norm(train.clip_norm), rule)
  if train.grad_accumulation_steps > 1:
    steps = optax.MultiSteps(rule, train.grad_accumulation_steps)
    # Takes no norm: a step's is not the average's.
    rule = optax.GradientTransformation(steps.init, steps.update)  # pyright: ignore[reportArgumentType]
  return optax.with_extra_args_support(rule)


def _clip_by_global_norm(limit: float) -> optax.GradientTransformationExtraArgs:
  """`optax.clip_by_global_norm` with two passes over the gradient less: the norm can be given, and scaling fuses."""

  def update(updates, state, params=None, *, norm=None, **_):
    scale = jnp.minimum(1.0, limit / (optax.tree.norm(updates) if norm is None else norm))
    return jax.tree.map(lambda x: x * scale, updates), state

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def updates_made(opt_state: optax.OptState) -> jax.Array:
  """How often parameters were changed, by the learning rate's own count: a step that is skipped does not move it."""
  of_schedule = lambda path, _: any(getattr(key, "tuple_name", "") == "ScaleByScheduleState" for key in path)
  return optax.tree.get(opt_state, "count", filtering=of_schedule)


def decay_mask(params):
  """True at the parameters AdamW decays: weight matrices, but not norms, biases, vectors or embedding tables."""

  def decays(path, value):
    words = jax.tree_util.keystr(path).lower()
    return value.ndim >= 2 and not any(word in words for word in _UNDECAYED)

  return jax.tree_util.tree_map_with_path(decays, params)
