// A process that no launcher started is a run of one rank.
#include "comm/connect.h"

#include <gtest/gtest.h>

#include <cstdlib>

namespace flashshard {

namespace {

/// The test may itself be started by a launcher.
class LoneProcess : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"}) unsetenv(name);
  }
};

TEST_F(LoneProcess, IsOneRankWithoutMpi) {
  EXPECT_FALSE(launched_by_mpi());
  const auto communicator = connect_ranks(std::chrono::seconds(5));
  EXPECT_EQ(communicator->world_size(), 1);
  EXPECT_EQ(communicator->transport(), "threads");
  communicator->barrier().wait("itself");
}

TEST_F(LoneProcess, NeedsAUsableDeadline) {
  EXPECT_THROW(connect_ranks(std::chrono::seconds(0)), Error);
}

TEST_F(LoneProcess, SeesALauncher) {
  setenv("OMPI_COMM_WORLD_SIZE", "2", 1);
  EXPECT_TRUE(launched_by_mpi());
#ifndef FLASHSHARD_MPI
  EXPECT_THROW(connect_ranks(std::chrono::seconds(5)), Error);
#endif
  unsetenv("OMPI_COMM_WORLD_SIZE");
}

}  // namespace
}  // namespace flashshard
