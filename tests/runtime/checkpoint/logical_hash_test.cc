// The logical hash is a sum over units: the same for every sharding, different for every change.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <xxhash.h>

#include "runtime/checkpoint/hash.h"
#include "tests/runtime/checkpoint/sample_state.h"

namespace flashshard::checkpoint {
namespace {

using test::SampleState;

TEST(Hash128, IsXxh3InCanonicalForm) {
  EXPECT_EQ(xxh3_128({}).hex(), "99aa06d3014798d86001c324468d497f");
  const std::string text(100'000, 'a');
  Xxh3 pieces;
  pieces.add(bytes_of(text).first(7));
  pieces.add(bytes_of(text).subspan(7));
  EXPECT_EQ(pieces.digest(), xxh3_128(bytes_of(text)));
  EXPECT_EQ(Hash128::from_hex(pieces.digest().hex()), pieces.digest());
}

TEST(Hash128, OnlyThirtyTwoSmallHexadecimalDigitsAreOne) {
  EXPECT_FALSE(Hash128::from_hex(""));
  EXPECT_FALSE(Hash128::from_hex(std::string(31, '0')));
  EXPECT_FALSE(Hash128::from_hex(std::string(33, '0')));
  EXPECT_FALSE(Hash128::from_hex(std::string(31, '0') + "G"));
  EXPECT_FALSE(Hash128::from_hex(std::string(31, '0') + "A"));
}

TEST(Hash128, AddsModulo2To128) {
  Hash128 sum{~uint64_t{0}, ~uint64_t{0}};
  sum += {1, 0};
  EXPECT_EQ(sum, (Hash128{0, 0}));
  sum = {~uint64_t{0}, 5};
  sum += {2, 7};
  EXPECT_EQ(sum, (Hash128{1, 13}));
}

TEST(StateClass, ComesFromTheName) {
  EXPECT_EQ(class_of_state("weight"), StateClass::kWeights);
  EXPECT_EQ(class_of_state("correction"), StateClass::kCorrection);
  EXPECT_EQ(class_of_state("error_correction"), StateClass::kCorrection);
  EXPECT_EQ(class_of_state("momentum"), StateClass::kMomentum);
  EXPECT_EQ(class_of_state("variance"), StateClass::kVariance);
  EXPECT_EQ(class_of_state("momentum_scale"), StateClass::kScales);
  EXPECT_EQ(class_of_state("projection"), StateClass::kOther);
  EXPECT_EQ(name_of(StateClass::kScales), "scales");
}

TEST(LogicalHash, OfOneUnitIsTheHashOfNameStateIndexAndBytes) {
  const std::string bytes = "0123456789";
  LogicalHasher hasher;
  hasher.add({.tensor = "t",
              .state = "momentum",
              .first_unit = 258,
              .unit_bytes = 16,
              .bytes = bytes_of(bytes)});
  const std::string hashed = std::string("t\0momentum\0\2\1\0\0\0\0\0\0", 19) + bytes;
  const XXH128_hash_t expected = XXH3_128bits(hashed.data(), hashed.size());
  EXPECT_EQ(hasher.sum().of(StateClass::kMomentum), (Hash128{expected.low64, expected.high64}));
  EXPECT_EQ(hasher.sum().total(), hasher.sum().of(StateClass::kMomentum));
}

class LogicalHashAtWorldSize : public ::testing::TestWithParam<int> {};

TEST_P(LogicalHashAtWorldSize, EqualsThatOfOneRank) {
  const SampleState whole(0, 1, 42);
  const LogicalHash expected = hash_of_views(whole.layout(), whole.views());
  LogicalHash sum;
  for (int r = 0; r < GetParam(); ++r) {
    const SampleState part(r, GetParam(), 42);
    sum += hash_of_views(part.layout(), part.views());
  }
  EXPECT_EQ(sum, expected);
}

TEST_P(LogicalHashAtWorldSize, IsTheSameOnEveryRankOfARunningJob) {
  const SampleState whole(0, 1, 42);
  const LogicalHash expected = hash_of_views(whole.layout(), whole.views());
  const auto errors = test::errors_of_ranks(GetParam(), [&](Communicator& communicator) {
    const SampleState part(communicator.rank(), communicator.world_size(), 42);
    EXPECT_EQ(live_hash(part.layout(), part.views(), communicator), expected);
  });
  EXPECT_THAT(errors, ::testing::Each(""));
}

INSTANTIATE_TEST_SUITE_P(WorldSizes, LogicalHashAtWorldSize, ::testing::Values(1, 2, 3, 4, 7, 17));

TEST(LogicalHash, ChangesInTheClassOfAChangedByteOnly) {
  SampleState state(0, 1, 42);
  const LogicalHash before = hash_of_views(state.layout(), state.views());
  for (const ShardTensorView& view : state.views()) {
    view.bytes.back() ^= std::byte{1};
    const LogicalHash after = hash_of_views(state.layout(), state.views());
    for (size_t c = 0; c < kStateClasses; ++c) {
      EXPECT_EQ(after.by_class[c] != before.by_class[c],
                c == static_cast<size_t>(class_of_state(view.state)))
          << view.state;
    }
    EXPECT_NE(after.total(), before.total());
    view.bytes.back() ^= std::byte{1};
  }
}

TEST(LogicalHash, SwappedUnitsDoNotCancel) {
  const std::string a(32, 'a');
  const std::string b(32, 'b');
  const auto hash_of = [](const std::string& bytes) {
    LogicalHasher hasher;
    hasher.add({.tensor = "t",
                .state = "weight",
                .first_unit = 0,
                .unit_bytes = 32,
                .bytes = bytes_of(bytes)});
    return hasher.sum().total();
  };
  EXPECT_NE(hash_of(a + b), hash_of(b + a));
}

}  // namespace
}  // namespace flashshard::checkpoint
