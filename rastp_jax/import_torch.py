"""Turns weights of the published PyTorch model into a workdir that evaluates, recommends, exports and trains.

    python -m rastp_jax.import_torch --config=configs/beauty.py:reference --weights=model.safetensors \
        --workdir=runs/published

The weights are a state dict under its PyTorch names, as .safetensors or .npz. The config names the sizes they were
trained with (`:reference` has the published ones), and its data_dir holds the prepared dataset with the semantic IDs
they were trained with: other codes would mean other items. Afterwards:

    python -m rastp_jax.evaluate --workdir=runs/published
"""

import shlex

from absl import flags

from rastp_jax.runtime import cli

_CONFIG = cli.define_config_flag()
flags.adopt_module_key_flags(cli)  # so that --help shows it
_WEIGHTS = flags.DEFINE_string("weights", None, "The state dict, .safetensors or .npz.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run to be made; must be new or empty.")


def main():
  path, workdir = cli.require(_WEIGHTS, "model.safetensors"), cli.require(_WORKDIR, "runs/published")
  config = cli.load_config(_CONFIG.value)
  from rastp_jax.training import import_torch_weights, runs

  weights = import_torch_weights.read_weights(path)
  histories, semantic_ids = runs.load_data(config)
  import_torch_weights.import_weights(config, histories, semantic_ids, weights, workdir, origin=path)
  following = f"python -m rastp_jax.evaluate --workdir={shlex.quote(workdir)}"
  print(f"{workdir}: {len(weights)} arrays imported; next: {following}")


if __name__ == "__main__":
  cli.run(main)
