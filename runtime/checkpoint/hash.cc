#include "runtime/checkpoint/hash.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>

#include "runtime/checkpoint/file_system.h"
#include "runtime/checkpoint/schema.h"

namespace flashshard::checkpoint {
namespace {

XXH3_state_t* state_of(void* state) { return static_cast<XXH3_state_t*>(state); }

constexpr std::array<std::string_view, kStateClasses> kClassNames = {
    "weights", "correction", "momentum", "variance", "scales", "other"};

// Limbs of 32 bits in int64: their sums over up to 2^31 ranks cannot overflow.
constexpr size_t kLimbs = 4;

std::array<int64_t, kLimbs> limbs_of(Hash128 hash) {
  return {static_cast<int64_t>(hash.low & 0xffffffffu), static_cast<int64_t>(hash.low >> 32),
          static_cast<int64_t>(hash.high & 0xffffffffu), static_cast<int64_t>(hash.high >> 32)};
}

Hash128 hash_of_limbs(std::span<const int64_t, kLimbs> limbs) {
  Hash128 hash;
  uint64_t carry = 0;
  std::array<uint64_t, kLimbs> words = {};
  for (size_t i = 0; i < kLimbs; ++i) {
    const uint64_t sum = static_cast<uint64_t>(limbs[i]) + carry;
    words[i] = sum & 0xffffffffu;
    carry = sum >> 32;
  }
  hash.low = words[0] | words[1] << 32;
  hash.high = words[2] | words[3] << 32;
  return hash;
}

}  // namespace

Hash128& Hash128::operator+=(Hash128 other) {
  low += other.low;
  high += other.high + (low < other.low ? 1 : 0);
  return *this;
}

std::string Hash128::hex() const { return fmt::format("{:016x}{:016x}", high, low); }

std::optional<Hash128> Hash128::from_hex(std::string_view text) {
  if (text.size() != 32) return std::nullopt;
  Hash128 hash;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    int digit = 0;
    if (c >= '0' && c <= '9') {
      digit = c - '0';
    } else if (c >= 'a' && c <= 'f') {
      digit = c - 'a' + 10;
    } else {
      return std::nullopt;
    }
    uint64_t& half = i < 16 ? hash.high : hash.low;
    half = half << 4 | static_cast<uint64_t>(digit);
  }
  return hash;
}

void Xxh3::Free::operator()(void* state) const noexcept { XXH3_freeState(state_of(state)); }

Xxh3::Xxh3() : state_(XXH3_createState()) {
  if (!state_) throw std::bad_alloc();
  reset();
}
void Xxh3::reset() { XXH3_128bits_reset(state_of(state_.get())); }
void Xxh3::add(std::span<const std::byte> bytes) {
  if (!bytes.empty()) XXH3_128bits_update(state_of(state_.get()), bytes.data(), bytes.size());
}
Hash128 Xxh3::digest() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(state_of(state_.get()));
  return {hash.low64, hash.high64};
}

Hash128 xxh3_128(std::span<const std::byte> bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return {hash.low64, hash.high64};
}

std::string_view name_of(StateClass state_class) {
  return kClassNames[static_cast<size_t>(state_class)];
}

StateClass class_of_state(std::string_view state) {
  if (state == kWeightState) return StateClass::kWeights;
  if (state == "correction" || state == "error_correction") return StateClass::kCorrection;
  if (state == "momentum") return StateClass::kMomentum;
  if (state == "variance") return StateClass::kVariance;
  if (state.ends_with("_scale")) return StateClass::kScales;
  return StateClass::kOther;
}

Hash128 LogicalHash::total() const {
  Hash128 sum;
  for (const Hash128& hash : by_class) sum += hash;
  return sum;
}

LogicalHash& LogicalHash::operator+=(const LogicalHash& other) {
  for (size_t c = 0; c < kStateClasses; ++c) by_class[c] += other.by_class[c];
  return *this;
}

void LogicalHasher::add(const UnitRun& run) {
  std::string prefix;
  prefix.append(run.tensor).push_back('\0');
  prefix.append(run.state).push_back('\0');
  const size_t index_at = prefix.size();
  prefix.resize(index_at + sizeof(uint64_t));

  Hash128& sum = sum_.by_class[static_cast<size_t>(class_of_state(run.state))];
  auto unit = static_cast<uint64_t>(run.first_unit);
  for (auto bytes = run.bytes; !bytes.empty(); ++unit) {
    const auto size = std::min(bytes.size(), static_cast<size_t>(run.unit_bytes));
    for (size_t i = 0; i < sizeof(uint64_t); ++i) {
      prefix[index_at + i] = static_cast<char>(unit >> (8 * i) & 0xff);
    }
    unit_.reset();
    unit_.add(bytes_of(prefix));
    unit_.add(bytes.first(size));
    sum += unit_.digest();
    bytes = bytes.subspan(size);
  }
}

LogicalHash all_reduce(const LogicalHash& part, Communicator& communicator) {
  std::array<int64_t, kLimbs* kStateClasses> limbs = {};
  for (size_t c = 0; c < kStateClasses; ++c) {
    std::ranges::copy(limbs_of(part.by_class[c]), limbs.begin() + static_cast<long>(c * kLimbs));
  }
  communicator.all_reduce(limbs, ReduceOp::kSum).wait("waiting for the sum of the logical hashes");
  LogicalHash sum;
  for (size_t c = 0; c < kStateClasses; ++c) {
    sum.by_class[c] =
        hash_of_limbs(std::span<const int64_t>(limbs).subspan(c * kLimbs).first<kLimbs>());
  }
  return sum;
}

LogicalHash hash_of_views(const ShardLayout& layout, std::span<const ShardTensorView> views) {
  LogicalHasher hasher;
  for (const ShardTensorView& view : views) {
    if (view.bytes.empty()) continue;
    const StateRecord record{view.state, view.dtype, view.group};
    hasher.add({.tensor = layout.parameter(view.tensor).name,
                .state = view.state,
                .first_unit = view.rows.first / layout.unit_rows(view.tensor),
                .unit_bytes = unit_bytes(layout, view.tensor, record),
                .bytes = view.bytes});
  }
  return hasher.sum();
}

LogicalHash live_hash(const ShardLayout& layout, std::span<const ShardTensorView> views,
                      Communicator& communicator) {
  return all_reduce(hash_of_views(layout, views), communicator);
}

}  // namespace flashshard::checkpoint
