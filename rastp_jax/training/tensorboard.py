"""TensorBoard's event file."""

import os
import pathlib
import time
from collections.abc import Mapping

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]


class EventWriter:
  """Writes scalars and histograms from the caller's own thread, so that a full disk is the caller's error.

  tensorboardX's SummaryWriter hands them to a thread instead. That thread dies of a full disk, and of a clock that is
  set back by a month; its queue then blocks the training loop.

  Args:
    directory: takes an event file of its own for each start of a run.
    step: steps done; what earlier starts wrote beyond them is hidden.

  Raises:
    OSError: the file cannot be written (as do the methods).
  """

  def __init__(self, directory: str | os.PathLike, step: int):
    pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
    # Its own names tell starts apart by the second.
    self._events = EventsWriter(str(pathlib.Path(directory) / "events"), filename_suffix=f".{time.time_ns()}")
    self._write(step + 1, session_log=SessionLog(status=SessionLog.START))

  def write(self, step: int, scalars: Mapping[str, float], histograms: Mapping[str, np.ndarray]) -> None:
    """Adds values of a step; a histogram's are whole numbers from 0, one bin each."""
    for name, value in scalars.items():
      self._write(step, summary=summary.scalar(name, value))
    for name, values in histograms.items():
      self._write(step, summary=summary.histogram(name, values, bins=np.arange(values.max() + 2)))
    self._events.flush()

  def close(self) -> None:
    self._events.close()

  def _write(self, step: int, **content) -> None:
    self._events.write_event(Event(wall_time=time.time(), step=step, **content))
