"""What trained rows come to beside dense, and the rows of the result file with them."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rastp_jax.errors import InputError
from rastp_jax.evaluation import results as evaluation_results
from rastp_jax.evaluation.comparison import Difference, Group, paired_bootstrap, paired_seeds
from rastp_jax.experiments.lab.rows import DENSE, Row
from rastp_jax.experiments.lab.training import Trainings

METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
CONTROL = "recent"


def collect(
  trainings: Trainings,
  rows: Sequence[Row],
  costs: Mapping[str, float],
  timed: Mapping[str, Mapping[str, float]],
  stored: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
  """A dict per finished row: metrics, and the difference to dense with its interval, over the seeds that both have.

  Seeds may have been trained elsewhere: those of the file, of the row and of dense, count as well. A row of a file that
  does not hold what each seed came to is left out, and so stays, where the finished runs lack one of its seeds.

  Args:
    trainings: which runs.
    rows: dense among them; those that are not finished are left out.
    costs: encoder FLOPs of each row over dense's, by name.
    timed: training seconds per sample over dense's (`vs_dense`), measured in turns, and their interval (`low`, `high`);
      rows without stay None.
    stored: what earlier calls returned (`merge`).

  Raises:
    InputError: there is one seed in all, and ranks of its users are missing.
  """
  finished, rows_by_name = {row.name: trainings.finished(row) for row in rows}, {row.name: row for row in rows}
  dense = next((row for row in rows if row.name == DENSE), None)
  if dense is None:
    return []
  runs = []
  for row in (row for row in rows if finished[row.name]):
    group = dataclasses.replace(trainings, seeds=tuple(sorted(finished[row.name]))).group(row)
    about: dict[str, Any] = {
      "dataset": trainings.dataset,
      "config": trainings.config_name,
      "stage": trainings.stage,
      "length": trainings.length,
      "samples": group.mean("training_samples"),
    }
    before = {run["name"]: run for run in stored if comparison(run) == comparison(about)}
    of_dense = _dense_of_seeds(trainings, dense, before.get(DENSE, {}))
    mine = dataclasses.replace(trainings, seeds=tuple(sorted(finished[row.name] & of_dense.keys())))
    if not mine.seeds:
      continue
    group = mine.group(row)
    earlier = before.get(row.name, {})
    elsewhere = [one for one in earlier.get("of_seeds", ()) if one["seed"] not in mine.seeds]
    here = [_as_it_ran(one, earlier) for one in _of_seeds(mine, row, group, of_dense)]
    of_seeds = sorted([*here, *elsewhere], key=lambda one: one["seed"])
    seeds = {one["seed"] for one in of_seeds}
    lacking = sorted(set(earlier.get("seeds", ())) - seeds)
    if lacking:
      lost = ", ".join(map(str, lacking))
      print(
        f"{row.name} stays as the file has it. It would lose seeds ({lost}), whose own metrics the file does not hold."
      )
      continue
    if seeds <= finished[DENSE] and not elsewhere:
      compared = difference(mine.group(dense), group)
    else:
      compared = difference_of_seeds([one["dense_ndcg@10"] for one in of_seeds], [one["ndcg@10"] for one in of_seeds])
    if compared is None:
      raise _ranks_needed(mine, row, dense)
    found, over = compared
    run = {
      "name": row.name,
      "method": row.method,
      **about,
      "split": trainings.split,
      "budget": row.budget,
      "settings": dict(row.settings),
      "beams": group.mean("beam_width"),
      "users": group.results[0].metrics["users"],
      "encoder_flops_vs_dense": costs.get(row.name),
      **_over_seeds(of_seeds),
      "ndcg@10_difference": found.value,
      "ndcg@10_difference_low": found.low,
      "ndcg@10_difference_high": found.high,
      "p": found.p,
      "interval_over": over,
      "training_seconds_vs_dense": timed[row.name]["vs_dense"] if row.name in timed else None,
    }
    if row.name != DENSE:
      equal_time = _at_equal_time(mine, row, dense, timed[row.name]) if row.name in timed else None
      run |= _of_more_seeds(equal_time, earlier.get("equal_time"), of_seeds)
    if not elsewhere:
      at_hand = [other for other in rows if seeds <= finished[other.name]]
      facts = [
        {"name": one.name, "method": one.method, "encoder_flops_vs_dense": costs.get(one.name)} for one in at_hand
      ]
      control = _control(run, facts)
      if control is not None:
        run |= _beside(control["name"], difference(mine.group(rows_by_name[control["name"]]), group))
    runs.append(run)
  return runs


def _ranks_needed(trainings: Trainings, row: Row, dense: Row) -> InputError:
  (seed,) = trainings.seeds
  of_both = {trainings.workdir(one, seed).evaluation(trainings.split) for one in (dense, row)}
  missing = " and ".join(sorted(str(path) for path in map(evaluation_results.ranks_path, of_both) if not path.exists()))
  return InputError(
    f"{row.name} has one seed in common with {DENSE}, {seed}, and ranks of users are missing ({missing}): run "
    "`python -m rastp_jax.evaluate` there again, or train with more seeds."
  )


def _dense_of_seeds(trainings: Trainings, dense: Row, before: Mapping[str, Any]) -> dict[int, float]:
  """seed -> NDCG@10 of dense, of finished runs and of what is stored of others."""
  seeds = tuple(sorted(trainings.finished(dense)))
  found = dataclasses.replace(trainings, seeds=seeds).group(dense).values("ndcg@10") if seeds else []
  stored = zip(before.get("seeds", ()), before.get("ndcg@10_of_seeds", ()), strict=False)
  return {**dict(stored), **dict(zip(seeds, found, strict=True))}


def _of_seeds(trainings: Trainings, row: Row, group: Group, of_dense: Mapping[int, float]) -> list[dict[str, Any]]:
  """What is kept of each seed, so that others can be added where its run is not at hand."""
  return [
    {
      "seed": seed,
      "device": result.metrics.get("device_kind", "unknown"),
      **{name: result.metrics.get(name) for name in METRICS},
      "dense_ndcg@10": of_dense[seed],
      "commands": [command.text for command in dataclasses.replace(trainings, seeds=(seed,)).commands(row)],
    }
    for seed, result in zip(trainings.seeds, group.results, strict=True)
  ]


def _over_seeds(of_seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """A row's seeds together; a metric that one lacks is None."""
  values = {name: [one[name] for one in of_seeds] for name in (*METRICS, "dense_ndcg@10")}
  there = {name: None not in values[name] for name in METRICS}
  several = len(of_seeds) > 1
  return {
    "seeds": [one["seed"] for one in of_seeds],
    "devices": sorted({one["device"] for one in of_seeds}),
    **{name: statistics.fmean(values[name]) if there[name] else None for name in METRICS},
    "deviation": {name: statistics.stdev(values[name]) if several and there[name] else None for name in METRICS},
    "ndcg@10_of_seeds": values["ndcg@10"],
    "dense_ndcg@10": statistics.fmean(values["dense_ndcg@10"]),
    "dense_ndcg@10_of_seeds": values["dense_ndcg@10"],
    "of_seeds": list(of_seeds),
    "commands": [command for one in of_seeds for command in one["commands"]],
  }


