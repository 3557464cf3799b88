"""What checkpoints cost training, by CPU time: segments of steps with a save and without one, in turns.

    python -m tests.tools.checkpoint_cost --config=configs/beauty.py:cpu --output=FILE.json

A save copies the arrays and goes on while files are written; CPU time of all threads counts both, whatever else the
machine is doing.
"""

import dataclasses
import itertools
import statistics
import sys
import tempfile
import time

import jax
from absl import flags
from flax import nnx

from rastp_jax import cli, files, loading, sharding
from rastp_jax.data.batches import TrainingBatches, training_iterator
from rastp_jax.training import checkpoint, optimizer, plan, step

_CONFIG = cli.define_config_flag()
_SEGMENTS = flags.DEFINE_integer("segments", 16, "Segments, half of them with a save.")
_STEPS = flags.DEFINE_integer("steps", 10, "Steps a segment.")
_OUTPUT = flags.DEFINE_string("output", None, "Where to write the result as JSON.")


def main() -> None:
  config = cli.load_config(_CONFIG.value)
  histories, semantic_ids = loading.load_data(config)
  mesh = sharding.make_mesh(config.mesh)
  source = TrainingBatches(
    histories,
    semantic_ids,
    config.data,
    batch_size=config.train.batch_size,
    seed=config.train.seed,
    row_multiple=sharding.row_multiple(mesh),
  )
  lengths = plan.make_plan(config, source.steps_per_epoch, source.samples_per_step)
  rule = optimizer.make_optimizer(config.train, lengths.total_updates, lengths.warmup_updates)
  graph, params = step.abstract_model(config, semantic_ids.widths, mesh)
  parts = step.loss_parts(graph, params, source[0])
  weights = nnx.to_pure_dict(nnx.state(step.fresh_model(config, semantic_ids.widths), nnx.Param))
  state = step.make_state(weights, rule, 0, parts)
  state = jax.device_put(state, sharding.placements(state, mesh))
  train_step = step.make_train_step(graph, rule, mesh)
  batches = (
    sharding.place_batch(batch, mesh, row_axis=1)
    for batch in training_iterator(source)
    if batch["history"].shape[2] == config.data.bucket_items[-1]  # one shape, so that segments are alike
  )
  seconds = {"off": [], "on": []}
  with tempfile.TemporaryDirectory() as workdir, checkpoint.Checkpoints(workdir, config, {}) as checkpoints:
    for segment in range(-2, _SEGMENTS.value):  # two for warming up
      saves = segment % 2 == 1
      start = time.process_time()
      for batch in itertools.islice(batches, _STEPS.value):
        state = train_step(state, batch)
      jax.block_until_ready(state)
      if saves or segment < 0:
        checkpoints.save(segment + 2, step.to_saved(state), {"best_step": None})
        checkpoints._manager.wait_until_finished()
      if segment >= 0:
        seconds["on" if saves else "off"].append(time.process_time() - start)
  on, off = (statistics.median(seconds[name]) for name in ("on", "off"))
  interval = lengths.checkpoint_every / _STEPS.value * off
  result = {
    "command": " ".join(["python", *sys.orig_argv[1:]]),
    "cpu_seconds_of_a_save": on - off,
    "cpu_seconds_of_training_between_saves": interval,
    "overhead": (on - off) / interval,
    "checkpoint_every_steps": lengths.checkpoint_every,
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    "segments": seconds,
    "config": dataclasses.asdict(config),
  }
  print({name: value for name, value in result.items() if name not in ("config", "segments")})
  if _OUTPUT.value:
    files.write_json(_OUTPUT.value, result)


if __name__ == "__main__":
  cli.run(main)
