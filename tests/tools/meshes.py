"""One config on one device, on eight, and on two processes of four: the losses and the final figures side by side.

python -m tests.tools.meshes --output=docs/results/meshes.json
"""

import json
import pathlib
import sys
import tempfile

from absl import app, flags

from rastp_jax import files
from tests.tools.tiny_run import log, losses, start

_STEPS = flags.DEFINE_integer("steps", 50, "Of each run.")
_OUTPUT = flags.DEFINE_string("output", None, "Where to write the comparison as JSON.")

# name -> (processes, devices of each, its own settings)
RUNS = {
  "1 device": (1, 1, ()),
  "8 devices": (1, 8, ()),
  "8 devices, weights over 4": (1, 8, ("--set=mesh__fsdp=4",)),
  "2 processes x 4 devices": (2, 4, ()),
  "2 processes x 4 devices, weights over 4": (2, 4, ("--set=mesh__fsdp=4",)),
}
COUNTS = ("users", "invalid_beams", "repeated_beams", "recall@5", "recall@10", "step")


def main(_) -> None:
  shared = (f"--set=train__length={_STEPS.value} steps", "--set=train__log_every=1 steps")
  shared += ("--set=train__eval_every=25 steps", "--set=train__checkpoint_every=25 steps")
  rows = {}
  with tempfile.TemporaryDirectory() as place:
    for index, (name, (processes, devices, own)) in enumerate(RUNS.items()):
      workdir = pathlib.Path(place) / str(index)
      running = start(
        workdir, pathlib.Path(place) / "cache", processes=processes, devices=devices, arguments=(*shared, *own)
      )
      assert [process.wait() for process in running] == [0] * processes, log(workdir).read_text()
      figures = json.loads((workdir / "final.json").read_text())
      rows[name] = {"losses": losses(workdir), "final": {key: figures[key] for key in COUNTS}}
  first = next(iter(rows.values()))
  for name, row in rows.items():
    row["largest_relative_difference"] = max(
      abs(row["losses"][step] - loss) / abs(loss) for step, loss in first["losses"].items()
    )
    row["final_equal"] = row["final"] == first["final"]
    print(f"{name}: losses within {row['largest_relative_difference']:.1e}, figures {row['final']}", flush=True)
  if _OUTPUT.value:
    command = " ".join(["python -m tests.tools.meshes", *sys.argv[1:]])
    files.write_json(_OUTPUT.value, {"command": command, "steps": _STEPS.value, "runs": rows})


if __name__ == "__main__":
  app.run(main)
