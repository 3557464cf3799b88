"""A template for your own data (docs/your_data.md): copy it, name the dataset, and say what your columns are called.

    python -m rastp_jax.prepare  --config=configs/own.py:cpu --raw_dir=DIR         DIR holds interactions.csv
    python -m rastp_jax.train    --config=configs/own.py:cpu --workdir=runs/own
    python -m rastp_jax.evaluate --workdir=runs/own

How long it takes, and what score to expect, depends on the data: compare with configs/beauty.py, 198,502 interactions.
"""

from rastp_jax.configs import base


def get_config(variants: str = ""):
  config = base.get_config(variants)
  config.data.dataset = "own"
  config.semantic_ids.levels = config.semantic_ids.codebook_size = 0  # chosen to fit the catalogue
  config.data.columns = ()  # names in order, if the interactions file has no header
  config.data.user_column = "user"
  config.data.item_column = "item"
  config.data.time_column = "timestamp"  # "": rows are in time order
  config.data.time_format = ""  # like "%d/%m/%Y %H:%M", unless times are numbers or ISO dates
  config.data.title_column = "title"
  config.data.brand_column = "brand"
  config.data.categories_column = "categories"
  config.data.extra_columns = ()  # further ones that semantic_ids.text_template names
  config.data.keep_all_items = False
  config.data.k_core = 5
  config.data.min_length = 3
  config.data.repeats = "keep"  # or "first", or "consecutive"
  config.data.split = "leave_one_out"  # or "time", at config.data.time_cut
  return config
