"""Tables of speed, traffic and memory, from docs/results/*.json."""

from collections.abc import Callable
from typing import Any

from rastp_jax.experiments.results import read
from rastp_jax.experiments.speed.ratios import speed_intervals
from rastp_jax.runtime.text_tables import markdown


def attention() -> str:
  """What attention takes on a GPU: our form beside JAX's own."""
  forms = {"ours": "ours", "xla": "JAX's, XLA", "cudnn": "JAX's, cuDNN"}
  runs: dict[tuple[int, int], dict[str, Any]] = {}
  for run in read("attention_h100")["rows"]:
    runs.setdefault((run["rows"], run["positions"]), {})[run["form"]] = run
  rows = [["rows", "positions", *(f"{text}, forward" for text in forms.values())]]
  rows[0] += [f"{text}, with gradient" for text in forms.values()]
  for (count, positions), found in runs.items():
    cells = []
    for key in ("forward_seconds", "forward_backward_seconds"):
      cells += [f"{1e3 * found[form][key]:.2f} ms" if key in found[form] else "refused" for form in forms]
    rows.append([str(count), str(positions), *cells])
  return markdown(rows)


def speed_gpu() -> str:
  """The benchmark's ways to train, on a GPU."""
  training = read("speed_h200")["training"]
  first = training["padded_dense"]["samples_per_second"]
  rows = [["", "samples/s", "ratio", "padding", "peak memory", "compile"]]
  for name, variant in training.items():
    speed = variant["samples_per_second"]
    memory, compiling = f"{variant['peak_bytes'] / 1e9:.1f} GB", f"{variant['compile_seconds']:.0f} s"
    cells = [f"{speed:,.0f}", f"{speed / first:.2f}", f"{variant['padding_share']:.0%}", memory, compiling]
    rows.append([name.replace("_", ", "), *cells])
  return markdown(rows)


def speed_runs() -> dict[str, dict]:
  """The benchmark's run in either compute dtype."""
  return {"float32": read("speed_cpu"), "bfloat16": read("speed_cpu_bfloat16")}


def speed_training() -> str:
  """The benchmark's ways to train one model on the same samples."""
  rows = [["", "", "samples/s", "ratio", "padding", "MFLOP per sample", "peak memory", "compile"]]
  for dtype, run in speed_runs().items():
    first = run["training"]["padded_dense"]["samples_per_second"]
    for name, variant in run["training"].items():
      rows.append(
        [
          dtype,
          name.replace("_", ", "),
          f"{variant['samples_per_second']:,.1f}",
          f"{variant['samples_per_second'] / first:.2f}",
          f"{variant['padding_share']:.0%}",
          f"{variant['flops_a_sample'] / 1e6:,.0f}",
          f"{variant['peak_bytes'] / 1e6:,.0f} MB",
          f"{variant['compile_seconds']:.0f} s",
        ]
      )
  return markdown(rows)


def speed_summary() -> str:
  """What less padding and pruning give, each against the published set-up without pruning."""
  rows = [["", *(f"training speed, {dtype}" for dtype in speed_runs()), "peak memory"]]
  named = {
    "every history padded to 30 items, as published": "padded_dense",
    "the same, pruned": "padded_pruned",
    "real lengths (`data.bucket_lengths`)": "bucketed_dense",
    "real lengths, pruned": "bucketed_pruned",
  }
  for text, name in named.items():
    pairs = [(run["training"][name], run["training"]["padded_dense"]) for run in speed_runs().values()]
    speeds = [f"{one['samples_per_second'] / first['samples_per_second']:.2f}" for one, first in pairs]
    rows.append([text, *speeds, f"{pairs[0][0]['peak_bytes'] / pairs[0][1]['peak_bytes']:.2f}"])
  return markdown(rows)


def speed_ratios() -> str:
  """Every ratio of the benchmark's runs, those of training speed with their 95 % intervals."""
  runs = speed_runs()
  names = next(iter(runs.values()))["ratios"]
  intervals = {dtype: speed_intervals(run["training"]) for dtype, run in runs.items()}

  def cell(dtype, name):
    interval = " ({:.3g} to {:.3g})".format(*intervals[dtype][name]) if name in intervals[dtype] else ""
    return f"{runs[dtype]['ratios'][name]:.3g}{interval}"

  rows = [[f"`{name}`", *(cell(dtype, name) for dtype in runs)] for name in names]
  return markdown([["ratio", *runs], *rows])


