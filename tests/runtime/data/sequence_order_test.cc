// The order of training sequences: a permutation each epoch, another text cut each epoch, the same
// numbers for ever.
#include "runtime/data/sequence_order.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "runtime/data/index_permutation.h"
#include "tests/runtime/data/data_folder.h"

namespace flashshard::data {
namespace {

class PermutationSize : public testing::TestWithParam<uint64_t> {};

TEST_P(PermutationSize, EveryIndexAppearsOnceInEveryEpoch) {
  const uint64_t size = GetParam();
  for (uint64_t epoch = 0; epoch < 4; ++epoch) {
    const IndexPermutation order(size, {.seed = 5, .epoch = epoch});
    std::vector<bool> seen(size);
    for (uint64_t i = 0; i < size; ++i) {
      const uint64_t place = order(i);
      ASSERT_LT(place, size);
      ASSERT_FALSE(seen[place]);
      seen[place] = true;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, PermutationSize,
                         testing::Values(1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1000, 17'204));

TEST(IndexPermutation, StaysInRangeForHugeSizes) {
  const uint64_t size = (uint64_t{1} << 40) + 12'345;
  const IndexPermutation order(size, {.seed = 1, .epoch = uint64_t{1} << 33});
  std::set<uint64_t> seen;
  for (uint64_t i = 0; i < 1000; ++i) seen.insert(order(size - 1 - i));
  EXPECT_EQ(seen.size(), 1000u);
  EXPECT_LT(*seen.rbegin(), size);
}

class FairSize : public testing::TestWithParam<uint64_t> {};

// Chi-square of the places of two indices over many epochs. With dof = categories - 1, a fair
// shuffle exceeds dof + 6 sqrt(2 dof) about once in a million.
TEST_P(FairSize, EveryPairOfPlacesIsEquallyLikely) {
  const uint64_t size = GetParam();
  const double categories = static_cast<double>(size * (size - 1));
  const auto epochs = static_cast<uint64_t>(50 * categories);
  std::map<std::pair<uint64_t, uint64_t>, int> counts;
  for (uint64_t epoch = 0; epoch < epochs; ++epoch) {
    const IndexPermutation order(size, {.seed = 9, .epoch = epoch});
    ++counts[{order(0), order(size - 1)}];
  }
  double chi_square = 50 * (categories - static_cast<double>(counts.size()));
  for (const auto& [places, count] : counts) chi_square += (count - 50.0) * (count - 50.0) / 50;
  const double dof = categories - 1;
  EXPECT_LT(chi_square, dof + 6 * std::sqrt(2 * dof));
}

INSTANTIATE_TEST_SUITE_P(Sizes, FairSize, testing::Values(3, 5, 16, 17, 40));

TEST(IndexPermutation, SeedsAndEpochsGiveUnrelatedOrders) {
  const uint64_t size = 10'000;
  const IndexPermutation order(size, {.seed = 1, .epoch = 0});
  for (const PermutationKey& key : {PermutationKey{1, 1}, {2, 0}, {uint64_t{1} << 32, 0}}) {
    const IndexPermutation other(size, key);
    int equal = 0;
    for (uint64_t i = 0; i < size; ++i) equal += order(i) == other(i);
    EXPECT_LT(equal, 12);  // 1 expected
  }
}

TEST(RandomUpTo, ReachesBothEndsAndNothingBeyond) {
  std::set<uint64_t> seen;
  for (uint64_t epoch = 0; epoch < 500; ++epoch)
    seen.insert(random_up_to(7, {.seed = 3, .epoch = epoch}));
  EXPECT_EQ(seen, (std::set<uint64_t>{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(random_up_to(0, {}), 0u);
  EXPECT_NE(random_up_to(UINT64_MAX, {.seed = 1}), random_up_to(UINT64_MAX, {.seed = 2}));
}

TEST(SequenceOrder, IsTheOneOfTheDocument) {
  const auto cases = nlohmann::json::parse(
      read_file(FLASHSHARD_TEST_DATA "/runtime/data/golden/sequence_order.json"));
  ASSERT_GE(cases.size(), 8u);
  for (const auto& expected : cases) {
    const SequenceOrder order({.token_count = expected["tokens"],
                               .sequence_length = expected["sequence_length"],
                               .seed = expected["seed"]});
    std::vector<int64_t> positions;
    for (size_t i = 0; i < expected["positions"].size(); ++i) {
      positions.push_back(
          order.position(expected["first_sequence"].get<int64_t>() + static_cast<int64_t>(i)));
    }
    EXPECT_EQ(nlohmann::json(positions), expected["positions"]) << expected["tokens"];
  }
}

struct Extent {
  int64_t tokens;
  int64_t length;
};
class TextExtent : public testing::TestWithParam<Extent> {};

TEST_P(TextExtent, AnEpochLaysWindowsSideBySideInsideTheTextAndVisitsEachOnce) {
  const auto [tokens, length] = GetParam();
  const SequenceOrder order({.token_count = tokens, .sequence_length = length, .seed = 11});
  const int64_t windows = order.sequences_per_epoch();
  EXPECT_GT((windows + 2) * length, tokens - 1) << "two sequences of text unused";
  std::set<int64_t> offsets;
  for (int64_t epoch = 0; epoch < 50; ++epoch) {
    std::vector<int64_t> positions;
    for (int64_t i = 0; i < windows; ++i) positions.push_back(order.position(epoch * windows + i));
    std::sort(positions.begin(), positions.end());
    EXPECT_GE(positions.front(), 0);
    EXPECT_LE(positions.back() + length + 1, tokens);
    for (size_t i = 1; i < positions.size(); ++i) {
      ASSERT_EQ(positions[i] - positions[i - 1], length);
    }
    offsets.insert(positions.front());
  }
  const int64_t choices = tokens - windows * length;
  EXPECT_GE(static_cast<int64_t>(offsets.size()), std::min<int64_t>(choices, 10));
}

INSTANTIATE_TEST_SUITE_P(Extents, TextExtent,
                         testing::Values(Extent{2, 1}, Extent{17, 16}, Extent{31, 16},
                                         Extent{32, 16}, Extent{33, 16}, Extent{48, 16},
                                         Extent{1000, 16}, Extent{1023, 16}, Extent{100, 1}));

TEST(SequenceOrder, EveryTokenIsATargetSoonerOrLater) {
  const int64_t tokens = 100;
  const int64_t length = 16;
  const SequenceOrder order({.token_count = tokens, .sequence_length = length, .seed = 2});
  std::vector<int> targeted(tokens);
  for (int64_t i = 0; i < 100 * order.sequences_per_epoch(); ++i) {
    for (int64_t t = 0; t < length; ++t) ++targeted[static_cast<size_t>(order.position(i) + 1 + t)];
  }
  EXPECT_EQ(targeted[0], 0);
  EXPECT_GT(*std::min_element(targeted.begin() + 1, targeted.end()), 0);
}

}  // namespace
}  // namespace flashshard::data
