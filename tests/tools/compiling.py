"""How the tests compile: they compile much and compute little, so without most of XLA's and LLVM's work on speed."""

FLAGS = (
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
)
