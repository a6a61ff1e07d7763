// The byte formulas of the memory ledger: what a rank will hold, class by class, from the layout
// and the rule alone. Compared with the tagged bytes of the arenas at the start of every run:
// within 2 % for state classes.
#pragma once

#include "comm/reduction_order.h"
#include "optim/gradients.h"
#include "optim/memory.h"
#include "optim/shard_layout.h"
#include "optim/update_rule.h"

namespace flashshard {

struct LedgerInputs {
  GradientFormat format = {};
  DType wire = DType::kBF16;
  ReductionOrder order = {};  // of the sum over ranks: what it stages
  int64_t bucket_bytes = 64 << 20;
  int64_t activation_bytes = 0;  // the model's own formula
  int64_t staging_limit = 0;     // of a checkpoint that is copied before it is written; 0: none is
  int64_t other_bytes = 0;       // workspace, tables
};

/// Bytes of a shard's rows, weights and states: its owner's part of a checkpoint.
int64_t owned_bytes(const ShardLayout& layout, const UpdateRule& rule, int shard, DType model);

/// Bytes of `rank` at a stage: what is divided by the shard rule, the rest whole, with the buffers
/// of two buckets, transient gradients and gathered layers where there are any.
MemoryTable predict_memory(const ShardLayout& layout, const UpdateRule& rule, int rank,
                           const LedgerInputs& inputs);

}  // namespace flashshard
