/* Optimizer steps on an NVIDIA GPU, in plain C: libflashshard_codec_cuda, which has the calls of
 * flashshard.h as well. The bits are those of fs_apply_step.
 */
#ifndef FLASHSHARD_CAPI_FLASHSHARD_CUDA_H_
#define FLASHSHARD_CAPI_FLASHSHARD_CUDA_H_

#include "kernels/capi/flashshard.h"

#ifdef __cplusplus
extern "C" {
#endif

/* fs_apply_step on `count` tensors with one step, whose buffers are memory of the current device;
 * so is *rejected_groups, which they share and which may be null. No two buffers of a call, of
 * different tensors either, may share memory (FS_OVERLAP), nor a buffer with *rejected_groups.
 * Scales are not checked. Does not wait: the work is queued on `stream`, a cudaStream_t (null: the
 * default stream). Tensors of the same formats share one launch, up to 128 of them. */
FS_API fs_status fs_cuda_apply_steps(const fs_tensor* tensors, int64_t count, const fs_step* step,
                                     int64_t* rejected_groups, void* stream);

#ifdef __cplusplus
}
#endif

#endif /* FLASHSHARD_CAPI_FLASHSHARD_CUDA_H_ */
