// What is saved is what is loaded, at every world size; what does not fit is refused by name.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/checkpoint/folder.h"
#include "runtime/checkpoint/reader.h"
#include "runtime/checkpoint/verify.h"
#include "tests/runtime/checkpoint/faulty_file_system.h"
#include "tests/runtime/checkpoint/sample_state.h"

namespace flashshard::checkpoint {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class AtWorldSize : public ::testing::TestWithParam<int> {
 protected:
  TemporaryFolder run_;
  std::string folder_ = run_ / "checkpoints";
};

TEST_P(AtWorldSize, EveryRankGetsItsBytesAllWeightsAndTheRunsStateBack) {
  EXPECT_THAT(save_on_ranks(folder_, 20, GetParam()), Each(""));
  const SampleState whole(0, 1, 20);
  const auto errors = errors_of_ranks(GetParam(), [&](Communicator& communicator) {
    SampleState loaded(communicator.rank(), communicator.world_size(), 0);
    WholeWeights weights;
    const RunState run = load({.step_folder = folder_ + "/step-00000020",
                               .layout = &loaded.layout(),
                               .views = loaded.views(),
                               .weights = weights.tensors},
                              communicator);
    EXPECT_EQ(run, sample_run(20));
    const SampleState saved(communicator.rank(), communicator.world_size(), 20);
    EXPECT_EQ(loaded.memory(), saved.memory());
    size_t view = 0;
    for (int t = 0; t < whole.layout().tensors(); ++t) {
      EXPECT_EQ(weights.memory[static_cast<size_t>(t)], whole.memory()[view]);
      view += sample_states(whole.layout().parameter(t)).size();
    }
  });
  EXPECT_THAT(errors, Each(""));
}

TEST_P(AtWorldSize, TheHashOnDiskIsTheLiveHashAndThatOfOneRank) {
  LogicalHash saved;
  const auto errors = errors_of_ranks(GetParam(), [&](Communicator& communicator) {
    const SaveResult result = save_sample(folder_, 20, communicator, 20);
    EXPECT_FALSE(result.already_there);
    EXPECT_THAT(result.warnings, IsEmpty());
    if (communicator.rank() == 0) saved = result.hash;
  });
  EXPECT_THAT(errors, Each(""));
  const SampleState whole(0, 1, 20);
  EXPECT_EQ(saved, hash_of_views(whole.layout(), whole.views()));
  EXPECT_EQ(hash(folder_), saved);
  EXPECT_THAT(verify(folder_).findings, IsEmpty());
  EXPECT_EQ(read_text(folder_ + "/latest"), "step-00000020\n");
}

TEST_P(AtWorldSize, AnyRowsOfAnyTensorAreReadWhoeverWroteThem) {
  EXPECT_THAT(save_on_ranks(folder_, 20, GetParam()), Each(""));
  const CheckpointReader reader(folder_ + "/step-00000020");
  for (int readers : {1, 2, 3, 5, 9}) {
    for (int rank = 0; rank < readers; ++rank) {
      const SampleState expected(rank, readers, 20);
      SampleState read(rank, readers, 0);
      std::vector<RowsWanted> wanted;
      size_t state = 0;
      for (const ShardTensorView& view : read.views()) {
        state = view.state == kWeightState ? 0 : state + 1;
        wanted.push_back({view.tensor, state, view.rows, view.bytes});
      }
      reader.read(wanted);
      EXPECT_EQ(read.memory(), expected.memory()) << "rank " << rank << " of " << readers;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(WorldSizes, AtWorldSize, ::testing::Values(1, 2, 3, 4, 9));

class SaveAndLoad : public ::testing::Test {
 protected:
  /// Loads step 20 on `world_size` ranks after `change` to the state that it goes into.
  std::vector<std::string> load_errors(int world_size,
                                       const std::function<void(SampleState&)>& change = {},
                                       FileSystem& file_system = posix_file_system()) {
    return errors_of_ranks(world_size, [&](Communicator& communicator) {
      SampleState state(communicator.rank(), communicator.world_size(), 0);
      if (change) change(state);
      load({.step_folder = step_,
            .layout = &state.layout(),
            .views = state.views(),
            .file_system = &file_system},
           communicator);
    });
  }

  TemporaryFolder run_;
  std::string folder_ = run_ / "checkpoints";
  std::string step_ = folder_ + "/step-00000020";
};

TEST_F(SaveAndLoad, AnyOtherNumberOfRanksGetsTheSameStateAndSavesItWithTheSameHash) {
  for (const int saved_by : {4, 1, 7}) {
    const std::string saved = run_ / std::to_string(saved_by);
    save_on_ranks(saved, 20, saved_by);
    for (const int world_size : {1, 2, 3, 8}) {
      const std::string again = saved + "-on-" + std::to_string(world_size);
      const auto errors = errors_of_ranks(world_size, [&](Communicator& communicator) {
        SampleState state(communicator.rank(), world_size, 0);
        const RunState run = load({.step_folder = saved + "/step-00000020",
                                   .layout = &state.layout(),
                                   .views = state.views()},
                                  communicator);
        EXPECT_EQ(run, sample_run(20));
        EXPECT_EQ(state.memory(), SampleState(communicator.rank(), world_size, 20).memory());
        save({.folder = again, .run = run, .layout = &state.layout(), .views = state.views()},
             communicator);
      });
      EXPECT_THAT(errors, Each("")) << saved_by << " to " << world_size;
      EXPECT_THAT(verify(again).findings, IsEmpty());
      EXPECT_EQ(hash(again), hash(saved)) << saved_by << " to " << world_size;
    }
  }
}

TEST_F(SaveAndLoad, DamageInRowsThatOtherRanksTakeOverStopsAllRanks) {
  save_on_ranks(folder_, 20, 2);
  const std::string path = step_ + "/weights-00001.safetensors";
  const auto first = read_safetensors_header(InputFile(posix_file_system(), path)).data_offset;
  std::string bytes = read_text(path);
  bytes[first] = static_cast<char>(bytes[first] ^ 4);
  write_text(path, bytes);
  EXPECT_THAT(load_errors(5),
              Each(AllOf(HasSubstr("cannot resume from"), HasSubstr("the logical hash"),
                         HasSubstr("`flashshard verify` lists the damage"))));
}

TEST_F(SaveAndLoad, AnotherStateFormatIsRefusedNamingTensorAndField) {
  save_on_ranks(folder_, 20, 1);
  const auto errors = load_errors(1, [](SampleState& state) {
    for (auto& view : state.mutable_views()) {
      if (view.tensor == 1 && view.state == "correction") view.dtype = DType::kUINT8;
    }
  });
  EXPECT_THAT(errors[0], AllOf(HasSubstr("model.layers.0.qkv.weight"), HasSubstr("states is"),
                               HasSubstr("correction I8/1"), HasSubstr("correction U8/1")));
}

TEST_F(SaveAndLoad, OneRanksDamagedFileStopsAllRanksWithItsTensor) {
  save_on_ranks(folder_, 20, 3);
  const std::string path = step_ + "/state-00001.safetensors";
  std::string bytes = read_text(path);
  bytes.back() = static_cast<char>(bytes.back() ^ 4);
  write_text(path, bytes);
  const auto errors = load_errors(3);
  EXPECT_THAT(errors,
              Each(AllOf(HasSubstr("rank 1 of 3"), HasSubstr("state-00001.safetensors"),
                         HasSubstr("tensor \"model."), HasSubstr("not those that were saved"))));
}

TEST_F(SaveAndLoad, AMissingFileIsNamed) {
  save_on_ranks(folder_, 20, 2);
  std::filesystem::remove(step_ + "/state-00001.safetensors");
  EXPECT_THAT(load_errors(2), Each(HasSubstr("state-00001.safetensors")));
}

TEST_F(SaveAndLoad, AManifestThatContradictsItsFilesFailsByItsLogicalHash) {
  save_on_ranks(folder_, 20, 2);
  Manifest manifest = CheckpointReader(step_).manifest();
  manifest.logical_hash.by_class[2] += {1, 0};
  write_text(step_ + "/manifest.pb", encode_manifest(manifest).pb);
  EXPECT_THAT(load_errors(2), Each(HasSubstr("the logical hash")));
  EXPECT_THAT(to_text(verify(step_).findings.back()), HasSubstr("the logical hash of momentum"));
}

TEST_F(SaveAndLoad, ReadErrorsOfTheDiskReachAllRanks) {
  save_on_ranks(folder_, 20, 2);
  FaultyFileSystem file_system([](const std::string& call, const std::string& path) {
    return call == "read" && path.ends_with("weights-00000.safetensors") ? EIO : 0;
  });
  EXPECT_THAT(load_errors(2, {}, file_system),
              Each(AllOf(HasSubstr("rank 0 of 2"), HasSubstr("Input/output error"))));
}

TEST_F(SaveAndLoad, ShortReadsAndWritesAreContinued) {
  FaultyFileSystem file_system([](const std::string&, const std::string&) { return 0; });
  file_system.longest_write = 13;
  const auto errors = errors_of_ranks(2, [&](Communicator& communicator) {
    save_sample(folder_, 20, communicator, 20, file_system);
  });
  EXPECT_THAT(errors, Each(""));
  EXPECT_THAT(verify(folder_, file_system).findings, IsEmpty());
  EXPECT_THAT(load_errors(2, {}, file_system), Each(""));
}

TEST_F(SaveAndLoad, WeightsAloneAreReadFromAnyWorldSize) {
  save_on_ranks(folder_, 20, 3);
  EXPECT_EQ(read_run_state(step_), sample_run(20));
  WholeWeights weights;
  read_weights(step_, sample_parameters(), weights.tensors);
  EXPECT_EQ(weights.memory[0], SampleState(0, 1, 20).memory()[0]);

  auto parameters = sample_parameters();
  parameters[2].cols = 21;
  EXPECT_THROW(
      {
        try {
          read_weights(step_, parameters, weights.tensors);
        } catch (const Error& error) {
          EXPECT_EQ(error.code(), ExitCode::kCheckpoint);
          EXPECT_THAT(error.what(),
                      HasSubstr("\"model.layers.0.odd.weight\": cols is 20, the run has 21"));
          throw;
        }
      },
      Error);
  parameters.pop_back();
  EXPECT_THROW(read_weights(step_, parameters, weights.tensors), Error);
  weights.tensors[1].dtype = DType::kFP32;
  EXPECT_THROW(read_weights(step_, sample_parameters(), weights.tensors), Error);
}

TEST_F(SaveAndLoad, RowsThatAreNoWholeUnitsAreAnInternalError) {
  save_on_ranks(folder_, 20, 2);
  const CheckpointReader reader(step_);
  std::vector<std::byte> bytes(2 * 16);
  const RowsWanted wanted{0, 0, {1, 1}, bytes};
  EXPECT_THROW(reader.read({&wanted, 1}), Error);
}

TEST_F(SaveAndLoad, ViewsThatDoNotBelongToTheLayoutAreRefusedOnAllRanks) {
  const auto errors = errors_of_ranks(3, [&](Communicator& communicator) {
    SampleState state(communicator.rank(), 3, 1);
    if (communicator.rank() == 2) state.mutable_views()[0].bytes = {};
    save({.folder = folder_,
          .run = sample_run(1),
          .layout = &state.layout(),
          .views = state.views()},
         communicator);
  });
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("rank 2 of 3"), HasSubstr("bytes and rows differ"))));
}

struct ChangedTable {
  std::string name;
  std::function<void(ParameterSpec&)> change;
  std::string says;
};
class ChangedModel : public ::testing::TestWithParam<ChangedTable> {};

TEST_P(ChangedModel, DoesNotFitTheCheckpoint) {
  const SampleState state(0, 1, 1);
  const Schema saved = schema_of(state.layout(), state.views());
  auto parameters = sample_parameters();
  GetParam().change(parameters[1]);
  const Schema running{ShardLayout(parameters, {2, 1, 8, 32, 32}, 1), saved.states};
  try {
    require_same_tensors(saved, running, "step-00000001");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kCheckpoint);
    EXPECT_THAT(error.what(), HasSubstr(GetParam().says));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Fields, ChangedModel,
    ::testing::Values(
        ChangedTable{"Name", [](ParameterSpec& p) { p.name = "other"; },
                     "tensor \"other\": its name is"},
        ChangedTable{"Rows", [](ParameterSpec& p) { p.rows = 25; }, "rows is 24, the run has 25"},
        ChangedTable{"Role", [](ParameterSpec& p) { p.role = ParameterRole::kEmbedding; },
                     "its role is a matrix, the run has an embedding"},
        ChangedTable{"Parts", [](ParameterSpec& p) { p.parts.clear(); }, "the run has none"},
        ChangedTable{"TiedNames", [](ParameterSpec& p) { p.tied_names = {"x"}; },
                     "tied names is none, the run has \"x\""}),
    [](const auto& test_case) { return test_case.param.name; });

TEST(ChangedOptimizer, DecayAndLayersMayDiffer) {
  const SampleState state(0, 1, 1);
  const Schema saved = schema_of(state.layout(), state.views());
  auto parameters = sample_parameters();
  parameters[1].decay = false;
  parameters[1].layer = 7;
  const Schema running{ShardLayout(parameters, {2, 1, 8, 32, 32}, 1), saved.states};
  EXPECT_NO_THROW(require_same_tensors(saved, running, "step-00000001"));
}

}  // namespace
}  // namespace flashshard::checkpoint