def difference(base: Group, group: Group) -> tuple[Difference, str] | None:
  """In NDCG@10, and what its interval is over: "users", or "seeds" where some ranks of users were not kept.

  None where they were not, and there is but one seed.
  """
  if all(len(result.ranks) for one in (base, group) for result in one.results):
    return paired_bootstrap("ndcg@10", base.user_values("ndcg@10"), group.user_values("ndcg@10")), "users"
  return difference_of_seeds(base.values("ndcg@10"), group.values("ndcg@10"))


def difference_of_seeds(base: Sequence[float], values: Sequence[float]) -> tuple[Difference, str] | None:
  """The same by NDCG@10 of each seed; None if there is but one."""
  return (paired_seeds("ndcg@10", base, values), "seeds") if len(base) > 1 else None


def _as_it_ran(one: dict[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
  """A seed's part of a row, with the commands that the file has for the same run: today's flags may be others."""
  for before in earlier.get("of_seeds", ()):
    if (before["seed"], before["ndcg@10"]) == (one["seed"], one["ndcg@10"]):
      return one | {"commands": before["commands"]}
  return one


def _of_more_seeds(
  found: dict[str, Any] | None, before: dict[str, Any] | None, of_seeds: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  """The comparison at equal time of now, or that of the file where it has more seeds of the same runs, or none."""
  now = {one["seed"]: one["ndcg@10"] for one in of_seeds}
  if before is not None and (found is None or len(before["seeds"]) > len(found["seeds"])):
    same = all(now[seed] == value for seed, value in zip(before["seeds"], before["ndcg@10_of_seeds"], strict=True))
    found = before if same else found
  return {} if found is None else {"equal_time": found}


def _at_equal_time(trainings: Trainings, row: Row, dense: Row, seconds: Mapping[str, float]) -> dict[str, Any] | None:
  """The row beside a dense model that was trained as many seconds, on fewer samples, over the seeds that both have.

  As many: the interval of the row's seconds per sample, dense's being 1, holds dense's share of the samples.
  """
  for length in trainings.lengths(dense):
    shorter = dataclasses.replace(trainings, length=length)
    seeds = tuple(sorted(shorter.finished(dense) & set(trainings.seeds)))
    if not seeds or length == trainings.length:
      continue
    group = dataclasses.replace(trainings, seeds=seeds).group(row)
    base = dataclasses.replace(shorter, seeds=seeds).group(dense)
    (ours, theirs) = (one.values("training_samples") for one in (group, base))
    if seconds["low"] <= sum(theirs) / sum(ours) <= seconds["high"]:
      compared = difference(base, group)
      if compared is None:
        continue
      found, over = compared
      return {
        "dense_length": length,
        "seeds": list(seeds),
        "ndcg@10_of_seeds": group.values("ndcg@10"),
        "dense_ndcg@10_of_seeds": base.values("ndcg@10"),
        "difference": found.value,
        "difference_low": found.low,
        "difference_high": found.high,
        "interval_over": over,
      }
  return None


def _control(run: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
  """The one of the newest tokens alone whose encoder costs most nearly the same."""
  flops = lambda one: one.get("encoder_flops_vs_dense")
  controls = [other for other in others if other.get("method") == CONTROL and flops(other) is not None]
  if run["name"] == DENSE or run.get("method") == CONTROL or flops(run) is None or not controls:
    return None
  return min(controls, key=lambda other: abs(flops(other) - flops(run)))


def _beside(control: str, compared: tuple[Difference, str] | None) -> dict[str, Any]:
  """What a row holds of the comparison with its control; nothing where there is none."""
  if compared is None:
    return {}
  found, over = compared
  return {
    "control": control,
    "control_difference": found.value,
    "control_difference_low": found.low,
    "control_difference_high": found.high,
    "control_interval_over": over,
  }


def _nearer(run: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The comparison with the nearest control of the file, over seeds, where `collect` had none so near at hand.

  Also where the control has been trained again since: what the file has is of its runs of before then.
  """
  of_seeds = lambda one: dict(zip(one.get("seeds", ()), one.get("ndcg@10_of_seeds", ()), strict=False))
  ours = of_seeds(run)
  control = _control(run, [other for other in others if ours.keys() <= of_seeds(other).keys()])
  if not ours or control is None:
    return {}
  theirs = [of_seeds(control)[seed] for seed in ours]
  now, same = statistics.fmean(ours.values()) - statistics.fmean(theirs), control["name"] == run.get("control")
  if same and math.isclose(now, run["control_difference"], rel_tol=0, abs_tol=1e-6):
    return {}
  found = _beside(control["name"], difference_of_seeds(theirs, list(ours.values())))
  return found if found or not same else {name: None for name in run if name.startswith("control")}


def merge(stored: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Runs of the file and of now: what was found again takes the place of what was stored, nothing is lost.

  Holm's correction is over all rows that were compared with dense of the same length, and each has its control there.
  """
  runs = {(*comparison(run), run["name"]): dict(run) for run in (*stored, *found)}
  merged = list(runs.values())
  for one in dict.fromkeys(comparison(run) for run in merged):
    mine = [run for run in merged if comparison(run) == one]
    for run, p in zip(mine, holm([run["p"] if run["name"] != DENSE else None for run in mine]), strict=True):
      run |= {"p_holm": p, **_nearer(run, mine)}
  return sorted(merged, key=lambda run: (comparison(run), -run["ndcg@10"]))


def comparison(run: Mapping[str, Any]) -> tuple[str, str, str, str]:
  """Equal for runs that are compared with each other: dataset, config, stage, length.

  Not samples: a step that was skipped, or another seed's draws, make them a few more or less.
  """
  return run["dataset"], run["config"], run["stage"], run["length"]


def holm(values: Sequence[float | None]) -> list[float | None]:
  """Holm's step-down correction of p values; None stays None."""
  order = sorted((value, index) for index, value in enumerate(values) if value is not None)
  corrected: list[float | None] = [None] * len(values)
  largest = 0.0
  for rank, (value, index) in enumerate(order):
    largest = max(largest, min(1.0, (len(order) - rank) * value))
    corrected[index] = largest
  return corrected
