"""Amazon Beauty 2014 5-core: 22,363 users, 12,101 items, 198,502 interactions.

    python -m rastp_jax.prepare  --config=configs/beauty.py:cpu [--raw_dir=DIR]       10 s
    python -m rastp_jax.train    --config=configs/beauty.py:cpu --workdir=runs/beauty  10 min in bfloat16 on a core
    python -m rastp_jax.evaluate --workdir=runs/beauty

Seen on test, 10 beams, 16 epochs in bfloat16 on a GPU, three seeds, recall@10: `:cpu` 0.0595 ± 0.0004, `:cpu,rastp`
0.0521 ± 0.0008, `:cpu,dense` 0.0559 ± 0.0003 (docs/reduction.md); on 2 cores one seed of the last two took 31 and 43
minutes on slow days and came to 0.0495 and 0.0560. `:cpu,best` with eval.item_share=1: 0.0824 ± 0.0008, on a CPU core
43 minutes (docs/results.md). The paper-sized default and `:reference` have not been trained to the end yet; the paper
reports recall@10 0.0656 pruned and 0.0645 dense.
"""

from rastp_jax.configs import base


def get_config(variants: str = ""):
  config = base.get_config(variants)
  config.data.dataset = "beauty"
  return config
