"""A shuffle that is computed for one index at a time: nothing as long as what it shuffles is made or held."""

import numpy as np

_ROUNDS = 8
# Odd, from the digits of the golden ratio and of the square root of 3.
_MULTIPLIERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B))
_HALF_WORD = np.uint64(32)
_LEAST_BITS = 6  # below it, some orders of a few numbers come more often than others


def shuffled(places: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
  """What a random order of range(size) has at some places. The same arguments give the same on every machine.

  A Feistel cipher with unequal halves (Luby and Rackoff, 1988) permutes the numbers of as many bits as `size` needs.
  Fewer than half of them are not below `size`; those are encrypted again until they are (cycle walking: Black and
  Rogaway, 2002).

  Args:
    places: int64 (n,), from 0 and below `size`.
    size: how many numbers are shuffled, at most 2**62.
    key: whole numbers from 0 that name the order.

  Returns:
    int64 (n,), below `size`. All places together give every number once.
  """
  bits = max(_LEAST_BITS, (size - 1).bit_length())
  keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)
  found = _encrypt(places.astype(np.uint64), bits, keys)
  outside = np.flatnonzero(found >= size)
  while len(outside):
    again = _encrypt(found[outside], bits, keys)
    found[outside] = again
    outside = outside[again >= size]
  return found.astype(np.int64)


def _encrypt(numbers: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
  """A permutation of the numbers below 2**bits; every round mixes one half into the other, which can be undone."""
  low_bits, high_bits = bits // 2, bits - bits // 2
  low = numbers & np.uint64((1 << low_bits) - 1)
  high = numbers >> np.uint64(low_bits)
  for key in keys:
    high = high ^ (_mix(low ^ key) >> np.uint64(64 - high_bits))
    low, high, low_bits, high_bits = high, low, high_bits, low_bits
  return (high << np.uint64(low_bits)) | low


def _mix(numbers: np.ndarray) -> np.ndarray:
  """Makes the upper bits of every number depend on all of its bits."""
  first, second = _MULTIPLIERS
  mixed = numbers * first
  mixed ^= mixed >> _HALF_WORD
  mixed *= second
  mixed ^= mixed >> _HALF_WORD
  mixed *= first
  return mixed
