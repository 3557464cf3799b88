"""Several processes as one run: joining them, failing together for one reason, and ending when one of them is lost."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from rastp_jax.errors import InputError

# A process that does not answer for this long counts as lost. JAX's default of 100 s would leave a pod idle for longer.
HEARTBEAT_SECONDS = 30


def join(coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> None:
  """Joins the run's other processes; must come before anything else asks JAX for devices.

  With no argument given, JAX's own detection decides: Cloud TPU (also GKE), SLURM's srun, Open MPI and Kubernetes
  (with jax[k8s]) are joined, and anywhere else the process stays alone.

  Args:
    coordinator_address: HOST:PORT of process 0, any free port; the same for all.
    num_processes: how many there are; 1: stay alone, whatever the surroundings look like.
    process_id: which one this is, from 0.

  Raises:
    InputError: some but not all of the three are given, or the others cannot be reached.
  """
  given = {
    "--coordinator_address": coordinator_address,
    "--num_processes": num_processes,
    "--process_id": process_id,
  }
  missing = [name for name, value in given.items() if value is None]
  if num_processes == 1:
    return
  if 0 < len(missing) < 3:
    raise InputError(f"{' and '.join(missing)} missing: several processes need all of {', '.join(given)}.")
  try:
    jax.distributed.initialize(
      coordinator_address, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
    )
  except ValueError as error:
    if not missing or "coordinator_address should be defined" not in str(error):
      raise InputError(f"The processes of this run cannot be joined ({error}): check {', '.join(given)}.") from error
  except (RuntimeError, KeyError, OSError) as error:
    raise InputError(
      f"The processes of this run cannot be joined ({type(error).__name__}: {str(error).splitlines()[0][:200]}): start "
      f"all of them with the same --coordinator_address, or pass --num_processes=1 to run alone."
    ) from error


def allgather_text(text: str) -> list[str]:
  """Every process's text, in process order. All must call it at the same point."""
  if jax.process_count() == 1:
    return [text]
  encoded = np.frombuffer(text.encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.asarray(len(encoded), np.int32))
  padded = np.zeros(max(int(lengths.max()), 1), np.uint8)
  padded[: len(encoded)] = encoded
  rows = multihost_utils.process_allgather(padded)
  return [rows[index, :length].tobytes().decode(errors="replace") for index, length in enumerate(lengths)]


def allgather(values: np.ndarray) -> np.ndarray:
  """Every host's array, bit for bit: (hosts, *values.shape).

  JAX would round 64-bit numbers to 32 bits on the way, so they travel as bytes.

  Args:
    values: of the same shape and dtype on every host, at least 1-d.
  """
  if jax.process_count() == 1:
    return values[None]
  gathered = multihost_utils.process_allgather(np.ascontiguousarray(values).view(np.uint8))
  return np.ascontiguousarray(gathered).view(values.dtype)


@contextlib.contextmanager
def raise_on_all() -> Iterator[None]:
  """An `InputError` inside, in any process, is raised in all of them: nobody goes on to wait for one that stopped."""
  sentence = ""
  try:
    yield
  except InputError as error:
    sentence = str(error)
  for index, other in enumerate(allgather_text(sentence)):
    if other:
      raise InputError(other if jax.process_count() == 1 else f"Process {index} of {jax.process_count()}: {other}")


def check_same(facts: Mapping[str, str]) -> None:
  """Raises InputError in all processes if one of them sees another value than process 0, by the first fact's name."""
  first, *others = [json.loads(text) for text in allgather_text(json.dumps(dict(facts)))]
  for index, other in enumerate(others, 1):
    for name, value in first.items():
      if other.get(name) != value:
        raise InputError(
          f"Process {index} has {name} {other.get(name)}, but process 0 has {value}: start all processes with the same "
          "settings and the same prepared data."
        )


def abort_if_peer_lost(error: Exception, code: int) -> None:
  """If this is one of several processes, ends it at once, with a sentence that says how to go on.

  A failed collective means that another process is gone. An ordinary exit would wait for it.
  """
  if jax.process_count() > 1:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    print(
      f"error: Process {jax.process_index()} lost another process of this run ({reason}): start all of them again, "
      "training goes on from the last checkpoint.",
      file=sys.stderr,
      flush=True,
    )
    os._exit(code)
