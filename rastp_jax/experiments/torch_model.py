"""The published model in plain PyTorch: what `torch_baseline.py` times ours against.

It computes what the published code computes, under its parameter names, with attention spelled out as transformers' T5
does; `largest_difference` shows that on numbers the published code produced. Attention weights are kept by the scoring
block alone, so it is no slower than that code with its needless output of attention weights switched off.

Shapes: B batch, N items, C codes per item, L positions, D model width, H heads, V codes per level, W beams.
"""

import json
import math
import os
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Norm(nn.Module):
  def __init__(self, width: int, eps: float):
    super().__init__()
    self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

  def forward(self, x):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
  """T5's: no biases, no scale; the first block of a stack owns the table of relative position biases."""

  def __init__(self, sizes: Mapping, *, table: bool, causal: bool):
    super().__init__()
    d, inner = sizes["d_model"], sizes["num_heads"] * sizes["d_kv"]
    self.q, self.k, self.v = (nn.Linear(d, inner, bias=False) for _ in range(3))
    self.o = nn.Linear(inner, d, bias=False)
    self.heads, self.dropout, self.causal = sizes["num_heads"], sizes["dropout"], causal
    self.max_distance = sizes["relative_attention_max_distance"]
    if table:
      self.relative_attention_bias = nn.Embedding(sizes["relative_attention_num_buckets"], self.heads)

  def split(self, projected):
    return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)

  def keys_values(self, memory):
    return self.split(self.k(memory)), self.split(self.v(memory))

  def forward(self, x, keys_values, bias):
    """Returns (B, T, D) and the attention weights after dropout (B, H, T, S)."""
    keys, values = keys_values
    weights = (self.split(self.q(x)) @ keys.transpose(-1, -2) + bias).softmax(-1)
    weights = F.dropout(weights, self.dropout, self.training)
    return self.o((weights @ values).transpose(1, 2).flatten(2)), weights

  def bias(self, queries: int, keys: int):
    """(1, H, queries, keys), for the last `queries` of `keys` positions."""
    distance = torch.arange(keys)[None, :] - torch.arange(keys - queries, keys)[:, None]
    buckets, side = self.relative_attention_bias.num_embeddings, 0
    if self.causal:
      distance = -distance.clamp(max=0)
    else:
      buckets //= 2
      side, distance = (distance > 0) * buckets, distance.abs()
    exact = buckets // 2
    far = torch.log(distance.clamp(min=1) / exact) / math.log(self.max_distance / exact) * (buckets - exact)
    bucket = side + torch.where(distance < exact, distance, (exact + far.long()).clamp(max=buckets - 1))
    return self.relative_attention_bias(bucket).permute(2, 0, 1)[None]


class Mlp(nn.Module):
  def __init__(self, sizes: Mapping):
    super().__init__()
    d, f = sizes["d_model"], sizes["d_ff"]
    hidden = [
      m for _ in range(sizes["mlp_layers"] - 1) for m in (nn.Linear(f, f), nn.Dropout(sizes["dropout"]), nn.ReLU())
    ]
    self.model = nn.Sequential(nn.Linear(d, f), nn.ReLU(), *hidden, nn.Linear(f, d))

  def forward(self, x):
    return self.model(x)


class Sublayer(nn.Module):
  """Pre-norm, an attention or MLP under its published name, dropout, residual."""

  def __init__(self, sizes: Mapping, name: str, inner: nn.Module):
    super().__init__()
    self.layer_norm = Norm(sizes["d_model"], sizes["layer_norm_eps"])
    self.add_module(name, inner)
    self.inner, self.dropout = [inner], sizes["dropout"]  # in a list: registered once, under its name

  def forward(self, x, memory=None, bias=None, cache=None):
    """Returns the sum and, of attention, its weights and its keys and values."""
    (inner,), normed = self.inner, self.layer_norm(x)
    if isinstance(inner, Mlp):
      return x + F.dropout(inner(normed), self.dropout, self.training), None, None
    keys_values = memory if memory is not None else inner.keys_values(normed)
    if cache is not None:
      keys_values = tuple(torch.cat(pair, dim=2) for pair in zip(cache, keys_values, strict=True))
    attended, weights = inner(normed, keys_values, bias)
    return x + F.dropout(attended, self.dropout, self.training), weights, keys_values


