// The FLAT fold against a serial reference written here on its own, on values whose sum shows any
// other order: exponents are spread over 2^-12 .. 2^12.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <string>

#include "comm/fold_reduce.h"
#include "tests/comm/verb_checks.h"

namespace flashshard::test {

namespace {

uint64_t scramble(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

/// Rank `rank`'s element `i`: random sign and mantissa, exponent in -12 .. 12.
float element(int rank, size_t i) {
  const uint64_t bits = scramble(static_cast<uint64_t>(rank) * 1000003 + i + 1);
  const auto exponent = static_cast<uint32_t>(127 - 12 + (bits >> 40) % 25);
  return std::bit_cast<float>(static_cast<uint32_t>(bits & 0x80000000u) | (exponent << 23) |
                              static_cast<uint32_t>(bits >> 8 & 0x7fffffu));
}

uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t tie_to_even = 0x7fffu + ((bits >> 16) & 1u);
  return static_cast<uint16_t>((bits + tie_to_even) >> 16);
}
float from_bf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

float on_the_wire(float value, DType wire) {
  return wire == DType::kBF16 ? from_bf16(to_bf16(value)) : value;
}

float reference_fold(std::span<const int> contributors, size_t i, DType wire) {
  float sum = on_the_wire(element(contributors[0], i), wire);
  for (int rank : contributors.subspan(1)) sum = sum + on_the_wire(element(rank, i), wire);
  return sum;
}

void write(std::byte* at, float value, DType dtype) {
  if (dtype == DType::kBF16) {
    const uint16_t bits = to_bf16(value);
    std::memcpy(at, &bits, sizeof bits);
  } else {
    std::memcpy(at, &value, sizeof value);
  }
}

/// A reduction of one slice per rank: uneven, and empty for every third rank.
class Reduction {
 public:
  Reduction(Communicator& comm, DType wire, std::vector<int> contributors)
      : comm_(comm), wire_(wire), contributors_(std::move(contributors)) {
    for (int p = 0; p < comm.world_size(); ++p) {
      const size_t elements = p % 3 == 2 ? 0 : 100 + static_cast<size_t>(p) * 37;
      slices_.push_back({packed_elements_ * size_of(wire), elements * size_of(wire)});
      packed_elements_ += elements;
    }
    const ByteRange own = slices_[static_cast<size_t>(comm.rank())];
    first_ = own.offset / size_of(wire);
    count_ = own.size / size_of(wire);
    head_.resize(count_ / 3);
    tail_.resize(count_ - head_.size());
  }

  /// The first third of the own slice goes to a bf16 tensor, the rest to an fp32 one.
  void run(Backend& backend) {
    std::vector<std::byte> packed;
    if (std::ranges::count(contributors_, comm_.rank()) > 0) {
      packed.resize(packed_elements_ * size_of(wire_));
      for (size_t i = 0; i < packed_elements_; ++i) {
        write(packed.data() + i * size_of(wire_), element(comm_.rank(), i), wire_);
      }
    }
    std::vector<std::byte> staging(staging_bytes(slices_, contributors_, comm_.rank()));
    const Tensor outputs[] = {
        Tensor(head_.data(), DType::kBF16, {static_cast<int64_t>(head_.size())}),
        Tensor(tail_.data(), DType::kFP32, {static_cast<int64_t>(tail_.size())})};
    FoldReduction reduction(comm_, backend);
    reduction.start({.packed = packed,
                     .slices = slices_,
                     .staging = staging,
                     .wire_dtype = wire_,
                     .outputs = outputs,
                     .contributors = contributors_});
    reduction.finish("the fold");
    backend.synchronize();
  }

  void expect_bits_of_the_reference() const {
    for (size_t i = 0; i < count_; ++i) {
      const float sum = reference_fold(contributors_, first_ + i, wire_);
      if (i < head_.size()) {
        ASSERT_EQ(head_[i], to_bf16(sum)) << "element " << i;
      } else {
        ASSERT_EQ(std::bit_cast<uint32_t>(tail_[i - head_.size()]), std::bit_cast<uint32_t>(sum))
            << "element " << i;
      }
    }
  }

