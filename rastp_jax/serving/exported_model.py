"""Answers histories with an exported recommender. Needs jax and numpy, nothing else.

From the command line, item ids or ASINs in time order, the most recent one last:

    python load.py B004756YJA B004ZT0SSG

From Python:

    from load import ExportedModel

    model = ExportedModel("this/directory")
    model.recommend([["B004756YJA", "B004ZT0SSG"]])  # per history [(item, log-probability), …], best first
"""

# This file is copied into every export as load.py, so it imports nothing of the program that made it.

import json
import pathlib
import sys

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


class ExportedModel:
  """The programs, weights and tables of one export; `directory` holds export.json."""

  def __init__(self, directory):
    directory = pathlib.Path(directory)
    self.info = json.loads((directory / "export.json").read_text())
    self.items = [json.loads(line) for line in (directory / "items.jsonl").read_text().splitlines()]
    self.codes = read_safetensors(directory / "semantic_ids.safetensors")["codes"]  # (items, levels)
    self._weights = jax.device_put(read_safetensors(directory / "model.safetensors"))
    self._transitions = jax.device_put(read_safetensors(directory / "transitions.safetensors"))
    read = lambda name: export.deserialize(bytearray((directory / name).read_bytes()))
    self._programs = {int(items): jax.jit(read(name).call) for items, name in self.info["programs"].items()}
    self._rows = {item["item_id"]: row for row, item in enumerate(self.items)}
    for row, item in enumerate(self.items):
      if item["asin"]:
        self._rows.setdefault(item["asin"], row)
    self._row_of_codes = {codes.tobytes(): row for row, codes in enumerate(self.codes)}

  def decode(self, history):
    """Beams of (users, items, levels) int32 codes, padded on the right with -1; items is a key of info["programs"].

    Returns (users, beams, levels) codes, best first, and their (users, beams) log-probabilities; -1 and -inf where the
    catalogue has fewer items than beams.
    """
    return self._programs[history.shape[1]](self._weights, self._transitions, history)

  def recommend(self, histories, k=10):
    """The k most probable next items of each history; unknown items are left out, no known item gives no answer."""
    if k > self.info["beam_width"]:
      raise ValueError(f"k={k} is more than this export's {self.info['beam_width']} beams: export it with more.")
    answers = [[] for _ in histories]
    known = [[self._rows[i] for i in map(str, history) if i in self._rows] for history in histories]
    known = [rows[-self.info["max_items"] :] for rows in known]
    shorter = 0
    for items in sorted(self._programs):
      users = [user for user, rows in enumerate(known) if shorter < len(rows) <= items]
      shorter = items
      for first in range(0, len(users), 256):
        batch = users[first : first + 256]
        # A program is compiled for each number of users it meets: here two, for a few and for many.
        history = np.full((16 if len(batch) <= 16 else 256, items, self.codes.shape[1]), -1, np.int32)
        for place, user in enumerate(batch):
          history[place, : len(known[user])] = self.codes[known[user]]
        for user, beams, scores in zip(batch, *map(np.asarray, self.decode(history)), strict=False):
          rows = [self._row_of_codes[codes.tobytes()] for codes in beams[np.isfinite(scores)]]
          answers[user] = [(self.items[row], float(score)) for row, score in zip(rows, scores, strict=False)][:k]
    return answers


if __name__ == "__main__":
  for item, score in ExportedModel(pathlib.Path(__file__).parent).recommend([sys.argv[1:]])[0]:
    print(f"{score:8.3f}  {item['item_id']:>8}  {item['asin']:10}  {item['title']}")
