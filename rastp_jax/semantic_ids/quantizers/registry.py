"""The methods of learning codes by their name in config.semantic_ids.method, and their files."""

import os

from rastp_jax.errors import InputError
from rastp_jax.runtime import files
from rastp_jax.semantic_ids.quantizers.base import Quantizer
from rastp_jax.semantic_ids.quantizers.random_codes import RandomCodes
from rastp_jax.semantic_ids.quantizers.residual_kmeans import ResidualKMeans
from rastp_jax.semantic_ids.quantizers.residual_vq import ResidualVQ
from rastp_jax.semantic_ids.quantizers.rqvae import RqVae

QUANTIZERS: dict[str, type[Quantizer]] = {
  kind.method: kind for kind in (ResidualKMeans, ResidualVQ, RqVae, RandomCodes)
}


def load(path: str | os.PathLike) -> Quantizer:
  """Reads a file written by `Quantizer.save`, to encode vectors that it has not seen.

  Raises:
    InputError: the file is missing, torn, or of a method that this version does not know.
  """
  try:
    with files.open_npz(path) as file:
      arrays = dict(file)
    return QUANTIZERS[str(arrays.pop("method"))].from_arrays(arrays)
  except Exception as error:  # zipfile, zlib and numpy each raise their own kinds on a torn file
    raise InputError(
      f"{path} cannot be read as codebooks ({type(error).__name__}: {error}): expected the .codebooks.npz that "
      "`python -m rastp_jax.prepare` writes beside the codes."
    ) from error
