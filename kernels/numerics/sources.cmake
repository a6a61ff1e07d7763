# Sources of the numerics and of the CPU's codec and update loops, relative to kernels/. Included by kernels/CMakeLists.txt.
set(FLASHSHARD_NUMERICS_SOURCES
  numerics/exact_sum.cc
  numerics/random_values.cc
  numerics/update_factors.cc
  cpu/update.cc
  cpu/update_health.cc
  cpu/update_scalar.cc
  cpu/update_vector.cc)
# Same bits everywhere: a fused multiply-add happens only where a formula says so. -fno-math-errno lets sqrt be one
# instruction; it changes no result.
set_source_files_properties(${FLASHSHARD_NUMERICS_SOURCES} PROPERTIES
  COMPILE_OPTIONS "-ffp-contract=off;-fno-math-errno")
