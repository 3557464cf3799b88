"""What XLA tells about a compiled program."""

import jax


def device_bytes(program: jax.stages.Compiled) -> int:
  """Memory of one device that a program needs, by XLA's own plan: arguments, results and everything in between."""
  memory = program.memory_analysis()
  return (
    memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
  )


def device_flops(program: jax.stages.Compiled) -> float:
  """Floating-point operations of one device in one call, by XLA's cost analysis of the optimised program."""
  return _costs(program)["flops"]


def device_traffic(program: jax.stages.Compiled) -> float:
  """Bytes that one device reads and writes in one call, by the same analysis: caches are not taken into account."""
  return _costs(program)["bytes accessed"]


def _costs(program: jax.stages.Compiled) -> dict[str, float]:
  costs = program.cost_analysis()
  return costs[0] if isinstance(costs, list) else costs
