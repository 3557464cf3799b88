"""Recommends to every test user of a run and checks the answers against the raw files, without code of rastp_jax.

    python docs/check_recommendations.py WORKDIR RAW_DIR OUTPUT.json

WORKDIR is an evaluated run (its eval_test.json is compared with), RAW_DIR holds the sequences.txt.gz and items.jsonl.gz
its dataset was prepared from. `python -m rastp_jax.recommend` runs as a process of its own; OUTPUT.json gets its last
words (users/s), its memory, what it answered that is no item or a duplicate, and hits beside those of `evaluate`.
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


def main(workdir: str, raw_dir: str, output: str) -> None:
  with tempfile.TemporaryDirectory() as place:
    answers = pathlib.Path(place) / "recs.jsonl"
    command = ["python", "-m", "rastp_jax.recommend", f"--workdir={workdir}", "--split=test", f"--output={answers}"]
    done = subprocess.run([sys.executable, *command[1:]], check=True, stdout=subprocess.PIPE, text=True)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    evaluated = json.loads((pathlib.Path(workdir) / "eval_test.json").read_text())
    counts = count(answers, pathlib.Path(raw_dir), evaluated)
  result = {
    "command": shlex.join(["python", *sys.orig_argv[1:]]),
    "recommend": shlex.join([*command[:-1], "--output=recs.jsonl"]),
    "said": done.stdout.strip().splitlines()[-1].partition(": ")[2],
    "peak_memory_gb": round(memory / 1e9, 2),
    **counts,
  }
  print(json.dumps(result, indent=2))
  pathlib.Path(output).write_text(json.dumps(result, indent=2) + "\n")


def count(recommendations: pathlib.Path, raw_dir: pathlib.Path, evaluated: dict) -> dict:
  """Answers that are no item, duplicates, and Recall and NDCG from the raw sequences' last items."""
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
      ranks.append(items.index(target) if target in items else len(items))
  counts = {"users": len(ranks), "answers": answers, "non_items": non_items, "duplicates": duplicates}
  for k in evaluated["config"]["eval"]["ks"]:
    hits = sum(rank < k for rank in ranks)
    gain = math.fsum(1 / math.log2(rank + 2) for rank in ranks if rank < k)
    counts[f"hits@{k}"] = hits
    counts[f"hits@{k} by evaluate"] = round(evaluated[f"recall@{k}"] * evaluated["users"])
    counts[f"recall@{k} equal"] = hits / len(ranks) == evaluated[f"recall@{k}"]
    counts[f"ndcg@{k} differs by"] = abs(gain / len(ranks) - evaluated[f"ndcg@{k}"])
  return counts


if __name__ == "__main__":
  main(*sys.argv[1:])
