"""TPUs that are not there: the compiler needs only their description."""

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import jax

from rastp_jax.errors import InputError

INSTALL = 'pip install "rastp_jax[tpu]", or pip install "jax[tpu]"'


@dataclasses.dataclass(frozen=True)
class Chip:
  """What the data sheet says about one chip.

  Attributes:
    flops: dense bfloat16 operations per second.
    bandwidth: of its memory, bytes per second.
    memory: bytes.
    clock: cycles per second, from `flops` and the size of its matrix units.
  """

  flops: float
  bandwidth: float
  memory: float
  clock: float


CHIPS = {
  "TPU v4": Chip(275e12, 1.23e12, 32e9, 1.05e9),
  "TPU v5 lite": Chip(197e12, 0.82e12, 16e9, 1.5e9),
  "TPU v5": Chip(459e12, 2.77e12, 95e9, 1.75e9),  # v5p
  "TPU v6 lite": Chip(918e12, 1.64e12, 32e9, 1.75e9),
}


def installed() -> bool:
  """Whether the TPU compiler is there."""
  return importlib.util.find_spec("libtpu") is not None


def devices(topology: str) -> Sequence[Any]:
  """The chips of a topology like "v5e:4x4", for the compiler only.

  Raises:
    InputError: the TPU compiler is not installed, or does not know the topology.
  """
  if not installed():
    raise InputError(f"The TPU compiler is not installed, and this needs it (no TPU): {INSTALL}.")
  # The library asks the cloud who it is, and lets only one process use it, unless told that there is no TPU.
  for name, value in (
    ("TPU_SKIP_MDS_QUERY", "1"),
    ("TPU_WORKER_HOSTNAMES", "localhost"),
    ("TPU_ACCELERATOR_TYPE", ""),
    ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ("TPU_MIN_LOG_LEVEL", "4"),
  ):
    os.environ.setdefault(name, value)
  from jax.experimental import topologies

  shape = topology.partition(":")[2]
  options: dict[str, Any] = {}
  if shape and set(shape.split("x")) == {"1"}:  # smaller than a host
    options["chips_per_host_bounds"] = [1, 1, 1]
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
  except Exception as error:  # whatever the library raises for a name that it does not know
    reason = str(error).strip().splitlines()[0]
    raise InputError(
      f"--topology={topology} is not one that the TPU compiler knows ({reason}): give a kind of chip and how they are "
      "arranged, like v5e:4x4, v5p:2x2x1 or v6e:2x2."
    ) from error


def chip_of(device: Any) -> Chip:
  """The data sheet of a device."""
  if device.device_kind not in CHIPS:
    raise InputError(f"{device.device_kind!r} is not in the list of chips in {__name__}: add its data sheet there.")
  return CHIPS[device.device_kind]


def on_cpu() -> None:
  """Keeps JAX from looking for a TPU in this process: the compiler is all that is wanted."""
  jax.config.update("jax_platforms", "cpu")