def speed_decoding() -> str:
  """Users decoded per second, by what constrains them."""
  tables = {dtype: run["decoding"]["tables"] for dtype, run in speed_runs().items()}
  rows = [["", *(f"users/s, {dtype}" for dtype in tables), "most children of a prefix, by level"]]
  for name, table in next(iter(tables.values())).items():
    branches = ", ".join(map(str, table["branches"])) if table["branches"] else ""
    rows.append([name, *(f"{found[name]['users_per_second']:,.0f}" for found in tables.values()), branches])
  return markdown(rows)


def ablations() -> str:
  """Step time with one choice undone or tried, divided by that of the program as shipped."""
  run = read("ablations")
  times = run["step_time_relative_to_shipped"]
  named = {name.replace(" a core", " per core"): value for name, value in times.items()}
  return markdown([["", "step time"], *([name, f"{value:.2f}"] for name, value in named.items())])


def memory() -> str:
  """Step time by what glibc does with freed memory, divided by that of a program that keeps it."""
  files = {
    "CPU-sized, float32": "ablations_memory_cpu_sized",
    "paper-sized, float32": "ablations_memory_paper_float32",
    "paper-sized, bfloat16": "ablations_memory_paper_bfloat16",
  }
  runs = [read(file)["step_time_relative_to_shipped"] for file in files.values()]
  names = {
    "kept": "as shipped",
    "kept, once more": "as shipped, once more",
    "given back, as now": "undone: glibc keeps freed memory",
    "given back, huge pages": "tried: huge pages; undone: glibc keeps freed memory",
  }
  rows = [[text, *(f"{run[name]:.2f}" for run in runs)] for text, name in names.items()]
  return markdown([["freed memory", *files], *rows])


def pytorch() -> str:
  """Samples and users per second of the published model in PyTorch and of ours, and their ratios."""
  run = read("torch_cpu")
  sides = ["pytorch float32", "pytorch bfloat16", "ours float32", "ours bfloat16"]
  ratios = [("ours float32", "pytorch float32"), ("ours bfloat16", "pytorch bfloat16"), (sides[3], sides[0])]
  rows = [["samples or users per second", *(side.replace("pytorch", "PyTorch") for side in sides)]]
  rows[0] += ["ours / PyTorch float32", "both bfloat16", "ours bfloat16, PyTorch float32"]
  for name, rates in run["compared"].items():
    cells = [f"{rates[side]:.1f}" for side in sides]
    rows.append([name, *cells, *(f"{rates[ours] / rates[theirs]:.2f}" for ours, theirs in ratios)])
  return markdown(rows)


def tpu_traffic() -> str:
  """What a training step moves on a TPU chip, before its forms followed the platform and now."""
  rows = [["", "", "accessed", "HBM", "temporary", "arithmetic", "memory", "kernels"]]
  found = dict(read("tpu_traffic")["changes"])
  for name, end in {"now": "", "now, nothing kept in VMEM": "_without_vmem"}.items():
    files = {model: f"tpu_plan_v5e_2x2_{model}{end}" for model in ("dense", "rastp")}
    found[name] = {model: read(file)["programs"]["train, 29 items"] for model, file in files.items()}
  for name, programs in found.items():
    for model, step in programs.items():
      sizes = [f"{step[key] / 1e9:.2f} GB" for key in ("bytes_accessed", "hbm_bytes", "temporary_bytes")]
      times = [f"{1e3 * step['seconds'][key]:.1f} ms" for key in ("arithmetic", "memory", "kernels")]
      rows.append([name, model, *sizes, *times])
  return markdown(rows)


TABLES: dict[str, Callable[[], str]] = {
  make.__name__: make
  for make in (
    speed_summary,
    speed_training,
    speed_ratios,
    speed_decoding,
    ablations,
    memory,
    pytorch,
    attention,
    speed_gpu,
    tpu_traffic,
  )
}
