"""Amazon Sports and Outdoors 2014 5-core: 35,598 users, 18,357 items, 296,337 interactions.

    python -m rastp_jax.prepare  --config=configs/sports.py:cpu [--raw_dir=DIR]       25 s
    python -m rastp_jax.train    --config=configs/sports.py:cpu --workdir=runs/sports  14 min in bfloat16 on a core
    python -m rastp_jax.evaluate --workdir=runs/sports

The time follows from Beauty's samples per second. Seen: `:cpu,best` for 40 epochs (seed 999, 10 beams), test recall@10
0.0456, after 97 minutes on one core beside other work (docs/results/quality.json). In the paper it is 0.0278 pruned
and 0.0289 dense.
"""

from rastp_jax.configs import base


def get_config(variants: str = ""):
  config = base.get_config(variants)
  config.data.dataset = "sports"
  return config
