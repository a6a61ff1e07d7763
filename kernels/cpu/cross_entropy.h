// Language-model head and loss with bounded memory: logits exist for one chunk of the vocabulary
// and one block of tokens at a time.
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/workspace.h"

namespace flashshard::cpu {

size_t cross_entropy_workspace(const CrossEntropy& call, const Gemm& gemm);
void cross_entropy(const CrossEntropy& call, Workspace workspace, Gemm& gemm, ThreadPool& pool);

}  // namespace flashshard::cpu
