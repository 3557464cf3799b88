"""The README.md of an exported model."""

from collections.abc import Mapping
from typing import Any

import jinja2

from rastp_jax import config as config_lib
from rastp_jax.config import May
from rastp_jax.reduction import schedule
from rastp_jax.semantic_ids.codes import SemanticIds
from rastp_jax.training.runs import SavedModel

_CARD = """\
---
library_name: jax
tags: [recommendation, generative-retrieval, semantic-ids, rastp]
---
# {{ dataset }} recommender

A generative recommender made with rastp_jax: a T5-style encoder-decoder reads a user's history as semantic IDs \
({{ depth }} codes per item) and generates the next item's, level by level, restricted to codes of items that \
exist. {{ reduction }}

|  |  |
| --- | --- |
| parameters | {{ "{:,}".format(parameters) }}, float32 |
| history | the last {{ max_items }} items; one program per length: up to {{ lengths }} items |
| answers | {{ beam_width }} beams per user, all of them items, none repeated; scores are log-probabilities |
| trained on | {{ dataset }}: {{ "{:,}".format(users) }} users, {{ "{:,}".format(items) }} items, {{ held_out }} |
| dataset fingerprint | `{{ dataset_fingerprint }}` |
| semantic IDs | {{ method }}; fingerprint `{{ semantic_ids_fingerprint }}` |
| checkpoint | step {{ "{:,}".format(step) }} |

## Quality

{% if metrics -%}
Test split, {{ "{:,}".format(metrics.users) }} users, all items ranked, {{ metrics.beam_width }} beams, \
{{ "constrained to items" if metrics.constrained else "unconstrained" }}, \
{{ "{:,}".format(metrics.invalid_beams) }} beams that are not an item:

|{% for name in metrics.scores %} {{ name }} |{% endfor %}
|{% for name in metrics.scores %} ---: |{% endfor %}
|{% for value in metrics.scores.values() %} {{ "%.4f" | format(value) }} |{% endfor %}
{%- else -%}
Unknown: before it was exported, this checkpoint was not evaluated on the test split with the settings exported here.
{%- endif %}

## Use

Python with jax and numpy, nothing else (`pip install jax`, or `pip install "jax[cuda13]"`, `"jax[tpu]"`):

```bash
python load.py ITEM ITEM ITEM       # item ids or ASINs, the most recent one last
```

```python
from load import ExportedModel

model = ExportedModel("DIR")        # this directory
model.recommend([["ITEM", "ITEM"]], k={{ [beam_width, 10] | min }})  # of each [(item, log-probability), …], best first
```

`load.py` is short: it also shows how to call the programs (`decode_N_items.jax`, made by `jax.export` of JAX \
{{ jax }} for {{ platforms | join(", ") }}; JAX reads them for at least six months after that release) \
with codes of your own.

`model.safetensors` holds the weights under their names in rastp_jax, `export.json` every setting of the run, \
`flatbuffers/` (Apache License 2.0) is what `jax.export` reads its files with.

## Limits

It knows only the {{ "{:,}".format(items) }} items it was trained on, by their codes and by the order in which users \
took them: new items need new codes and new training, and items that were popular in the training data are favoured.
"""

# Settings of an evaluation that stand beside its metrics, so that the export's may be others.
_SHOWN = {"eval.beam_width", "eval.constrained", "eval.top_k"}


def render(info: Mapping[str, Any], saved: SavedModel, metrics: Mapping[str, Any] | None) -> str:
  """Markdown.

  Args:
    info: content of export.json.
    saved: the exported model.
    metrics: of an evaluation on the test split (`results.read_metrics`); left out where it is of another checkpoint or
      of settings that answer otherwise.
  """
  return jinja2.Template(_CARD, undefined=jinja2.StrictUndefined, keep_trailing_newline=True).render(
    **info,
    dataset=saved.config.data.dataset,
    depth=saved.semantic_ids.depth,
    lengths=", ".join(map(str, saved.lengths)),
    users=len(saved.histories.training_spans()[0]),
    held_out=_held_out(saved),
    items=saved.semantic_ids.num_items,
    method=_method(saved.semantic_ids),
    reduction=_reduction(saved),
    metrics=_quality(metrics, info),
  )


def _held_out(saved: SavedModel) -> str:
  """What of the histories was kept from training, in a few words."""
  evaluated, data = saved.histories.num_users, saved.config.data
  if not evaluated:
    return "nothing held out"
  if data.split == "time":
    return (
      f"split at data.time_cut={data.time_cut} (of {evaluated:,} users, the first item after it and the last one "
      "before it held out)"
    )
  return "leave-one-out (each user's last two items held out)"


def _reduction(saved: SavedModel) -> str:
  """What becomes of the tokens of the longest history, in a sentence."""
  config, layout = saved.config.reduction, saved.model.layout
  positions = saved.lengths[-1] * layout.item_length
  stages = schedule.stages(config, positions, layout)
  if not stages:
    return "The encoder keeps every token of the history."
  methods = dict.fromkeys(stage.method for stage in stages.values())
  summaries = "; ".join(", ".join(filter(None, (method.summary, method.paper))) for method in methods)
  left = ", ".join(f"{stage.budget} {_after(block)}" for block, stage in stages.items())
  return (
    f"The encoder shortens the history by `{config.method}` ({summaries}): the {positions} positions of the longest "
    f"history become {left}."
  )


def _after(block: int) -> str:
  """Where a stage stands; blocks are counted from 1 here."""
  return "before block 1" if block == schedule.BEFORE_BLOCKS else f"after block {block + 1}"


def _method(semantic_ids: SemanticIds) -> str:
  provenance = semantic_ids.provenance
  known = [f"{name}: {provenance[name]}" for name in ("method", "embeddings") if name in provenance]
  return "; ".join([*known, f"codes per level: {', '.join(map(str, semantic_ids.widths))}"])


def _quality(metrics: Mapping[str, Any] | None, info: Mapping[str, Any]) -> dict[str, Any] | None:
  """The metrics of the exported checkpoint, which answered with the exported settings, or None."""
  if metrics is None or metrics["step"] != info["step"]:
    return None
  evaluated, exported = (config_lib.flatten(values["config"]) for values in (metrics, info))
  decisive = config_lib.differing_settings(May.DECODE) - config_lib.differing_settings(May.SEED) - _SHOWN
  if any(evaluated[name] != exported[name] for name in decisive):
    return None
  return {
    **{name: metrics[name] for name in ("users", "beam_width", "invalid_beams")},
    "constrained": evaluated["eval.constrained"],
    "scores": {
      f"{measure}@{k}": metrics[f"{measure}@{k}"] for measure in ("recall", "ndcg") for k in evaluated["eval.top_k"]
    },
  }
