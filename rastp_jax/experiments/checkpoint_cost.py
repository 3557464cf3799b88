"""What checkpoints cost training, by CPU time.

    python -m rastp_jax.experiment checkpoint_cost --config=configs/beauty.py:cpu --output=FILE.json

Segments of steps with a save and without one take turns. A save copies the arrays and goes on while files are written;
CPU time of all threads includes both, and does not depend on what else the machine is doing. The dataset must be
prepared (`python -m rastp_jax.prepare`).
"""

import itertools
import statistics
import tempfile
import time

import jax
from absl import flags

from rastp_jax import config as config_lib
from rastp_jax.experiments import results
from rastp_jax.runtime import cli, files, sharding
from rastp_jax.training import runs
from rastp_jax.training.plan import SavedProgress
from rastp_jax.training.setup import make_setup
from rastp_jax.training.step import to_saved
from rastp_jax.training.workdir import Workdir

_CONFIG = cli.define_config_flag()
_SEGMENTS = flags.DEFINE_integer("segments", 16, "Segments, half of them with a save.", lower_bound=2)
_DISPATCHES = flags.DEFINE_integer("dispatches", 10, "Dispatches of the training step per segment.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result. Default: print only.")


def main() -> None:
  if _OUTPUT.value:
    files.check_writable(_OUTPUT.value)
  config = cli.load_config(_CONFIG.value)
  setup = make_setup(config, *runs.load_data(config))
  state, train_step = setup.fresh_state(), setup.train_steps[0]
  batches = (
    sharding.place_batch(batch, setup.mesh, row_axis=1)
    for batch in setup.stacked_batches(0)
    if batch["history"].shape[2] == setup.lengths[-1]  # one shape, so that segments are alike
  )
  seconds = {"off": [], "on": []}
  with (
    tempfile.TemporaryDirectory() as directory,
    Workdir(directory).claim(config, setup.lengths, setup.fingerprints) as checkpoints,
  ):
    for segment in range(-2, _SEGMENTS.value):  # two for warming up
      saves = segment % 2 == 1
      start = time.process_time()
      for batch in itertools.islice(batches, _DISPATCHES.value):
        state = train_step(state, batch)
      jax.block_until_ready(state)
      if saves or segment < 0:
        checkpoints.save(segment + 2, to_saved(state), SavedProgress(segment + 2))
        checkpoints.wait()
      if segment >= 0:
        seconds["on" if saves else "off"].append(time.process_time() - start)
  on, off = (statistics.median(seconds[name]) for name in ("on", "off"))
  steps_per_segment = _DISPATCHES.value * setup.plan.steps_per_dispatch
  interval = setup.plan.checkpoint_every / steps_per_segment * off
  result = {
    "cpu_seconds_per_save": on - off,
    "cpu_seconds_of_training_between_saves": interval,
    "overhead": (on - off) / interval,
    "checkpoint_every_steps": setup.plan.checkpoint_every,
    "steps_per_segment": steps_per_segment,
    "parameters": setup.parameters,
    "segments": seconds,
    "config": config_lib.to_dict(config),
  }
  print({name: value for name, value in result.items() if name not in ("config", "segments")})
  if _OUTPUT.value:
    results.write_result(_OUTPUT.value, result)
