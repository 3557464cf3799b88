"""How the tests compile: they compile much and compute little, so without most of XLA's and LLVM's work on speed."""

import jaxlib

FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
AS_USERS = {}  # options that take back what would change results

# Later versions always use the fusion emitters, and end a process that names a flag they do not know.
if tuple(map(int, jaxlib.__version__.split(".")[:2])) < (0, 11):
  FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE"
  FLAGS += " --xla_cpu_parallel_codegen_split_count=1"
  AS_USERS["xla_cpu_use_fusion_emitters"] = True
