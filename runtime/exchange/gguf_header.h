// The head of a GGUF file, version 3 (github.com/ggml-org/ggml, docs/gguf.md): "GGUF", version,
// counts, key-value pairs, the table of tensors, all little-endian; then the tensors' bytes, each
// from a multiple of 32 on.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace flashshard::exchange {

enum class GgufType : uint32_t { kF32 = 0, kBF16 = 30 };

class GgufHeader {
 public:
  void add_text(std::string_view key, std::string_view value);
  void add_number(std::string_view key, int64_t value);  // uint32: 0 to 2^32 - 1
  void add_real(std::string_view key, double value);     // float32
  void add_flag(std::string_view key, bool value);
  void add_texts(std::string_view key, std::span<const std::string> values);
  void add_reals(std::string_view key, std::span<const float> values);
  void add_integers(std::string_view key, std::span<const int32_t> values);

  /// The next tensor; `shape` has its outermost dimension first (GGUF has it last).
  void add_tensor(std::string_view name, std::span<const int64_t> shape, GgufType type);

  /// The file's bytes up to the first tensor.
  std::string bytes() const;
  /// Zeros behind a tensor of so many bytes.
  static uint64_t padding_after(uint64_t bytes);

 private:
  void begin_pair(std::string_view key, uint32_t type);
  void begin_array(std::string_view key, uint32_t type, size_t count);

  uint64_t pairs_ = 0;
  uint64_t tensors_ = 0;
  uint64_t next_offset_ = 0;
  std::string pair_bytes_;
  std::string tensor_bytes_;
};

}  // namespace flashshard::exchange
