// Validation reads every held-out token but the first exactly once, masks the rest, and never
// depends on a seed.
#include "runtime/data/validation_windows.h"

#include <set>

#include "tests/runtime/data/data_folder.h"

namespace flashshard::data {
namespace {

using testing::StartsWith;

struct Windows {
  std::vector<int32_t> inputs;
  std::vector<int32_t> targets;
  int64_t counted = 0;
};

Windows read_all(const ValidationWindows& windows, int64_t rows) {
  const auto tokens = static_cast<size_t>(rows * windows.sequence_length());
  Windows read{std::vector<int32_t>(tokens, 77), std::vector<int32_t>(tokens, 77)};
  read.counted = windows.fill(0, rows, {read.inputs, read.targets});
  return read;
}

struct Case {
  size_t tokens;
  int64_t length;
  int64_t windows;
};
class HeldOutText : public testing::TestWithParam<Case> {};

TEST_P(HeldOutText, EveryTokenButTheFirstIsATargetOnceInOrder) {
  const auto [tokens, length, expected_windows] = GetParam();
  DataFolder folder;
  write_dataset<uint16_t>(folder.path(), {{1}}, {counting<uint16_t>(tokens)}, 5000);
  const auto dataset = TokenDataset::open(folder.path(), Split::kValidation);
  const ValidationWindows windows(dataset, {.sequence_length = length});
  EXPECT_EQ(windows.size(), expected_windows);
  const Windows read = read_all(windows, windows.size());
  std::vector<int32_t> targets;
  for (size_t i = 0; i < read.targets.size(); ++i) {
    if (read.targets[i] == -1) {
      EXPECT_EQ(read.inputs[i], 0);
      continue;
    }
    EXPECT_EQ(read.inputs[i], read.targets[i] - 1);
    targets.push_back(read.targets[i]);
  }
  EXPECT_EQ(targets, counting<int32_t>(tokens - 1, 1));
  EXPECT_EQ(read.counted, static_cast<int64_t>(tokens) - 1);
  EXPECT_EQ(windows.target_count(), static_cast<int64_t>(tokens) - 1);
}

INSTANTIATE_TEST_SUITE_P(Sizes, HeldOutText,
                         testing::Values(Case{2, 8, 1}, Case{8, 8, 1}, Case{9, 8, 1},
                                         Case{10, 8, 2}, Case{17, 8, 2}, Case{18, 8, 3},
                                         Case{1000, 8, 125}, Case{5, 1, 4}));

TEST(ValidationWindows, RowsPastTheEndAreAllMasked) {
  DataFolder folder;
  write_dataset<uint16_t>(folder.path(), {{1}}, {counting<uint16_t>(20, 1)}, 5000);
  const auto dataset = TokenDataset::open(folder.path(), Split::kValidation);
  const ValidationWindows windows(dataset, {.sequence_length = 8});
  const Windows read = read_all(windows, 6);
  EXPECT_EQ(read.counted, 19);
  for (size_t i = 3 * 8; i < 6 * 8; ++i) {
    EXPECT_EQ(read.inputs[i], 0);
    EXPECT_EQ(read.targets[i], -1);
  }
}

class Cap : public testing::TestWithParam<int64_t> {};

TEST_P(Cap, SpreadsItsWindowsEvenlyOverTheText) {
  const int64_t cap = GetParam();
  DataFolder folder;
  write_dataset<uint16_t>(folder.path(), {{1}}, {counting<uint16_t>(997)}, 5000);
  const auto dataset = TokenDataset::open(folder.path(), Split::kValidation);
  const ValidationWindows windows(dataset, {.sequence_length = 8, .most_sequences = cap});
  EXPECT_EQ(windows.size(), std::min<int64_t>(cap, 125));
  const Windows read = read_all(windows, windows.size());
  EXPECT_EQ(read.counted, windows.target_count());
  const double ideal_gap = 125.0 / static_cast<double>(windows.size());
  for (int64_t i = 0; i < windows.size(); ++i) {
    const double window = read.inputs[static_cast<size_t>(i * 8)] / 8.0;
    EXPECT_EQ(read.inputs[static_cast<size_t>(i * 8)] % 8, 0);
    EXPECT_LE(window, ideal_gap * static_cast<double>(i));
    EXPECT_GT(window, ideal_gap * static_cast<double>(i) - 1);
  }
}

INSTANTIATE_TEST_SUITE_P(Caps, Cap, testing::Values(1, 2, 3, 10, 62, 63, 124, 125, 1000));

TEST(ValidationWindows, RefusesWhatCannotBeValidatedOn) {
  DataFolder folder;
  write_dataset<uint16_t>(folder.path(), {{1}}, {{1}}, 5000);
  const auto one_token = TokenDataset::open(folder.path(), Split::kValidation);
  EXPECT_THAT(error_of([&] { ValidationWindows(one_token, {.sequence_length = 8}); }),
              StartsWith("3: one token alone"));
  EXPECT_THAT(error_of([&] { ValidationWindows(one_token, {.sequence_length = 0}); }),
              StartsWith("2: "));
  EXPECT_THAT(
      error_of([&] { ValidationWindows(one_token, {.sequence_length = 8, .most_sequences = -1}); }),
      StartsWith("2: "));
}

TEST(ValidationWindows, RefusesBuffersOfAnotherSize) {
  DataFolder folder;
  write_dataset<uint16_t>(folder.path(), {{1}}, {counting<uint16_t>(20)}, 5000);
  const auto dataset = TokenDataset::open(folder.path(), Split::kValidation);
  const ValidationWindows windows(dataset, {.sequence_length = 8});
  std::vector<int32_t> inputs(9);
  EXPECT_THAT(error_of([&] { windows.fill(0, 1, {inputs, inputs}); }), StartsWith("1: "));
}

}  // namespace
}  // namespace flashshard::data
