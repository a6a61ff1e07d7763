// A checkpoint's weights as numbers: what the model computes with, or the fp32 masters behind them,
// exactly, from weight and correction bits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "runtime/checkpoint/hash.h"
#include "runtime/checkpoint/reader.h"

namespace flashshard::checkpoint {

/// Which value of a weight is meant: the one that the model computes with, or the master that the
/// optimizer updates (docs/numerics.md).
enum class WeightValue : uint8_t { kModel, kMaster };

class MasterReader {
 public:
  /// `checkpoint` and `backend` (a CPU's) must outlive it. Throws Error(kCheckpoint) for weights or
  /// corrections of a type that no format has.
  MasterReader(const CheckpointReader& checkpoint, Backend& backend);

  /// fp32 values of rows of a tensor, row-major: `values` has rows.count * cols. Any rows: what is
  /// held besides is the units that they touch.
  void read(int tensor, RowRange rows, WeightValue value, std::span<float> values);
  /// The same rounded to bf16, to nearest even: exact for the weights of a bf16 model.
  void read_bf16(int tensor, RowRange rows, std::span<uint16_t> values);

  /// Logical hash of the units read, each counted once if a tensor's rows were read in their order.
  const LogicalHash& hash() const { return hasher_.sum(); }

 private:
  void read_state(int tensor, size_t state, RowRange units, std::vector<std::byte>& bytes);

  const CheckpointReader& checkpoint_;
  Backend& backend_;
  RowReader rows_;
  LogicalHasher hasher_;
  std::vector<WeightFormat> formats_;                // by tensor
  std::vector<size_t> correction_states_;            // by tensor, in Schema::states; 0: none
  std::vector<std::array<int64_t, 2>> hashed_rows_;  // by tensor, of weight and correction
  std::vector<std::byte> weight_, correction_;       // of the units in hand
  std::vector<float> values_;
};

/// Throws Error(kCheckpoint) unless `read`, summed over all readers, is the manifest's logical hash
/// of the weights and, where `value` needs them, of the corrections.
void require_weights_of(const CheckpointReader& checkpoint, const LogicalHash& read,
                        WeightValue value);

}  // namespace flashshard::checkpoint
