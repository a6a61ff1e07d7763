#include "runtime/exchange/gguf_header.h"

#include <bit>
#include <cstring>
#include <type_traits>

namespace flashshard::exchange {
namespace {

static_assert(std::endian::native == std::endian::little, "values are written as they lie");

constexpr uint32_t kVersion = 3;
constexpr uint64_t kAlignment = 32;

// The format's numbers of value types.
constexpr uint32_t kUint32 = 4;
constexpr uint32_t kInt32 = 5;
constexpr uint32_t kFloat32 = 6;
constexpr uint32_t kBool = 7;
constexpr uint32_t kString = 8;
constexpr uint32_t kArray = 9;

template <class T>
void append(std::string& bytes, T value) {
  static_assert(std::is_trivially_copyable_v<T>);
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

void append_text(std::string& bytes, std::string_view text) {
  append(bytes, uint64_t{text.size()});
  bytes.append(text);
}

}  // namespace

void GgufHeader::begin_pair(std::string_view key, uint32_t type) {
  ++pairs_;
  append_text(pair_bytes_, key);
  append(pair_bytes_, type);
}

void GgufHeader::begin_array(std::string_view key, uint32_t type, size_t count) {
  begin_pair(key, kArray);
  append(pair_bytes_, type);
  append(pair_bytes_, uint64_t{count});
}

void GgufHeader::add_text(std::string_view key, std::string_view value) {
  begin_pair(key, kString);
  append_text(pair_bytes_, value);
}

void GgufHeader::add_number(std::string_view key, int64_t value) {
  begin_pair(key, kUint32);
  append(pair_bytes_, static_cast<uint32_t>(value));
}

void GgufHeader::add_real(std::string_view key, double value) {
  begin_pair(key, kFloat32);
  append(pair_bytes_, static_cast<float>(value));
}

void GgufHeader::add_flag(std::string_view key, bool value) {
  begin_pair(key, kBool);
  append(pair_bytes_, uint8_t{value});
}

void GgufHeader::add_texts(std::string_view key, std::span<const std::string> values) {
  begin_array(key, kString, values.size());
  for (const std::string& value : values) append_text(pair_bytes_, value);
}

void GgufHeader::add_reals(std::string_view key, std::span<const float> values) {
  begin_array(key, kFloat32, values.size());
  for (const float value : values) append(pair_bytes_, value);
}

void GgufHeader::add_integers(std::string_view key, std::span<const int32_t> values) {
  begin_array(key, kInt32, values.size());
  for (const int32_t value : values) append(pair_bytes_, value);
}

void GgufHeader::add_tensor(std::string_view name, std::span<const int64_t> shape, GgufType type) {
  ++tensors_;
  append_text(tensor_bytes_, name);
  append(tensor_bytes_, static_cast<uint32_t>(shape.size()));
  uint64_t size = type == GgufType::kF32 ? sizeof(float) : sizeof(uint16_t);
  for (size_t i = shape.size(); i-- > 0;) {
    append(tensor_bytes_, static_cast<uint64_t>(shape[i]));
    size *= static_cast<uint64_t>(shape[i]);
  }
  append(tensor_bytes_, static_cast<uint32_t>(type));
  append(tensor_bytes_, next_offset_);
  next_offset_ += size + padding_after(size);
}

std::string GgufHeader::bytes() const {
  std::string bytes = "GGUF";
  append(bytes, kVersion);
  append(bytes, tensors_);
  append(bytes, pairs_);
  bytes += pair_bytes_;
  bytes += tensor_bytes_;
  bytes.append(padding_after(bytes.size()), '\0');
  return bytes;
}

uint64_t GgufHeader::padding_after(uint64_t bytes) {
  return (kAlignment - bytes % kAlignment) % kAlignment;
}

}  // namespace flashshard::exchange
