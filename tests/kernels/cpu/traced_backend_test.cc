// What a recording backend writes down, and that it computes what the recorded one computes.
#include "kernels/traced_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

namespace flashshard {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class Traced : public testing::Test {
 protected:
  TracedBackend backend_{make_cpu_backend({.threads = 1})};
  std::array<float, 4> a_ = {1, 2, 3, 4}, b_ = {5, 6, 7, 8}, out_ = {};

  void multiply() {
    const auto matrix = [](std::array<float, 4>& m) {
      return Tensor(m.data(), DType::kFP32, {2, 2});
    };
    backend_.matmul({.out = matrix(out_), .a = matrix(a_), .b = matrix(b_)});
  }
  static std::vector<std::string> names(const std::vector<TraceEvent>& events) {
    std::vector<std::string> result;
    for (const TraceEvent& event : events) result.push_back(event.name);
    return result;
  }
};

TEST_F(Traced, OperationsAndRangesAreRecordedInTheOrderInWhichTheyEnd) {
  backend_.start();
  {
    const BackendRange layer(backend_, "layer", 3);
    multiply();
    backend_.zero(b_.data(), sizeof(b_));
  }
  const auto events = backend_.stop();
  ASSERT_THAT(names(events), ElementsAre("matmul", "zero", "layer"));
  EXPECT_EQ(events[0].detail, "2 x 2: 2 x 2 * 2 x 2");
  EXPECT_EQ(events[1].detail, "16 bytes");
  EXPECT_EQ(events[2].detail, "3");
  EXPECT_LE(events[2].begin_ns, events[0].begin_ns);
  EXPECT_LE(events[0].begin_ns, events[0].end_ns);
  EXPECT_LE(events[0].end_ns, events[1].begin_ns);
  EXPECT_LE(events[1].end_ns, events[2].end_ns);
  EXPECT_THAT(out_, ElementsAre(19, 22, 43, 50));
  EXPECT_THAT(b_, ElementsAre(0, 0, 0, 0));
}

TEST_F(Traced, AttentionTellsWhetherItKeepsToDocuments) {
  std::array<float, 6> qkv = {1, 2, 3, 4, 5, 6};
  std::array<float, 2> out = {}, log_sum_exp = {};
  std::array<int32_t, 2> starts = {0, 1};
  AttentionForward call = {
      .out = Tensor(out.data(), DType::kFP32, {2, 1}),
      .log_sum_exp = Tensor(log_sum_exp.data(), DType::kFP32, {2, 1}),
      .qkv = Tensor(qkv.data(), DType::kFP32, {2, 3}),
      .shape = {.sequences = 1, .sequence_length = 2, .heads = 1, .kv_heads = 1, .head_dim = 1}};
  const size_t bytes = backend_.workspace_bytes(call);
  void* const workspace = backend_.allocate(bytes);
  backend_.bind_workspace(workspace, bytes);
  backend_.start();
  backend_.attention(call);
  EXPECT_NE(out[1], 6);
  call.document_starts = Tensor(starts.data(), DType::kINT32, {2});
  backend_.attention(call);
  EXPECT_EQ(out[1], 6) << "the token's own value";
  const auto events = backend_.stop();
  backend_.release(workspace, bytes);
  ASSERT_THAT(names(events), ElementsAre("attention", "attention"));
  EXPECT_EQ(events[0].detail, "2 x 3");
  EXPECT_EQ(events[1].detail, "2 x 3, within documents");
}

TEST_F(Traced, NothingIsRecordedOutsideStartAndStop) {
  multiply();
  const BackendRange before(backend_, "open before");
  backend_.start();
  { const BackendRange inside(backend_, "inside"); }
  backend_.begin_range("open after", -1);
  EXPECT_THAT(names(backend_.stop()), ElementsAre("inside"));
  backend_.end_range();
  multiply();
  backend_.start();
  EXPECT_THAT(backend_.stop(), IsEmpty());
}

TEST_F(Traced, ARangeThatWasOpenWhenRecordingBeganIsLeftOut) {
  backend_.begin_range("open before", -1);
  backend_.start();
  multiply();
  backend_.end_range();
  EXPECT_THAT(names(backend_.stop()), ElementsAre("matmul"));
}

}  // namespace
}  // namespace flashshard
