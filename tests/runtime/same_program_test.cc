// Ranks that would compute differently are refused before the first step, all of them.
#include "runtime/same_program.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "runtime/agreement.h"
#include "tests/optim/ranks.h"

namespace flashshard {
namespace {

using ::testing::HasSubstr;

TEST(SameProgram, IsWhatRanksOfOneBinaryAre) {
  test::run_ranks(3, [](Communicator& communicator) {
    EXPECT_NO_THROW(require_same_program(communicator, "cpu avx2"));
  });
}

TEST(SameProgram, OnAnotherKindOfProcessorIsRefusedOnAllRanks) {
  std::atomic<int> refused = 0;
  test::run_ranks(3, [&](Communicator& communicator) {
    try {
      require_same_program(communicator, communicator.rank() == 2 ? "cpu avx2" : "cpu avx512");
    } catch (const AgreedError& error) {
      EXPECT_EQ(error.code(), ExitCode::kUsage);
      EXPECT_THAT(error.what(), HasSubstr("`cpu avx2`, rank 0 with `cpu avx512`"));
      ++refused;
    }
  });
  EXPECT_EQ(refused, 3);
}

}  // namespace
}  // namespace flashshard