class Stack(nn.Module):
  def __init__(self, sizes: Mapping, *, decoder: bool):
    super().__init__()
    blocks = []
    for index in range(sizes["num_layers"]):
      layers = [Sublayer(sizes, "SelfAttention", Attention(sizes, table=index == 0, causal=decoder))]
      if decoder:
        layers.append(Sublayer(sizes, "EncDecAttention", Attention(sizes, table=False, causal=False)))
      block = nn.Module()
      block.layer = nn.ModuleList([*layers, Sublayer(sizes, "mlp", Mlp(sizes))])
      blocks.append(block)
    self.block = nn.ModuleList(blocks)
    self.final_layer_norm = Norm(sizes["d_model"], sizes["layer_norm_eps"])
    self.dropout = nn.Dropout(sizes["dropout"])

  def bias(self, queries: int, keys: int):
    return self.block[0].layer[0].SelfAttention.bias(queries, keys)


class PublishedModel(nn.Module):
  """Encoder, RASTP after block `prune_layer_index` if `pruned`, decoder, one head per level."""

  def __init__(self, sizes: Mapping, *, pruned: bool):
    super().__init__()
    d, self.depth, self.width = sizes["d_model"], sizes["num_hierarchies"], sizes["num_embeddings_per_hierarchy"]
    self.sizes, self.pruned = sizes, pruned
    self.item_sid_embedding_table_encoder = nn.Embedding(self.depth * self.width, d)
    self.sep_token = nn.Parameter(torch.randn(1, d))
    self.model, self.decoder = nn.Module(), nn.Module()
    self.model.encoder = Stack(sizes, decoder=False)
    self.decoder.bos_token = nn.Parameter(torch.randn(1, d))
    self.decoder.decoder = Stack(sizes, decoder=True)
    self.decoder.decoder_mlp = nn.ModuleList(nn.Linear(d, self.width, bias=False) for _ in range(self.depth))

  def embed(self, codes, first_level: int = 0):
    offsets = (torch.arange(codes.shape[-1]) + first_level) * self.width
    return self.item_sid_embedding_table_encoder(torch.where(codes < 0, 0, codes + offsets))

  def encode(self, history):
    """history (B, N, C), -1 for padding -> states (B, K, D) and their additive mask (B, 1, 1, K)."""
    batch, items, _ = history.shape
    separator = self.sep_token.expand(batch, items, 1, -1)
    hidden = torch.cat([self.embed(history), separator], dim=2).flatten(1, 2)
    mask = (history[:, :, 0] >= 0).repeat_interleave(self.depth + 1, dim=1)
    length, stack = hidden.shape[1], self.model.encoder
    additive = torch.where(mask, 0.0, torch.finfo(torch.float32).min)[:, None, None, :]
    hidden, bias = stack.dropout(hidden), stack.bias(length, length) + additive
    for index, block in enumerate(stack.block):
      hidden, weights, _ = block.layer[0](hidden, bias=bias)
      hidden = block.layer[1](hidden)[0]
      if self.pruned and index == self.sizes["prune_layer_index"]:
        budget = int(length * self.sizes["keep_ratio"])
        score = (weights.detach().sum((1, 2)) * hidden.detach().abs().sum(-1)).masked_fill(~mask, -math.inf)
        kept = score.topk(budget, dim=1).indices.sort(dim=1).values
        hidden = hidden.gather(1, kept[..., None].expand(-1, -1, hidden.shape[-1]))
        bias = additive = additive[..., :budget]  # later blocks of the published encoder have no position bias
    return stack.dropout(stack.final_layer_norm(hidden)), additive

  def decode(self, hidden, encoded, mask, caches=None):
    """hidden (B, T, D) after t cached positions -> decoder states (B, T, D) and the caches, T positions longer."""
    stack, steps = self.decoder.decoder, hidden.shape[1]
    positions = steps + (caches[0][0][0].shape[2] if caches else 0)
    causal = torch.full((steps, positions), torch.finfo(torch.float32).min).triu(positions - steps + 1)
    hidden, bias, grown = stack.dropout(hidden), stack.bias(steps, positions) + causal, []
    for index, block in enumerate(stack.block):
      own, crossed = caches[index] if caches else (None, None)
      hidden, _, own = block.layer[0](hidden, bias=bias, cache=own)
      if crossed is None:
        crossed = block.layer[1].EncDecAttention.keys_values(encoded)
      hidden = block.layer[2](block.layer[1](hidden, memory=crossed, bias=mask)[0])[0]
      grown.append((own, crossed))
    return stack.dropout(stack.final_layer_norm(hidden)), grown

  def loss(self, history, target):
    """Sum over levels of the batch mean of the cross-entropy."""
    start = self.decoder.bos_token.expand(len(history), 1, -1)
    decoded, _ = self.decode(torch.cat([start, self.embed(target)], dim=1), *self.encode(history))
    heads = enumerate(self.decoder.decoder_mlp)
    return sum(F.cross_entropy(head(decoded[:, level]), target[:, level]) for level, head in heads)

  @torch.no_grad()
  def generate(self, history, beams: int):
    """The `beams` most probable code sequences of each user (B, W, C), with a cache of keys and values."""
    batch = len(history)
    encoded, mask = (x.repeat_interleave(beams, dim=0) for x in self.encode(history))
    hidden, caches = self.decoder.bos_token.expand(batch * beams, 1, -1), None
    scores = torch.full((batch, beams), -math.inf)
    scores[:, 0] = 0.0  # before the first level all beams of a user are the same one
    codes = torch.zeros((batch, beams, 0), dtype=torch.long)
    for level, head in enumerate(self.decoder.decoder_mlp):
      decoded, caches = self.decode(hidden, encoded, mask, caches)
      scores = scores[..., None] + head(decoded[:, -1]).log_softmax(-1).unflatten(0, (batch, beams))
      scores, best = scores.flatten(1).topk(beams, dim=1)
      parent, code = best // self.width, best % self.width
      codes = torch.cat([codes.gather(1, parent[..., None].expand(-1, -1, level)), code[..., None]], dim=2)
      rows = (torch.arange(batch)[:, None] * beams + parent).flatten()
      caches = [(tuple(x[rows] for x in own), crossed) for own, crossed in caches]
      hidden = self.embed(code.reshape(-1, 1), level)
    return codes


