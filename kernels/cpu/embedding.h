// Embedding lookup and its gradient, a sum over the tokens of every vocabulary row in order of t.
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/workspace.h"

namespace flashshard::cpu {

void embedding_forward(const EmbeddingForward& call, ThreadPool& pool);

size_t embedding_backward_workspace(const EmbeddingBackward& call, int threads);
void embedding_backward(const EmbeddingBackward& call, Workspace workspace, ThreadPool& pool);

}  // namespace flashshard::cpu
