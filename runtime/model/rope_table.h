// The table of rotary position embeddings (RoFormer, arXiv 2104.09864).
#pragma once

#include <cstdint>
#include <vector>

namespace flashshard {

/// (positions, head_dim) fp32: cosines then sines of position * theta^(-2i/D), i in [0, D/2).
/// Computed in double and rounded once, so that late positions lose nothing to an fp32 angle.
std::vector<float> rope_table(int64_t positions, int head_dim, double theta);

}  // namespace flashshard
