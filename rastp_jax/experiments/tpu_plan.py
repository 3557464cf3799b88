"""What training and decoding would cost on TPUs that are not there, by the TPU compiler's judgement.

    python -m rastp_jax.experiment tpu_plan --config=configs/beauty.py --topology=v5e:4x4 --output=FILE.json

compiles the training step of every bucket, and beam search, for the topology. It needs the TPU compiler
(`pip install "rastp_jax[tpu]"`), but neither a TPU nor data, and minutes of one core per program. Nothing is run: all
numbers are the compiler's, or bounds made of them and of the chip's data sheet.
"""

from absl import flags

from rastp_jax import config as config_lib
from rastp_jax.errors import InputError
from rastp_jax.experiments import results
from rastp_jax.experiments.tpu import topology
from rastp_jax.experiments.tpu.plan import plan
from rastp_jax.runtime import cli, files
from rastp_jax.runtime.text_tables import align

_CONFIG = cli.define_config_flag()
_TOPOLOGY = flags.DEFINE_string(
  "topology", "v5e:2x2", "Kind of chip and how they are arranged: v5e:1x1, v5e:16x16, v5p:2x2x1, v6e:2x2, …"
)
_ROWS = flags.DEFINE_integer(
  "rows_per_chip", 256, "Rows per chip of the longest bucket; others get as many tokens.", lower_bound=8
)
_COLLISIONS = flags.DEFINE_integer(
  "collision_codes", 17, "Codes of the level that tells equal items apart, where the config has one.", lower_bound=1
)
_CATALOGUES = flags.DEFINE_list("catalogues", ["12101", "10000000"], "Items of the catalogues that beams are held to.")
_TRAINING = flags.DEFINE_bool("training", True, "Compile the training steps.")
_LARGEST = flags.DEFINE_bool(
  "largest", True, "Search for the largest batch that fits (compiles again; not with --novmem)."
)
_VMEM = flags.DEFINE_bool(
  "vmem", True, "Let arrays lie in a chip's fast memory between kernels; without, all that is accessed is HBM traffic."
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result. Default: print only.")


def main() -> None:
  if _OUTPUT.value:
    files.check_writable(_OUTPUT.value)
  config = cli.load_config(_CONFIG.value)
  try:
    catalogues = [int(size) for size in _CATALOGUES.value]
  except ValueError as error:
    raise InputError(f"--catalogues is a list of numbers like 12101,1000000: {error}.") from error
  topology.on_cpu()
  devices = topology.devices(_TOPOLOGY.value)
  found = plan(
    config,
    devices,
    rows_per_chip=_ROWS.value,
    catalogues=catalogues,
    collision_codes=_COLLISIONS.value,
    training=_TRAINING.value,
    largest=_LARGEST.value,
    vmem=_VMEM.value,
  )
  for name, step in found.items():
    rows = [[name, "GB"], *([line, f"{moved / 1e9:.2f}"] for line, moved in step["movers"].items())]
    print(f"\n{align(rows)}")
    if step.get("largest"):
      print(f"largest batch that fits: {step['largest']['rows_per_chip']} rows per chip")
  if _OUTPUT.value:
    chips = {"topology": _TOPOLOGY.value, "chips": len(devices), "chip": devices[0].device_kind}
    results.write_result(_OUTPUT.value, {**chips, "programs": found, "config": config_lib.to_dict(config)})
