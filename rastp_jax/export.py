"""Exports a trained model as files that answer with jax and numpy alone, on CPU, GPU and TPU.

    python -m rastp_jax.export --workdir=runs/beauty --output=beauty_model

writes programs (`jax.export`), weights (safetensors), the code table, item titles, a loader of a few lines and a model
card; rastp_jax/serving/artifact.py lists the files. To try them:

    python beauty_model/load.py B004756YJA B004ZT0SSG

The programs keep as many beams as the run's settings say: --override=eval.beam_width=50 keeps more.
"""

from absl import flags

from rastp_jax import cli, loading
from rastp_jax.errors import InputError
from rastp_jax.serving import artifact

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a training run; its best checkpoint is exported.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory of the export; must be new or empty.")
_OVERRIDE = flags.DEFINE_multi_string(
  "override",
  [],
  f"SECTION.FIELD=VALUE that shall differ from the run's own settings, within {', '.join(loading.OVERRIDABLE)}. May be "
  "given several times.",
)


def main():
  for flag, example in ((_WORKDIR, "runs/beauty"), (_OUTPUT, "beauty_model")):
    if not flag.value:
      raise InputError(f"--{flag.name} is missing: give it like --{flag.name}={example}.")
  artifact.export_workdir(_WORKDIR.value, _OUTPUT.value, _OVERRIDE.value)
  print(f"{_OUTPUT.value}: try python {_OUTPUT.value}/load.py ITEM ITEM; README.md there is the model card.")


if __name__ == "__main__":
  cli.run(main)
