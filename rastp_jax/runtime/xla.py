"""What JAX computes on, and what XLA tells about a compiled program."""

import glob

import jax
from jax.sharding import Mesh

_ACCELERATORS = (
  # device file, what it is, the documented installation
  ("/dev/nvidia0", "an NVIDIA GPU", 'pip install -U "jax[cuda13]"'),
  ("/dev/accel[0-9]*", "a TPU", 'pip install -U "jax[tpu]"'),
  ("/dev/vfio/[0-9]*", "a TPU", 'pip install -U "jax[tpu]"'),
)


def describe_devices(mesh: Mesh, dtype: str) -> str:
  """What JAX computes on and in which dtype, with a warning if an accelerator of this machine is not used."""
  devices = jax.devices()
  axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
  text = (
    f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}{f'; {axes}' if axes else ''}) in {dtype}, "
    f"JAX {jax.__version__}."
  )
  if devices[0].platform == "cpu":
    for pattern, name, command in _ACCELERATORS:
      if glob.glob(pattern):
        return text + f"\nWARNING: this machine has {name}, but the installed JAX only uses the CPU: run {command}"
  return text


def fast_dtype() -> str:
  """The compute dtype that is faster here: "bfloat16", or "float32" on CPUs without AMX.

  CPUs of several processes may differ, and all must compute the same: float32.
  """
  if jax.default_backend() != "cpu":
    return "bfloat16"
  return "bfloat16" if jax.process_count() == 1 and _has_amx() else "float32"


def _has_amx(cpuinfo: str = "/proc/cpuinfo") -> bool:
  """Whether Linux reports matrix instructions for bfloat16."""
  try:
    with open(cpuinfo, encoding="utf-8", errors="replace") as lines:
      return any("amx_bf16" in line.split() for line in lines if line.startswith("flags"))
  except OSError:
    return False


def device_bytes(program: jax.stages.Compiled) -> int:
  """Memory of one device that a program needs, by XLA's own plan: arguments, results and everything in between."""
  memory = program.memory_analysis()
  if memory is None:
    raise ValueError("this backend does not tell a program's memory")
  return (
    memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
  )


def device_flops(program: jax.stages.Compiled) -> float:
  """Floating-point operations of one device in one call, by XLA's cost analysis of the optimised program."""
  return _costs(program)["flops"]


def written_flops(lowered: jax.stages.Lowered) -> float | None:
  """Floating-point operations of the program as JAX wrote it, in one call; None where the backend does not tell.

  On GPUs products are calls of a library, of which XLA's analysis of the optimised program counts nothing.
  """
  return (lowered.cost_analysis() or {}).get("flops")


def device_traffic(program: jax.stages.Compiled) -> float:
  """Bytes that one device reads and writes in one call, by the same analysis: caches are not taken into account."""
  return _costs(program)["bytes accessed"]


def _costs(program: jax.stages.Compiled) -> dict[str, float]:
  costs = program.cost_analysis()
  if costs is None:
    raise ValueError("this backend does not tell a program's costs")
  return costs[0] if isinstance(costs, list) else costs
