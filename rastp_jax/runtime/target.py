"""Which devices a program is traced for: the forms of products and of attention follow it.

A program may be made for devices that this process does not have, so JAX's default backend does not tell. Whoever
compiles for a mesh, or for several platforms at once, says so around the tracing; all else is traced for the default
backend.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator

import jax
from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True)
class Target:
  """Attributes:
  platform: "cpu", "gpu" or "tpu".
  mesh: the devices that XLA splits the program over; None where each device gets its own program.
  """

  platform: str
  mesh: Mesh | None


_TARGET: contextvars.ContextVar[Target | None] = contextvars.ContextVar("target", default=None)


@contextlib.contextmanager
def tracing_for(mesh: Mesh, *, split: bool = True) -> Iterator[None]:
  """Around the tracing of a program whose arrays live on a mesh.

  Args:
    mesh: the devices.
    split: False inside `jax.shard_map`, where each device has its own part already.
  """
  with _tracing(Target(mesh.devices.flat[0].platform, mesh if split else None)):
    yield


@contextlib.contextmanager
def tracing_as(platform: str) -> Iterator[None]:
  """Around the tracing of a program for one device of a platform; the forms of "cpu" run everywhere."""
  with _tracing(Target(platform, None)):
    yield


@contextlib.contextmanager
def _tracing(target: Target) -> Iterator[None]:
  token = _TARGET.set(target)
  try:
    yield
  finally:
    _TARGET.reset(token)


def current() -> Target:
  """What is being traced for."""
  return _TARGET.get() or Target(jax.default_backend(), None)


def on_cpu() -> bool:
  return current().platform == "cpu"
