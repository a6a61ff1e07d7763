// One rank's failure is everybody's, with its code and its name.
#include "runtime/agreement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <new>
#include <stdexcept>
#include <string>

#include "tests/optim/ranks.h"

namespace flashshard {
namespace {

using ::testing::HasSubstr;

TEST(RunAndAgree, TellsEveryRankOfOneRanksFailure) {
  for (ExitCode code : {ExitCode::kUsage, ExitCode::kOutOfSpace}) {
    test::run_ranks(3, [&](Communicator& communicator) {
      try {
        run_and_agree(communicator, [&] {
          if (communicator.rank() == 1) throw Error(code, "it broke");
        });
        ADD_FAILURE() << "rank " << communicator.rank() << " did not learn of it";
      } catch (const AgreedError& error) {
        EXPECT_EQ(error.code(), code);
        EXPECT_THAT(error.what(), HasSubstr("rank 1"));
        EXPECT_THAT(error.what(), HasSubstr("it broke"));
      }
    });
  }
}

TEST(RunAndAgree, NamesNoRankWhenAllFailAlike) {
  test::run_ranks(2, [&](Communicator& communicator) {
    try {
      run_and_agree(communicator, [&] { throw Error(ExitCode::kBadData, "no data"); });
      ADD_FAILURE();
    } catch (const AgreedError& error) {
      EXPECT_STREQ(error.what(), "no data");
    }
  });
}

TEST(RunAndAgree, TurnsForeignExceptionsIntoCodes) {
  test::run_ranks(1, [&](Communicator& communicator) {
    try {
      run_and_agree(communicator, [&] { throw std::bad_alloc(); });
      ADD_FAILURE();
    } catch (const AgreedError& error) {
      EXPECT_EQ(error.code(), ExitCode::kOutOfSpace);
    }
    try {
      run_and_agree(communicator, [&] { throw std::logic_error("a bug"); });
      ADD_FAILURE();
    } catch (const AgreedError& error) {
      EXPECT_EQ(error.code(), ExitCode::kInternal);
    }
  });
}

TEST(BroadcastText, CarriesTextsOfAnyLength) {
  test::run_ranks(3, [&](Communicator& communicator) {
    for (const std::string& text :
         {std::string(), std::string("short"), std::string(100000, 'x')}) {
      EXPECT_EQ(broadcast_text(communicator, "a text", communicator.rank() == 0 ? text : "other"),
                text);
    }
  });
}

}  // namespace
}  // namespace flashshard
