// The byte formulas of the memory ledger: what a rank will hold, class by class, from the layout
// and the rule alone. Compared with the tagged bytes of the arenas at the start of every run:
// within 2 % for state classes.
#pragma once

#include "comm/reduction_order.h"
#include "optim/memory.h"
#include "optim/shard_layout.h"
#include "optim/update_rule.h"

namespace flashshard {

struct LedgerInputs {
  DType weight_dtype = DType::kBF16;
  DType gradient_dtype =
      DType::kBF16;  // fp32 with local accumulation: then it is class `accumulator`
  DType wire = DType::kBF16;
  ReductionOrder order;  // of the sum over ranks: what it stages
  int64_t bucket_bytes = 64 << 20;
  int64_t activation_bytes = 0;  // the model's own formula
  int64_t other_bytes = 0;       // workspace, tables
};

/// Bytes of `rank` under ZeRO-1: weights and gradients whole, states by the shard rule, two bucket
/// buffers where ranks talk.
MemoryTable predict_memory(const ShardLayout& layout, const UpdateRule& rule, int rank,
                           const LedgerInputs& inputs);

}  // namespace flashshard
