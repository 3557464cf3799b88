"""Amazon Toys and Games 2014 5-core: 19,412 users, 11,924 items, 167,597 interactions.

    python -m rastp_jax.prepare  --config=configs/toys.py:cpu [--raw_dir=DIR]      15 s
    python -m rastp_jax.train    --config=configs/toys.py:cpu --workdir=runs/toys  8 min in bfloat16 on a core
    python -m rastp_jax.evaluate --workdir=runs/toys

The time follows from Beauty's samples per second. Seen on test, 10 beams, three seeds, recall@10: `:cpu` 0.0569,
`:cpu,rastp` 0.0567, `:cpu,dense` 0.0564 (16 epochs, mostly on a GPU, docs/reduction.md); one seed of `:cpu,best`
0.0839 (56 minutes on a core, docs/results.md). The paper reports 0.0504 pruned and 0.0499 dense.
"""

from rastp_jax.configs import base


def get_config(variants: str = ""):
  config = base.get_config(variants)
  config.data.dataset = "toys"
  return config
