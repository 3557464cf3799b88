"""Recommends items with an exported model. Needs jax and numpy, nothing else.

From the command line, item ids or ASINs in time order, the most recent one last:

    python load.py B004756YJA B004ZT0SSG

From Python:

    from load import ExportedModel

    model = ExportedModel("this/directory")
    model.recommend([["B004756YJA", "B004ZT0SSG"]])  # per history [(item, log-probability), …], best first

The command prints a sentence and ends with exit code 2 where an item is not in the catalogue, or a file is not the one
that was exported (SHA256SUMS has the checksums; `sha256sum -c SHA256SUMS` checks them too); `recommend` leaves such
items out.
"""

# This file is copied into every export as load.py, so it imports nothing of rastp_jax.

import hashlib
import io
import json
import pathlib
import re
import reprlib
import sys
from collections.abc import Mapping

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parent))  # flatbuffers, where it is not installed

import jax  # noqa: E402
from jax import export  # noqa: E402


def read_safetensors(path) -> dict[str, np.ndarray]:
  """Reads a .safetensors file of float32 and int32 arrays: 8 bytes of header length, a JSON header, the numbers."""
  data = pathlib.Path(path).read_bytes()
  start = 8 + int.from_bytes(data[:8], "little")
  arrays = {}
  for name, entry in json.loads(data[8:start]).items():
    if name != "__metadata__":
      dtype = {"F32": "<f4", "I32": "<i4"}[entry["dtype"]]
      first, end = (start + offset for offset in entry["data_offsets"])
      arrays[name] = np.frombuffer(data[first:end], dtype).reshape(entry["shape"])
  return arrays


def check_files(directory) -> set[str]:
  """The names of an export's files, whose contents are those that SHA256SUMS has.

  Raises:
    ValueError: one is missing or another, or there is no SHA256SUMS.
  """
  directory = pathlib.Path(directory)
  try:
    lines = (directory / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
  except (OSError, ValueError) as error:
    raise ValueError(f"{directory / 'SHA256SUMS'} cannot be read ({error}): copy the export again.") from error
  for name, digest in sums.items():
    path = directory / name
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
      raise ValueError(f"{path} is not the file that was exported: copy the export again.")
  return set(sums)


def item_ids(history) -> list[str]:
  """The ids of a history as text; each is text or a whole number (pandas writes 242.0 where others are missing).

  Raises:
    ValueError: it is not a list of ids.
  """
  try:
    if isinstance(history, (str, bytes, Mapping)):
      raise TypeError
    ids = list(history)
    for item in ids:
      whole = isinstance(item, float) and item.is_integer()
      if not (isinstance(item, (str, int)) and not isinstance(item, bool) or whole):
        raise TypeError
    return [str(item) for item in ids]  # ValueError: a number of thousands of digits
  except (TypeError, ValueError) as error:
    try:
      shown = reprlib.repr(history)
    except ValueError:
      shown = f"A {type(history).__name__} with such numbers"
    raise ValueError(f"{shown} is not a history: expected a list of item ids, the most recent one last.") from error


class ExportedModel:
  """The programs, weights and tables of one export; `directory` holds export.json.

  Raises:
    ValueError: a file is missing, or not the one that was exported.
  """

  def __init__(self, directory):
    directory = pathlib.Path(directory)
    names = check_files(directory)
    needed = {"export.json", "items.jsonl", "model.safetensors", "tables.safetensors"}
    if not needed <= names:
      raise ValueError(f"{directory / 'SHA256SUMS'} lacks {sorted(needed - names)[0]}: copy the export again.")
    self.info = json.loads((directory / "export.json").read_text())
    self.items = [json.loads(line) for line in (directory / "items.jsonl").read_text().splitlines()]
    self._weights = jax.device_put(read_safetensors(directory / "model.safetensors"))
    self._tables = jax.device_put(read_safetensors(directory / "tables.safetensors"))
    read = lambda name: export.deserialize(bytearray((directory / name).read_bytes()))
    self._programs = {int(items): jax.jit(read(name).call) for items, name in self.info["programs"].items()}
    self._rows = {item["item_id"]: row for row, item in enumerate(self.items)}
    for row, item in enumerate(self.items):
      if item["asin"]:
        self._rows.setdefault(item["asin"], row)

  def row(self, item):
    """The row of an item id or ASIN in the catalogue, None if it is not there."""
    name = str(item).strip()
    return self._rows.get(name, self._rows.get(re.sub(r"^(-?\d+)\.0+$", r"\1", name)))  # 242.0 is 242

  def decode(self, history):
    """Answers to (users, items) int32 rows of the catalogue, padded with -1; items is a key of info["programs"].

    Returns (users, beams) rows, best first, and their (users, beams) log-probabilities; -1 and -inf where the catalogue
    has fewer items than beams.
    """
    return self._programs[history.shape[1]](self._weights, self._tables, history)

  def recommend(self, histories, k=10):
    """The k most probable next items of each history; unknown items are left out. Empty where no item is known.

    Where the export leaves out the items of the history (info["exclude_history"]), so that fewer than k may be left of
    the beams, fewer come.

    Raises:
      ValueError: k is not a whole number from 1 to the beams, or a history is not a list of ids.
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
      raise ValueError(f"k={k!r} cannot be used: give a whole number of at least 1.")
    histories = [item_ids(history) for history in histories]
    if k > self.info["beam_width"]:
      raise ValueError(f"k={k} is more than this export's {self.info['beam_width']} beams: export it with more.")
    answers = [[] for _ in histories]
    known = [[row for row in map(self.row, history) if row is not None] for history in histories]
    excluded = [set(rows) if self.info["exclude_history"] else set() for rows in known]
    known = [rows[-self.info["max_items"] :] for rows in known]
    shorter = 0
    for items in sorted(self._programs):
      users = [user for user, rows in enumerate(known) if shorter < len(rows) <= items]
      shorter = items
      for first in range(0, len(users), 256):
        batch = users[first : first + 256]
        # A program is compiled for each number of users: here two, for few and for many.
        history = np.full((16 if len(batch) <= 16 else 256, items), -1, np.int32)
        for index, user in enumerate(batch):
          history[index, : len(known[user])] = known[user]
        for user, rows, scores in zip(batch, *map(np.asarray, self.decode(history)), strict=False):
          found = [(row, float(score)) for row, score in zip(rows.tolist(), scores, strict=True) if row >= 0]
          answers[user] = [(self.items[row], score) for row, score in found if row not in excluded[user]][:k]
    return answers


def printable(text):
  """The text with control characters (and others that do not show) escaped: titles come from anywhere."""
  return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def main(history):
  """Prints the recommendations for a history of item ids; returns the exit code."""
  if not history:
    print("error: no item is given: give item ids or ASINs in time order, like load.py ITEM ITEM.", file=sys.stderr)
    return 2
  try:
    model = ExportedModel(pathlib.Path(__file__).parent)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  unknown = [item for item in history if model.row(item) is None]
  if unknown:
    names = f"{unknown[0][:80]!r}" + (f" and {len(unknown) - 1} more are" if len(unknown) > 1 else " is")
    print(f"error: {names} not in the catalogue: give item ids or ASINs of items.jsonl.", file=sys.stderr)
    return 2
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal need not have every letter
  for item, score in model.recommend([history], k=min(10, model.info["beam_width"]))[0]:
    item_id, asin, title = (printable(item[name]) for name in ("item_id", "asin", "title"))
    print(f"{score:8.3f}  {item_id:>8}  {asin:10}  {title}")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
