"""What a report shows of a run beyond its results: its users' items, and which of their tokens survive."""

from rastp_jax.data import histories as histories_lib
from rastp_jax.evaluation.html_report import Inspection
from rastp_jax.evaluation.measure_survival import measure_survival
from rastp_jax.runtime import terminal
from rastp_jax.training import runs

# Every share on the page is then exact to about a percent, and encoding takes seconds, not minutes.
_MEASURED_USERS = 10_000


def inspect_run(workdir: str, split: str, data_dir: str | None = None) -> Inspection:
  """Loads a run's best checkpoint, and encodes users if it reduces their tokens.

  Args:
    workdir: of the run.
    split: "test" or "validation": which held-out item is the target.
    data_dir: where the prepared data is; None: where training found it.
  """
  terminal.say(f"Looking into {workdir} …")
  saved = runs.load_model(workdir, [f"data.data_dir={data_dir}"] if data_dir else [])
  items = histories_lib.load_items(saved.config.data.data_dir, saved.config.data.dataset)
  starts, ends = saved.histories.spans(split)
  histories = [saved.histories.items[start : end - 1] for start, end in zip(starts, ends, strict=True)]
  survival = None
  if saved.config.reduction.method != "none":
    survival = measure_survival(
      saved.model, saved.histories, saved.semantic_ids, saved.config, saved.mesh, split, users=_MEASURED_USERS
    )
  titles, levels = [item.title for item in items], saved.semantic_ids.learned.shape[1]
  return Inspection(titles, histories, saved.histories.items[ends - 1], survival, levels)
