"""Losses and final metrics of one config on one device, on eight, and on two processes of four.

python -m rastp_jax.experiment meshes --output=docs/results/meshes.json
"""

import json
import pathlib
import tempfile

from absl import flags

from rastp_jax.experiments import results
from rastp_jax.experiments.tiny_run import log, losses, start

_STEPS = flags.DEFINE_integer("steps", 50, "Steps of each run.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the comparison. Default: print only.")

# name -> (processes, devices of each, its own settings)
RUNS = {
  "1 device": (1, 1, ()),
  "8 devices": (1, 8, ()),
  "8 devices, weights over 4": (1, 8, ("--set=mesh__fsdp=4",)),
  "2 processes x 4 devices": (2, 4, ()),
  "2 processes x 4 devices, weights over 4": (2, 4, ("--set=mesh__fsdp=4",)),
}
METRICS = ("users", "invalid_beams", "repeated_beams", "recall@5", "recall@10", "step")


def main() -> None:
  shared = (f"--set=train__length={_STEPS.value} steps", "--set=train__log_every=1 steps")
  shared += ("--set=train__eval_every=25 steps", "--set=train__checkpoint_every=25 steps")
  rows = {}
  with tempfile.TemporaryDirectory() as directory:
    directory = pathlib.Path(directory)
    for index, (name, (processes, devices, own)) in enumerate(RUNS.items()):
      workdir = directory / str(index)
      running = start(workdir, directory / "cache", processes=processes, devices=devices, arguments=(*shared, *own))
      assert [process.wait() for process in running] == [0] * processes, log(workdir).read_text()
      final = json.loads((workdir / "final.json").read_text())
      rows[name] = {"losses": losses(workdir), "final": {key: final[key] for key in METRICS}}
  first = next(iter(rows.values()))
  for name, row in rows.items():
    row["largest_relative_difference"] = max(
      abs(row["losses"][step] - loss) / abs(loss) for step, loss in first["losses"].items()
    )
    row["final_equal"] = row["final"] == first["final"]
    print(f"{name}: losses within {row['largest_relative_difference']:.1e}, metrics {row['final']}", flush=True)
  if _OUTPUT.value:
    results.write_result(_OUTPUT.value, {"steps": _STEPS.value, "runs": rows})
