"""Counts what recommend wrote for the users of raw files, without any code of rastp_jax.

    python docs/count_recommendations.py RECS.jsonl RAW_DIR EVAL.json

RECS.jsonl is `python -m rastp_jax.recommend --split=test`'s output, RAW_DIR holds the sequences.txt.gz and
items.jsonl.gz the dataset was prepared from, EVAL.json is what `python -m rastp_jax.evaluate` wrote for the same run.
"""

import gzip
import json
import math
import pathlib
import sys


def main(recommendations: str, raw_dir: str, evaluation: str):
  read = lambda name: gzip.decompress((pathlib.Path(raw_dir) / name).read_bytes()).decode().splitlines()
  catalogue = {str(json.loads(line)["item_id"]) for line in read("items.jsonl.gz")}
  answers, non_items, duplicates, ranks = 0, 0, 0, []
  with open(recommendations, encoding="utf-8") as file:
    for line, sequence in zip(map(json.loads, file), read("sequences.txt.gz"), strict=True):
      user, *_, target = sequence.split()
      items = [item["item_id"] for item in line["recommendations"]]
      assert line["user"] == user
      answers += len(items)
      non_items += len(set(items) - catalogue)
      duplicates += len(items) - len(set(items))
      ranks.append(items.index(target) if target in items else len(items))
  figures = json.loads(pathlib.Path(evaluation).read_text())
  counts = {"users": len(ranks), "answers": answers, "non_items": non_items, "duplicates": duplicates}
  for k in figures["config"]["eval"]["ks"]:
    hits = sum(rank < k for rank in ranks)
    gain = math.fsum(1 / math.log2(rank + 2) for rank in ranks if rank < k)
    counts[f"hits@{k}"] = hits
    counts[f"hits@{k} by evaluate"] = round(figures[f"recall@{k}"] * figures["users"])
    counts[f"recall@{k} equal"] = hits / len(ranks) == figures[f"recall@{k}"]
    counts[f"ndcg@{k} differs by"] = abs(gain / len(ranks) - figures[f"ndcg@{k}"])
  print(json.dumps(counts, indent=2))


if __name__ == "__main__":
  main(*sys.argv[1:])
