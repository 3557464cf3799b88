"""What every binary does to its process before it starts."""

import os
import subprocess
import sys

import pytest

# Starts threads that allocate beside the imported ones, and counts glibc's arenas.
_COUNT = """
import importlib, sys
importlib.import_module(sys.argv[1])
import ctypes, tempfile, threading
held = [threading.Thread(target=lambda: [bytearray(10**6) for _ in range(20)]) for _ in range(8)]
[thread.start() for thread in held], [thread.join() for thread in held]
libc = ctypes.CDLL("libc.so.6")
libc.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile("r") as file:
  handle = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
  libc.malloc_info(0, handle)
  libc.fclose(handle)
  print(file.read().count("<heap nr="))
"""


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="about glibc's malloc")
@pytest.mark.parametrize("binary", ["train", "evaluate", "benchmark"])
def test_all_threads_allocate_where_freed_memory_is_kept(binary):
  command = [sys.executable, "-c", _COUNT, f"rastp_jax.{binary}"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == ["1"]
