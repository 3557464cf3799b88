"""Recommends to every test user of a run and checks the answers against the raw files.

    python -m rastp_jax.experiment recommendations --workdir=runs/beauty/pruned --raw_dir=DIR \\
      --output=docs/results/recommend_beauty.json

The workdir is an evaluated run, whose test metrics are compared with; DIR holds the sequences.txt.gz and items.jsonl.gz
that its dataset was prepared from. `python -m rastp_jax.recommend` runs as a process of its own, and what it writes is
counted without other code of this package. The result has its last line (users/s), its memory, how many answers are not
items or are duplicates, and hits beside those of `evaluate`.
"""

import gzip
import json
import math
import pathlib
import resource
import shlex
import subprocess
import sys
import tempfile
from typing import Any

from absl import flags

from rastp_jax.errors import InputError
from rastp_jax.experiments import results
from rastp_jax.runtime import cli, files
from rastp_jax.training.workdir import Workdir

_WORKDIR = flags.DEFINE_string("workdir", "", "An evaluated run.")
_RAW_DIR = flags.DEFINE_string("raw_dir", "", "The raw files that its dataset was prepared from.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result. Default: print only.")


def main() -> None:
  cli.require(_WORKDIR, "runs/beauty")
  cli.require(_RAW_DIR, "raw/beauty")
  if _OUTPUT.value:
    files.check_writable(_OUTPUT.value)
  evaluation = Workdir(_WORKDIR.value).evaluation("test")
  if not evaluation.exists():
    raise InputError(f"There is no file {evaluation}: run `python -m rastp_jax.evaluate` on the workdir first.")
  evaluated = json.loads(evaluation.read_text())
  with tempfile.TemporaryDirectory() as directory:
    answers = pathlib.Path(directory) / "recs.jsonl"
    command = ["python", "-m", "rastp_jax.recommend", f"--workdir={_WORKDIR.value}", "--split=test"]
    command += ["-k", str(max(cut_offs(evaluated)))]
    done = subprocess.run([sys.executable, *command[1:], f"--output={answers}"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
      raise InputError(f"`{shlex.join(command)}` failed with exit code {done.returncode}: see what it said above.")
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    counts = count(answers, pathlib.Path(_RAW_DIR.value), evaluated)
  result = {
    "recommend": shlex.join([*command, "--output=recs.jsonl"]),
    "last_line": done.stdout.strip().splitlines()[-1].partition(": ")[2],
    "peak_memory_gb": round(memory / 1e9, 2),
    **counts,
  }
  print(json.dumps(result, indent=2))
  if _OUTPUT.value:
    results.write_result(_OUTPUT.value, result)


def cut_offs(evaluated: dict[str, Any]) -> list[int]:
  """Where an evaluation measured recall, ascending."""
  return sorted(int(name.partition("@")[2]) for name in evaluated if name.startswith("recall@"))


def count(recommendations: pathlib.Path, raw_dir: pathlib.Path, evaluated: dict[str, Any]) -> dict[str, Any]:
  """Answers that are not items, duplicates, and recall and NDCG from the raw sequences' last items."""
  read = lambda name: gzip.decompress((raw_dir / name).read_bytes()).decode().splitlines()
  catalogue = {str(json.loads(line)["item_id"]) for line in read("items.jsonl.gz")}
  answers, non_items, duplicates, ranks = 0, 0, 0, []
  with recommendations.open(encoding="utf-8") as file:
    for line, sequence in zip(map(json.loads, file), read("sequences.txt.gz"), strict=True):
      user, *_, target = sequence.split()
      items = [item["item_id"] for item in line["recommendations"]]
      assert line["user"] == user
      answers += len(items)
      non_items += len(set(items) - catalogue)
      duplicates += len(items) - len(set(items))
      ranks.append(items.index(target) if target in items else math.inf)
  counts = {"users": len(ranks), "answers": answers, "non_items": non_items, "duplicates": duplicates}
  for k in cut_offs(evaluated):
    hits = sum(rank < k for rank in ranks)
    gain = math.fsum(1 / math.log2(rank + 2) for rank in ranks if rank < k)
    counts[f"hits@{k}"] = hits
    counts[f"hits@{k} by evaluate"] = round(evaluated[f"recall@{k}"] * evaluated["users"])
    counts[f"recall@{k} equal"] = hits / len(ranks) == evaluated[f"recall@{k}"]
    counts[f"ndcg@{k} differs by"] = abs(gain / len(ranks) - evaluated[f"ndcg@{k}"])
  return counts
