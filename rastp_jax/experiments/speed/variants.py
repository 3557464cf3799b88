"""What the benchmark compares: ways to train one and the same model on the same samples."""

import dataclasses
from collections.abc import Sequence

from rastp_jax.config import Config

PADDED_ITEMS = 30  # the published code pads every history to this many items, the target's empty position included
PUBLISHED_BUDGET = 50  # tokens it keeps of those 30 * 5 positions
SHORT_ITEMS = 10


def make_variants(config: Config, lengths: Sequence[int]) -> dict[str, Config]:
  """The compared settings under their names, all with the published sampling and `config`'s model and reduction.

  - padded_dense, padded_pruned: every history padded to one length, as published.
  - bucketed_dense, bucketed_pruned: `lengths`; pruned by `config`'s own budget, a share of each bucket.
  - bucketed_keep50: the published budget; buckets no longer than that stay dense, so the tokens that survive are those
    of padded_pruned.
  - last10_dense: no pruning, but only the most recent 10 items.

  Args:
    config: model, training and reduction.
    lengths: the buckets' lengths, in items (`batches.buckets.bucket_lengths`).
  """
  data = dataclasses.replace(config.data, sampling="subsequences", mix_users=True, bucket_lengths=tuple(lengths))
  padded = dataclasses.replace(data, bucket_lengths=(max(PADDED_ITEMS, data.max_items),))
  buckets = tuple(items for items in lengths if items < SHORT_ITEMS) + (SHORT_ITEMS,)
  short = dataclasses.replace(data, max_items=SHORT_ITEMS, bucket_lengths=buckets)
  dense = dataclasses.replace(config.reduction, method="none")
  stages = len(config.reduction.after_block)
  keep50 = dataclasses.replace(config.reduction, keep_tokens=(PUBLISHED_BUDGET,) * stages)
  settings = {
    "padded_dense": (padded, dense),
    "padded_pruned": (padded, config.reduction),
    "bucketed_dense": (data, dense),
    "bucketed_keep50": (data, keep50),
    "bucketed_pruned": (data, config.reduction),
    "last10_dense": (short, dense),
  }
  return {name: dataclasses.replace(config, data=d, reduction=r) for name, (d, r) in settings.items()}
