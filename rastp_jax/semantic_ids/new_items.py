"""Codes of items that came after the codes of their catalogue were prepared from text."""

import os
from collections.abc import Sequence

import numpy as np

from rastp_jax.data.items import Item
from rastp_jax.errors import InputError
from rastp_jax.runtime import files
from rastp_jax.semantic_ids import codes, collaborative, embeddings, pipeline
from rastp_jax.semantic_ids.quantizers import registry


def encode(path: str | os.PathLike, items: Sequence[Item]) -> np.ndarray:
  """Learned codes of items that are described by their text alone, in the space of a catalogue's text.

  An item of the catalogue gets the codes that are stored for it (`SemanticIds.learned`). With a
  `semantic_ids.collaborative_weight`, this holds for items that nobody had taken: every item here is treated as one.

  Args:
    path: the catalogue's codes, DATA_DIR/semantic_ids/DATASET.npz, made by "tfidf_svd"; what that learned and the
      codebooks lie beside it.
    items: with the fields that the text_template of the codes names.

  Returns:
    int32 (len(items), levels), before collisions are resolved: several items may have the same codes. An item without
    any word of the catalogue gets the codes of the mean direction of its texts.

  Raises:
    InputError: a file is missing or damaged, the codes were made from other vectors than those of text, or something is
      not an Item.
  """
  path = files.check_path(path)
  ids = codes.load(path)
  made, text_file = ids.provenance, pipeline.beside(path, "text.npz")
  for item in items:
    if not isinstance(item, Item):
      raise InputError(f"{item!r:.80} is not an item: give rastp_jax.data.items.Item, like Item('9001', title='Soap').")
  if not text_file.exists():
    raise InputError(
      f"{path} cannot encode new items by their text: there is no {text_file.name} beside it, which is written where "
      f"codes are made by tfidf_svd (these: {made.get('embeddings', made.get('method'))!r:.80}); if they were, remove "
      "the codes and prepare them again, otherwise embed the items as before and encode the vectors by "
      "quantizers.registry.load."
    )
  vectors = embeddings.TextSpace.load(text_file).embed(
    [embeddings.item_text(item, made["text_template"]) for item in items]
  )
  if made["collaborative_weight"]:
    width = collaborative.width(ids.num_items, made["collaborative_dims"])
    nothing = np.zeros((len(items), width), np.float32)
    vectors = collaborative.join(vectors, nothing, made["collaborative_weight"])
  return registry.load(pipeline.beside(path, "codebooks.npz")).encode(vectors)
