"""Exports a trained model as files that need jax and numpy only, on CPU, GPU and TPU.

    python -m rastp_jax.export --workdir=runs/beauty --output=beauty_model

writes programs (`jax.export`), weights (safetensors), the table of codes, item titles, a short loader and a model card;
rastp_jax/serving/artifact.py lists the files. To try them:

    python beauty_model/load.py B004756YJA B004ZT0SSG

The programs keep as many beams as the run's settings say: --override=eval.beam_width=50 keeps more.
"""

import shlex

from absl import flags

from rastp_jax.runtime import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a training run; its best checkpoint is exported.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory of the export; must be new or empty.")
_OVERRIDE = cli.define_override_flag("like eval.beam_width=50")
flags.adopt_module_key_flags(cli)  # so that --help shows them


def main():
  workdir, output = cli.require(_WORKDIR, "runs/beauty"), cli.require(_OUTPUT, "beauty_model")
  from rastp_jax.serving import artifact

  artifact.export_workdir(workdir, output, _OVERRIDE.value)
  print(f"{output}: try python {shlex.quote(f'{output}/load.py')} ITEM ITEM; README.md there is the model card.")


if __name__ == "__main__":
  cli.run(main)
