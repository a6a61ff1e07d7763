# Sources of the CUDA kernels, relative to kernels/. Included by kernels/CMakeLists.txt.
set(FLASHSHARD_CUDA_SOURCES
  cuda/sharding.cu
  cuda/update.cu
  cuda/update_adam.cu
  cuda/update_lion.cu
  cuda/update_momentum.cu
  cuda/update_nesterov.cu
  cuda/update_plain.cu)
# Same bits as the CPU: no contraction, IEEE division, no flush to zero. A kernel that spills registers, or keeps an array in
# local memory, does not compile.
set_source_files_properties(${FLASHSHARD_CUDA_SOURCES} PROPERTIES
  COMPILE_OPTIONS "-fmad=false;-ftz=false;-prec-div=true;-prec-sqrt=true;--expt-relaxed-constexpr;-Xptxas=-warn-spills,-warn-lmem-usage,-Werror")
