"""Amazon Beauty 2014 5-core: 22,363 users, 12,101 items, 198,502 interactions.

    python -m rastp_jax.prepare  --config=configs/beauty.py:cpu [--raw_dir=DIR]       10 s
    python -m rastp_jax.train    --config=configs/beauty.py:cpu --workdir=runs/beauty  20 to 30 min on 2 cores
    python -m rastp_jax.evaluate --workdir=runs/beauty

Seen (seed 999, docs/results/beauty_cpu_*.json): test recall@10 0.0495 pruned and 0.0560 dense with 10 beams, 0.0533
and 0.0599 with 100, after 31 and 43 minutes of training on slow days of 2 cores (1,139 and 807 samples/s; the best
checkpoint was chosen on 4,000 validation users, now on all). With codes of text alone
(semantic_ids.collaborative_weight=0): 0.0421 pruned and 0.0427 dense with 10 beams, 0.0452 and 0.0477 with 100. The
paper-sized default and `:reference` have not been trained to the end yet; the paper reports recall@10 0.0656 pruned
and 0.0645 dense.
"""

from rastp_jax.configs import base


def get_config(variants: str = ""):
  config = base.get_config(variants)
  config.data.dataset = "beauty"
  return config
