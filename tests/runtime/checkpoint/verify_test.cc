// What `verify` finds besides damaged bytes (damage_test.cc), and how it says it.
#include "runtime/checkpoint/verify.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "runtime/checkpoint/manifest.h"
#include "runtime/checkpoint/reader.h"
#include "tests/runtime/checkpoint/sample_state.h"

namespace flashshard::checkpoint {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class Verify : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_THAT(save_on_ranks(folder_, 20, 2), Each("")); }

  TemporaryFolder run_;
  std::string folder_ = run_ / "checkpoints";
  std::string step_ = folder_ + "/step-00000020";
};

TEST_F(Verify, AWholeCheckpointHasNoFindings) {
  const Verification verification = verify(run_.path());
  EXPECT_THAT(verification.findings, IsEmpty());
  EXPECT_EQ(verification.path, step_);
  const auto json = nlohmann::json::parse(to_json(verification));
  EXPECT_EQ(json["whole"], true);
  EXPECT_EQ(json["hash"]["total"], verification.hash.total().hex());
}

TEST_F(Verify, AFolderWithoutAManifestIsAFinding) {
  std::filesystem::remove(step_ + "/manifest.pb");
  const auto findings = verify(step_).findings;
  ASSERT_THAT(findings, SizeIs(1));
  EXPECT_EQ(findings[0].file, "manifest.pb");
}

TEST_F(Verify, AFolderUnderAnotherStepsNameIsAFinding) {
  std::filesystem::rename(step_, folder_ + "/step-00000021");
  const auto findings = verify(folder_).findings;
  ASSERT_THAT(findings, SizeIs(1));
  EXPECT_THAT(findings[0].what, HasSubstr("it is of step 20, the folder's name says 21"));
}

TEST_F(Verify, AScaleThatIsNoCodeIsFoundThoughAllHashesHold) {
  const auto errors = errors_of_ranks(2, [&](Communicator& communicator) {
    SampleState state(communicator.rank(), 2, 30);
    for (const auto& view : state.views()) {
      // 0x7f80 would be an infinity's exponent as a scale; only 0x4300 to 0xbe00 are codes.
      if (communicator.rank() == 1 && view.tensor == 1 && view.state == "variance_scale") {
        view.bytes[3] = std::byte{0xff};
      }
    }
    save({.folder = folder_,
          .run = sample_run(30),
          .layout = &state.layout(),
          .views = state.views()},
         communicator);
  });
  EXPECT_THAT(errors, Each(""));
  const auto findings = verify(folder_ + "/step-00000030").findings;
  ASSERT_THAT(findings, SizeIs(1));
  EXPECT_EQ(findings[0].file, "state-00001.safetensors");
  EXPECT_EQ(findings[0].tensor, "model.layers.0.qkv.weight.variance_scale");
  EXPECT_THAT(to_text(findings[0]), HasSubstr("no valid code"));
}

TEST_F(Verify, AnFP16ScaleMustBeFiniteAndNotNegative) {
  int64_t step = 40;
  for (const auto& [high_byte, findings] : std::map<int, size_t>{{0x7b, 0}, {0x7c, 1}, {0x80, 1}}) {
    ++step;
    const auto errors = errors_of_ranks(2, [&](Communicator& communicator) {
      SampleState state(communicator.rank(), 2, 30);
      for (auto& view : state.mutable_views()) {
        if (!view.state.ends_with("_scale")) continue;
        view.dtype = DType::kFP16;
        std::ranges::fill(view.bytes, std::byte{0x3c});
        if (communicator.rank() == 0 && view.tensor == 1 && view.state == "momentum_scale") {
          view.bytes[5] = std::byte{static_cast<uint8_t>(high_byte)};
        }
      }
      save({.folder = folder_,
            .run = sample_run(step),
            .layout = &state.layout(),
            .views = state.views()},
           communicator);
    });
    EXPECT_THAT(errors, Each(""));
    EXPECT_THAT(verify(folder_ + "/step-000000" + std::to_string(step)).findings, SizeIs(findings))
        << high_byte;
  }
}

TEST_F(Verify, HashRefusesADamagedCheckpointWithTheFirstFinding) {
  const std::string path = step_ + "/state-00000.safetensors";
  std::string bytes = read_text(path);
  bytes.back() = static_cast<char>(~bytes.back());
  write_text(path, bytes);
  try {
    hash(run_.path());
    FAIL() << "hashed";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kCheckpoint);
    EXPECT_THAT(error.what(), HasSubstr("state-00000.safetensors, tensor \"model."));
  }
  const auto json = nlohmann::json::parse(to_json(verify(step_)));
  EXPECT_EQ(json["whole"], false);
  EXPECT_EQ(json["findings"][0]["file"], "state-00000.safetensors");
}

TEST_F(Verify, JsonThatSaysSomethingElseUnderTheRightHashIsFound) {
  // A manifest.pb whose hash of manifest.json was made for a changed text.
  EXPECT_THAT(json_difference(read_text(step_ + "/manifest.pb"), "{}"),
              ::testing::Optional(HasSubstr("not the file that was written")));
}

}  // namespace
}  // namespace flashshard::checkpoint
