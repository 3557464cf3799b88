"""The README.md of an exported model."""

from collections.abc import Mapping
from typing import Any

import jinja2

from rastp_jax.loading import SavedModel
from rastp_jax.model import pruning

_CARD = """\
---
library_name: jax
tags: [recommendation, generative-retrieval, semantic-ids, rastp]
---
# {{ dataset }} recommender

A generative recommender made with rastp_jax: a T5-style encoder-decoder reads a user's history as semantic IDs \
({{ depth }} codes an item) and generates the next item's, level by level, walking only along codes of items that \
exist. {{ pruned }}

|  |  |
| --- | --- |
| parameters | {{ "{:,}".format(parameters) }}, float32 |
| history | the last {{ max_items }} items; a program for each length up to {{ lengths }} items |
| answers | {{ beam_width }} beams a user, always items, never one twice; scores are log-probabilities |
| trained on | {{ dataset }}: {{ "{:,}".format(users) }} users, {{ "{:,}".format(items) }} items, leave-one-out \
(each user's last two items held out) |
| dataset fingerprint | `{{ dataset_fingerprint }}` |
| semantic IDs | {{ method }}; fingerprint `{{ semantic_ids_fingerprint }}` |
| checkpoint | step {{ "{:,}".format(step) }} |

## Quality

{% if figures -%}
Test split, {{ "{:,}".format(figures.users) }} users, all items ranked, {{ figures.beam_width }} beams, \
{{ "constrained to items" if figures.constrained else "unconstrained" }}, \
{{ "{:,}".format(figures.invalid_beams) }} beams that are no item:

|{% for name in figures.scores %} {{ name }} |{% endfor %}
|{% for name in figures.scores %} ---: |{% endfor %}
|{% for value in figures.scores.values() %} {{ "%.4f" | format(value) }} |{% endfor %}
{%- else -%}
Not known: this checkpoint was not evaluated on the test split when it was exported.
{%- endif %}

## Use

Python with jax and numpy, nothing else (`pip install jax`, or `pip install "jax[cuda13]"`, `"jax[tpu]"`):

```bash
python load.py ITEM ITEM ITEM       # item ids or ASINs, the most recent one last
```

```python
from load import ExportedModel

model = ExportedModel("DIR")        # this directory
model.recommend([["ITEM", "ITEM"]], k=10)   # per history [(item, log-probability), …], best first
```

`load.py` is short: it also shows how to call the programs (`decode_N_items.jax`, made by `jax.export` of JAX \
{{ jax }} for {{ platforms | join(", ") }}; JAX reads them for at least six months after that release) \
with codes of your own.

`model.safetensors` holds the weights under their names in rastp_jax, `export.json` every setting of the run, \
`flatbuffers/` (Apache License 2.0) is what `jax.export` reads its files with.

## Limits

It knows the {{ "{:,}".format(items) }} items it was trained on and nothing else of them than their codes and who \
bought them in which order: new items need new codes and training, and what was popular then is favoured now.
"""


def render(info: Mapping[str, Any], saved: SavedModel, figures: Mapping[str, Any] | None) -> str:
  """Markdown.

  Args:
    info: content of export.json.
    saved: the exported model.
    figures: content of an eval_test.json; left out where it is of another checkpoint or another way of pruning.
  """
  config = saved.config
  stages = pruning.budgets(config.pruning, config.data.bucket_items[-1] * saved.model.item_length)
  if stages:
    kept = ", ".join(f"{count} after block {block + 1}" for block, count in stages.items())
    whole = config.data.bucket_items[-1] * saved.model.item_length
    pruned = (
      f"Between encoder blocks, RASTP (arXiv 2511.16943, criterion `{config.pruning.criterion}`) drops the tokens that "
      f"matter least: of the longest history's {whole} positions it keeps {kept}."
    )
  else:
    pruned = "It is decoded without pruning."
  return jinja2.Template(_CARD, undefined=jinja2.StrictUndefined, keep_trailing_newline=True).render(
    **info,
    dataset=config.data.dataset,
    depth=saved.semantic_ids.depth,
    lengths=", ".join(map(str, config.data.bucket_items)),
    users=saved.histories.num_users,
    items=saved.semantic_ids.num_items,
    method=_method(saved.semantic_ids.provenance),
    pruned=pruned,
    figures=_scores(figures, info),
  )


def _method(provenance: Mapping[str, Any]) -> str:
  known = {name: provenance[name] for name in ("method", "levels", "width", "embeddings") if name in provenance}
  return "; ".join(f"{name}: {value}" for name, value in known.items()) or "of unknown origin"


def _scores(figures: Mapping[str, Any] | None, info: Mapping[str, Any]) -> dict[str, Any] | None:
  """The figures that tell of this very model, or None."""
  if figures is None or figures["step"] != info["step"] or figures["config"]["pruning"] != _as_json(info, "pruning"):
    return None
  ks = figures["config"]["eval"]["ks"]
  return {
    **{name: figures[name] for name in ("users", "beam_width", "invalid_beams")},
    "constrained": figures["config"]["eval"]["constrained"],
    "scores": {f"{metric}@{k}": figures[f"{metric}@{k}"] for metric in ("recall", "ndcg") for k in ks},
  }


def _as_json(info: Mapping[str, Any], section: str) -> dict[str, Any]:
  """A section of the settings as it looks once written: tuples become lists."""
  return {name: list(value) if isinstance(value, tuple) else value for name, value in info["config"][section].items()}
