"""How far apart training drifts on other numbers of devices, dense and reduced: the same run on 1, 2 and 4 of them.

    XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m rastp_jax.experiment devices --learning_rate=0.02

Another number of devices adds up gradients in another order, so that their last bits differ. Every method sees the same
batches and the same dropout on each number of devices; what is written is when losses part, and by how much.
"""

import itertools

import jax
import numpy as np
from absl import flags

from rastp_jax.errors import InputError
from rastp_jax.experiments import results
from rastp_jax.experiments.tiny import make_config, make_data
from rastp_jax.runtime import sharding
from rastp_jax.training.setup import make_setup

_METHODS = flags.DEFINE_list("methods", ["none", "recent", "rastp"], "Reductions; none: dense.")
_STEPS = flags.DEFINE_integer("steps", 200, "Steps of each run.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.001, "Of all runs.", lower_bound=0)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the comparison. Default: print only.")

COUNTS = (1, 2, 4)
APART = 1e-5  # relative difference of losses from which on two runs are called apart


def main() -> None:
  if len(jax.devices()) < max(COUNTS):
    raise InputError(
      f"This needs {max(COUNTS)} devices, and there are {len(jax.devices())}: on a CPU, put "
      f"XLA_FLAGS=--xla_force_host_platform_device_count={max(COUNTS)} before the command."
    )
  found = {}
  for method in _METHODS.value:
    losses = {count: _losses(method, count) for count in COUNTS}
    found[method] = {str(count): _compare(losses[count], losses[1]) for count in COUNTS[1:]}
    for count, seen in found[method].items():
      apart = f"apart from step {seen['first_step_apart']} on" if seen["first_step_apart"] else "never apart"
      print(f"{method}, {count} devices: {apart}, within {seen['largest']:.1e}", flush=True)
  if _OUTPUT.value:
    about = {"steps": _STEPS.value, "learning_rate": _LEARNING_RATE.value, "apart": APART}
    results.write_result(_OUTPUT.value, {**about, "methods": found})


def _losses(method: str, count: int) -> np.ndarray:
  """The loss of each step of a tiny run on `count` devices."""
  config = make_config(reduction__method=method, train__learning_rate=_LEARNING_RATE.value)
  mesh = sharding.make_mesh(devices=jax.devices()[:count])
  setup = make_setup(config, *make_data(), mesh=mesh)
  state, train_step = setup.fresh_state(), setup.train_steps[0]
  sums = [(0.0, 0.0)]  # of losses and of samples, up to each step
  for batch in itertools.islice(setup.stacked_batches(0), _STEPS.value):
    state = train_step(state, sharding.place_batch(batch, mesh, row_axis=1))
    sums.append((float(state.sums["loss"]), float(state.sums["samples"])))
  loss, samples = np.diff(np.asarray(sums), axis=0).T
  return loss / samples


def _compare(losses: np.ndarray, first: np.ndarray) -> dict[str, float | int | list[float] | None]:
  difference = np.abs(losses - first) / np.abs(first)
  apart = np.flatnonzero(difference > APART)
  return {
    "first_step_apart": int(apart[0]) + 1 if len(apart) else None,
    "largest": float(difference.max()),
    "relative_differences": [float(f"{value:.2g}") for value in difference],
  }