def largest_difference(golden_file: str | os.PathLike, *, pruned: bool) -> float:
  """Largest relative difference of loss and encoder states from the published code's; its beams must be equal.

  Args:
    golden_file: one of tests/golden/small_*.npz.
    pruned: compare with its numbers with pruning, or without.

  Raises:
    AssertionError: a user's beams differ.
  """
  golden = np.load(golden_file)
  model = PublishedModel(json.loads(str(golden["config"])), pruned=pruned).eval()
  weights = {name.removeprefix("param/"): torch.tensor(golden[name]) for name in golden.files if "param/" in name}
  model.load_state_dict(weights)
  prefix = "prune/" if pruned else "noprune/"
  history = torch.tensor(golden["input_ids"]).long().unflatten(1, (-1, model.depth))
  with torch.no_grad():
    encoded, mask = model.encode(history)
    loss = model.loss(history, torch.tensor(golden["labels"]).long())
  expected = golden[prefix + "enc_out"]
  real = (mask[:, 0, 0] == 0).numpy()
  beams = golden[prefix + "beam_ids_prefix0"]
  for row, found in enumerate(model.generate(history, beams.shape[1]).tolist()):
    assert sorted(map(tuple, found)) == sorted(map(tuple, beams[row].tolist())), f"other beams for user {row}"
  return max(
    abs(float(loss) - float(golden[prefix + "loss"])) / float(golden[prefix + "loss"]),
    float(np.abs(encoded.numpy() - expected)[real].max() / np.abs(expected).max()),
  )