 private:
  Communicator& comm_;
  DType wire_;
  std::vector<int> contributors_;
  std::vector<ByteRange> slices_;
  size_t packed_elements_ = 0, first_ = 0, count_ = 0;
  std::vector<uint16_t> head_;
  std::vector<float> tail_;
};

std::vector<int> ranks_where(int world_size, bool (*take)(int rank, int world_size)) {
  std::vector<int> ranks;
  for (int r = 0; r < world_size; ++r) {
    if (take(r, world_size)) ranks.push_back(r);
  }
  return ranks;
}

void check_fold(Communicator& comm, std::vector<int> contributors) {
  const auto backend = make_cpu_backend({.threads = 1});
  for (DType wire : {DType::kBF16, DType::kFP32}) {
    Reduction reduction(comm, wire, contributors);
    reduction.run(*backend);
    reduction.expect_bits_of_the_reference();
  }
}

void fold_of_all_ranks_has_the_bits_of_the_reference(Communicator& comm) {
  check_fold(comm, ranks_where(comm.world_size(), [](int, int) { return true; }));
}

void fold_skips_ranks_without_a_contribution(Communicator& comm) {
  check_fold(comm, ranks_where(comm.world_size(), [](int r, int n) { return r != 0 || n == 1; }));
  check_fold(comm, ranks_where(comm.world_size(), [](int r, int) { return r % 2 == 0; }));
  check_fold(comm, ranks_where(comm.world_size(), [](int r, int n) { return r == n - 1; }));
}

void fold_of_negative_zeros_stays_negative(Communicator& comm) {
  // Any seed of +0, or a skipped rank added as +0, would turn the sum into +0.
  const auto n = static_cast<size_t>(comm.world_size());
  const std::vector<int> contributors =
      ranks_where(comm.world_size(), [](int r, int size) { return r + 1 < size || size == 1; });
  std::vector<ByteRange> slices;
  for (size_t p = 0; p < n; ++p) slices.push_back({p * 2, 2});
  std::vector<uint16_t> packed(n, 0x8000), staging(n);
  uint16_t sum = 0;
  const Tensor output(&sum, DType::kBF16, {1});
  const auto backend = make_cpu_backend({.threads = 1});
  FoldReduction reduction(comm, *backend);
  reduction.start({.packed = std::as_bytes(std::span(packed)),
                   .slices = slices,
                   .staging = std::as_writable_bytes(std::span(staging)),
                   .wire_dtype = DType::kBF16,
                   .outputs = std::span(&output, 1),
                   .contributors = contributors});
  reduction.finish("the fold");
  backend->synchronize();
  EXPECT_EQ(sum, 0x8000);
}

void folds_that_cannot_be_right_are_refused(Communicator& comm) {
  const auto backend = make_cpu_backend({.threads = 1});
  const std::vector<ByteRange> slices(static_cast<size_t>(comm.world_size()), {0, 4});
  std::vector<std::byte> packed(4), staging(4 * slices.size());
  float out = 0;
  const Tensor output(&out, DType::kBF16, {2}), short_output(&out, DType::kBF16, {1});
  const Tensor integers(&out, DType::kINT16, {2});
  const std::vector<int> first = {0}, outside = {comm.world_size()}, twice = {0, 0};
  const FoldReduce good{.packed = packed,
                        .slices = slices,
                        .staging = staging,
                        .wire_dtype = DType::kBF16,
                        .outputs = std::span(&output, 1),
                        .contributors = first};
  FoldReduction reduction(comm, *backend);
  const auto refused = [&](auto change) {
    FoldReduce call = good;
    change(call);
    EXPECT_THROW(reduction.start(call), Error);
  };
  refused([](FoldReduce& call) { call.contributors = {}; });
  refused([&](FoldReduce& call) { call.contributors = outside; });
  refused([&](FoldReduce& call) { call.contributors = twice; });
  refused([](FoldReduce& call) { call.slices = {}; });
  refused([&](FoldReduce& call) { call.outputs = std::span(&short_output, 1); });
  refused([&](FoldReduce& call) { call.outputs = std::span(&integers, 1); });
  refused([](FoldReduce& call) { call.wire_dtype = DType::kINT8; });
  if (comm.rank() == 0) {
    refused([](FoldReduce& call) { call.packed = call.packed.first(3); });
  } else {
    refused([](FoldReduce& call) { call.staging = {}; });
  }
  EXPECT_THROW(reduction.finish("nothing"), Error);
  reduction.start(good);
  EXPECT_THROW(reduction.start(good), Error);
  reduction.finish("the fold after refusals");
  backend->synchronize();
}

constexpr VerbCheck kFoldChecks[] = {
    {"FoldOfAllRanksHasTheBitsOfTheReference", fold_of_all_ranks_has_the_bits_of_the_reference},
    {"FoldSkipsRanksWithoutAContribution", fold_skips_ranks_without_a_contribution},
    {"FoldOfNegativeZerosStaysNegative", fold_of_negative_zeros_stays_negative},
    {"FoldsThatCannotBeRightAreRefused", folds_that_cannot_be_right_are_refused},
};

TEST(FoldReference, ShowsAnyOtherOrder) {
  const std::vector<int> forward = {0, 1, 2, 3}, swapped = {0, 1, 3, 2};
  for (DType wire : {DType::kBF16, DType::kFP32}) {
    int different = 0;
    for (size_t i = 0; i < 1000; ++i) {
      different += reference_fold(forward, i, wire) != reference_fold(swapped, i, wire);
    }
    EXPECT_GT(different, 10) << "of 1000 elements";
  }
}

}  // namespace

std::span<const VerbCheck> fold_checks() { return kFoldChecks; }

}  // namespace flashshard::test
