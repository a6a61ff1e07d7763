// What a run reads: targets are the next tokens, the world size changes nothing, and a resumed run
// goes on where it was.
#include "runtime/data/sequence_sampler.h"

#include "runtime/data/micro_batch_schedule.h"
#include "runtime/data/prefetcher.h"
#include "tests/runtime/data/data_folder.h"

namespace flashshard::data {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

constexpr int64_t kLength = 8;

class Sampling : public testing::Test {
 protected:
  Sampling() {
    // Three shards, one of them shorter than a window.
    write_dataset<uint16_t>(
        folder_.path(),
        {counting<uint16_t>(301), counting<uint16_t>(3, 301), counting<uint16_t>(296, 304)}, {},
        1000);
  }
  DataFolder folder_;
};

std::vector<int32_t> inputs_of(const SequenceSampler& sampler, int64_t first, int64_t count) {
  std::vector<int32_t> inputs(static_cast<size_t>(count * kLength));
  std::vector<int32_t> targets(inputs.size());
  sampler.fill(first, count, {inputs, targets});
  return inputs;
}

TEST_F(Sampling, TargetsAreTheTokensAfterTheInputsAlsoAcrossShards) {
  const auto dataset = TokenDataset::open(folder_.path(), Split::kTrain);
  const SequenceSampler sampler(dataset, {.seed = 1, .sequence_length = kLength});
  const int64_t count = 2 * sampler.order().sequences_per_epoch();
  std::vector<int32_t> inputs(static_cast<size_t>(count * kLength));
  std::vector<int32_t> targets(inputs.size());
  sampler.fill(0, count, {inputs, targets});
  for (int64_t row = 0; row < count; ++row) {
    // The text counts upward, so a token's value is its position.
    for (int64_t t = 0; t < kLength; ++t) {
      const auto at = static_cast<size_t>(row * kLength + t);
      ASSERT_EQ(inputs[at], sampler.order().position(row) + t);
      ASSERT_EQ(targets[at], inputs[at] + 1);
    }
  }
}

// Reads `steps` steps as every rank of a run does, and lays the micro-batches in their global
// order.
std::vector<int32_t> run(const SequenceSampler& sampler, int world_size, int64_t first_sequence,
                         int64_t steps) {
  constexpr int64_t kMicroBatch = 2;
  constexpr int64_t kGlobalBatch = 10;  // 5 micro-batches: uneven for 2, 3 and 4 ranks
  std::vector<int32_t> global(static_cast<size_t>(steps * kGlobalBatch * kLength));
  for (int rank = 0; rank < world_size; ++rank) {
    const MicroBatchSchedule schedule({.global_batch = kGlobalBatch,
                                       .micro_batch = kMicroBatch,
                                       .rank = rank,
                                       .world_size = world_size,
                                       .first_sequence = first_sequence});
    Prefetcher prefetcher(
        {.sequences = kMicroBatch,
         .sequence_length = kLength,
         .schedule = schedule,
         .fill = [&](int64_t first, int64_t count, const SequenceBuffers& buffers) {
           sampler.fill(first, count, buffers);
         }});
    for (int64_t k = 0; k < steps * schedule.micro_batches_per_step(); ++k) {
      const MicroBatch& batch = prefetcher.next();
      const auto at = (batch.first_sequence - first_sequence) * kLength;
      std::copy(batch.inputs.begin(), batch.inputs.end(), global.begin() + at);
    }
  }
  return global;
}

class WorldSize : public Sampling, public testing::WithParamInterface<int> {};

TEST_P(WorldSize, ChangesNothingAboutWhatIsRead) {
  const auto dataset = TokenDataset::open(folder_.path(), Split::kTrain);
  const SequenceSampler sampler(dataset, {.seed = 4, .sequence_length = kLength});
  EXPECT_EQ(run(sampler, GetParam(), 0, 20), inputs_of(sampler, 0, 200));
}

TEST_P(WorldSize, AfterAResumeGoesOnWhereTheRunStopped) {
  const auto dataset = TokenDataset::open(folder_.path(), Split::kTrain);
  const SequenceSampler sampler(dataset, {.seed = 4, .sequence_length = kLength});
  std::vector<int32_t> whole = run(sampler, 1, 0, 20);
  whole.erase(whole.begin(), whole.begin() + 7 * 10 * kLength);
  EXPECT_EQ(run(sampler, GetParam(), 70, 13), whole);
}

INSTANTIATE_TEST_SUITE_P(WorldSizes, WorldSize, testing::Values(1, 2, 3, 4, 5));

TEST_F(Sampling, AnotherSeedReadsAnotherOrder) {
  const auto dataset = TokenDataset::open(folder_.path(), Split::kTrain);
  const SequenceSampler one(dataset, {.seed = 1, .sequence_length = kLength});
  const SequenceSampler two(dataset, {.seed = 2, .sequence_length = kLength});
  EXPECT_NE(inputs_of(one, 0, 20), inputs_of(two, 0, 20));
}

TEST_F(Sampling, RefusesTextShorterThanOneSequenceAndItsTarget) {
  const auto dataset = TokenDataset::open(folder_.path(), Split::kTrain);
  EXPECT_EQ(error_of([&] { SequenceSampler(dataset, {.seed = 1, .sequence_length = 599}); }),
            "nothing thrown");
  EXPECT_THAT(error_of([&] { SequenceSampler(dataset, {.seed = 1, .sequence_length = 600}); }),
              AllOf(StartsWith("3: the train text has 600 tokens: too few for one sequence of 600"),
                    HasSubstr("lower train.sequence_length")));
  EXPECT_THAT(error_of([&] { SequenceSampler(dataset, {.seed = 1, .sequence_length = 0}); }),
              StartsWith("2: sequence length 0"));
}

TEST_F(Sampling, RefusesBuffersOfAnotherSize) {
  const auto dataset = TokenDataset::open(folder_.path(), Split::kTrain);
  const SequenceSampler sampler(dataset, {.seed = 1, .sequence_length = kLength});
  std::vector<int32_t> inputs(2 * kLength);
  std::vector<int32_t> targets(inputs.size() - 1);
  EXPECT_THAT(error_of([&] { sampler.fill(0, 2, {inputs, targets}); }), StartsWith("1: "));
  EXPECT_THAT(error_of([&] { sampler.fill(-1, 2, {inputs, inputs}); }), StartsWith("1: "));
}

}  // namespace
}  // namespace flashshard::data
