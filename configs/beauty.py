"""Amazon Beauty 2014 5-core: 22,363 users, 12,101 items, 198,502 interactions.

    python -m rastp_jax.prepare  --config=configs/beauty.py:cpu [--raw_dir=DIR]       10 s
    python -m rastp_jax.train    --config=configs/beauty.py:cpu --workdir=runs/beauty  19 min of training on 2 cores
    python -m rastp_jax.evaluate --workdir=runs/beauty

Seen (seed 999, docs/results/beauty_cpu_*.json): test recall@10 0.0421 with 10 beams and 0.0452 with 100, pruned;
0.0427 and 0.0477 without pruning, in 25 minutes. The paper-sized default and `:reference` have not been trained to the
end yet; the paper reports recall@10 0.0656 pruned and 0.0645 dense.
"""

from configs import base


def get_config(variants: str = ""):
  config = base.get_config(variants)
  config.data.dataset = "beauty"
  return config
