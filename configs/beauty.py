"""Amazon Beauty 2014 5-core: 22,363 users, 12,101 items, 198,502 interactions.

    python -m rastp_jax.prepare  --config=configs/beauty.py:cpu [--raw_dir=DIR]       10 s
    python -m rastp_jax.train    --config=configs/beauty.py:cpu --workdir=runs/beauty  10 min in bfloat16 on a core
    python -m rastp_jax.evaluate --workdir=runs/beauty

Seen (seed 999, 10 beams): `:cpu` for 12 of its 16 epochs in bfloat16, validation recall@10 0.0711
(docs/results/beauty_item_sum_12_epochs.json). `:cpu,rastp` and `:cpu,dense` for 16 epochs, test recall@10 0.0495 and
0.0560, with 100 beams 0.0533 and 0.0599, after 31 and 43 minutes of training on slow days of 2 cores
(docs/results/beauty_cpu_*.json, which call the first `:cpu`, as it was then); with codes of text alone
(semantic_ids.collaborative_weight=0) 0.0421 and 0.0427. `:cpu,best`: docs/results.md. The paper-sized default and
`:reference` have not been trained to the end yet; the paper reports recall@10 0.0656 pruned and 0.0645 dense.
"""

from rastp_jax.configs import base


def get_config(variants: str = ""):
  config = base.get_config(variants)
  config.data.dataset = "beauty"
  return config
