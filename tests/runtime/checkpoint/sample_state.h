// A small model in training, whole or as the shards of any world size, for tests of checkpoints:
// matrices in format V2, vectors with fp32 state, a row length that is no multiple of the group,
// and tensors too small for every rank.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <initializer_list>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "comm/threads.h"
#include "runtime/checkpoint/background_save.h"
#include "runtime/checkpoint/load.h"
#include "runtime/checkpoint/save.h"
#include "runtime/checkpoint/schema.h"
#include "tests/sanitizers.h"

namespace flashshard::checkpoint::test {

/// Of large samples one in so many is enough under sanitizers.
constexpr size_t kSampleDivisor = flashshard::test::kUnderSanitizers ? 8 : 1;

/// A folder of its own for a test, removed at its end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    // In memory where that is possible: what is tested are orders and faults, not the speed of a
    // disk's fsync. A name that nothing had: a process that a test ends on purpose leaves its own
    // folder, and process numbers come again.
    const std::filesystem::path memory = "/dev/shm";
    std::string name =
        ((std::filesystem::is_directory(memory) ? memory : std::filesystem::temp_directory_path()) /
         "flashshard-checkpoint-XXXXXX")
            .string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot make " + name);
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string path() const { return path_.string(); }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

inline std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}
inline void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

inline std::vector<ParameterSpec> sample_parameters() {
  ParameterSpec embedding;
  embedding.name = "model.embed_tokens.weight";
  embedding.rows = 40;
  embedding.cols = 16;
  embedding.role = ParameterRole::kEmbedding;
  embedding.tied_names = {"lm_head.weight"};

  ParameterSpec qkv;
  qkv.name = "model.layers.0.qkv.weight";
  qkv.rows = 24;
  qkv.cols = 64;
  qkv.layer = 1;
  qkv.parts = {{"q", 0, 12}, {"k", 12, 6}, {"v", 18, 6}};

  ParameterSpec odd;
  odd.name = "model.layers.0.odd.weight";
  odd.rows = 13;
  odd.cols = 20;
  odd.layer = 1;

  ParameterSpec norm;
  norm.name = "model.layers.0.norm.weight";
  norm.rows = 16;
  norm.role = ParameterRole::kVector;
  norm.decay = false;
  norm.layer = 1;

  ParameterSpec last_norm = norm;
  last_norm.name = "model.norm.weight";
  last_norm.rows = 70;
  last_norm.layer = 2;
  return {embedding, qkv, odd, norm, last_norm};
}

inline std::vector<StateRecord> sample_states(const ParameterSpec& parameter) {
  if (parameter.role == ParameterRole::kVector) {
    return {{"weight", DType::kBF16, 1},
            {"correction", DType::kINT16, 1},
            {"momentum", DType::kFP32, 1},
            {"variance", DType::kFP32, 1}};
  }
  return {{"weight", DType::kBF16, 1},    {"correction", DType::kINT8, 1},
          {"momentum", DType::kINT8, 1},  {"momentum_scale", DType::kUINT16, 32},
          {"variance", DType::kUINT8, 1}, {"variance_scale", DType::kUINT16, 32}};
}

inline ShardLayout sample_layout(int world_size) {
  std::vector<int64_t> unit_rows;
  for (const ParameterSpec& parameter : sample_parameters()) {
    const RowQuantisation quantisation{parameter.cols, 32};
    unit_rows.push_back(rows_per_unit({&quantisation, 1}));
  }
  return {sample_parameters(), unit_rows, world_size};
}

/// The content of a state at a byte of the whole tensor; scales are valid codes.
inline std::byte sample_byte(int tensor, size_t state, const StateRecord& record, size_t at,
                             uint64_t seed) {
  uint64_t x =
      seed * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(tensor) * 1000003u + state * 101u + at;
  x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9u;
  const auto byte = static_cast<uint8_t>(x >> 40);
  if (record.dtype != DType::kUINT16) return std::byte{byte};
  return std::byte{at % 2 == 0 ? byte : static_cast<uint8_t>(0x50 + byte % 0x60)};
}

/// One rank's shards in memory of its own, filled from a seed, or zero for seed 0.
class SampleState {
 public:
  SampleState(int rank, int world_size, uint64_t seed) : layout_(sample_layout(world_size)) {
    for (int t = 0; t < layout_.tensors(); ++t) {
      const auto records = sample_states(layout_.parameter(t));
      const RowRange rows = layout_.rows_of(t, rank);
      for (size_t s = 0; s < records.size(); ++s) {
        const auto size = static_cast<size_t>(bytes_of_rows(layout_, t, records[s], rows.count));
        const auto first = static_cast<size_t>(bytes_of_rows(layout_, t, records[s], rows.first));
        auto& bytes = memory_.emplace_back(size);
        for (size_t i = 0; i < size && seed != 0; ++i) {
          bytes[i] = sample_byte(t, s, records[s], first + i, seed);
        }
        views_.push_back({t, records[s].name, records[s].dtype, records[s].group, rows, bytes});
      }
    }
  }
  const ShardLayout& layout() const { return layout_; }
  std::span<const ShardTensorView> views() const { return views_; }
  std::vector<ShardTensorView>& mutable_views() { return views_; }
  const std::vector<std::vector<std::byte>>& memory() const { return memory_; }
  std::vector<std::vector<std::byte>>& mutable_memory() { return memory_; }

 private:
  ShardLayout layout_;
  std::vector<std::vector<std::byte>> memory_;
  std::vector<ShardTensorView> views_;
};

/// Whole weights, zero, with the tensors that point into them.
struct WholeWeights {
  std::vector<std::vector<std::byte>> memory;
  std::vector<Tensor> tensors;

  WholeWeights() {
    for (const ParameterSpec& parameter : sample_parameters()) {
      memory.emplace_back(static_cast<size_t>(parameter.elements()) * 2);
      tensors.push_back(
          Tensor(memory.back().data(), DType::kBF16, {parameter.rows, parameter.cols}));
    }
  }
};

inline RunState sample_run(int64_t step) {
  return {.step = step,
          .applied_updates = static_cast<uint64_t>(step) - 1,
          .sequences_consumed = step * 8,
          .tokens_consumed = step * 8 * 128,
          .model = "sample",
          .config = "run { seed: 1 }\n",
          .environment = {{"blas", "OpenBLAS 0.3.21"}, {"isa", "AVX2"}},
          .rng_keys = {{"seed", 18446744073709551615u}},
          .counters = {{"skipped_steps", 1}}};
}

/// Runs `body` on every rank, a thread each; returns each rank's error text, empty where it ended
/// well. A rank that throws does not abort the others: what is tested is that all end by
/// themselves.
inline std::vector<std::string> errors_of_ranks(int world_size,
                                                const std::function<void(Communicator&)>& body) {
  auto communicators = make_thread_communicators(world_size);
  std::vector<std::string> errors(static_cast<size_t>(world_size));
  std::vector<std::thread> threads;
  for (size_t r = 0; r < errors.size(); ++r) {
    threads.emplace_back([&, r] {
      communicators[r]->set_deadline(std::chrono::seconds(60));
      try {
        body(*communicators[r]);
      } catch (const std::exception& error) {
        errors[r] = error.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  return errors;
}

inline SaveResult save_sample(const std::string& folder, int64_t step, Communicator& communicator,
                              uint64_t seed, FileSystem& file_system = posix_file_system(),
                              int keep_last = 0) {
  const SampleState state(communicator.rank(), communicator.world_size(), seed);
  return save({.folder = folder,
               .run = sample_run(step),
               .layout = &state.layout(),
               .views = state.views(),
               .keep_last = keep_last,
               .file_system = &file_system},
              communicator);
}

/// How a sample is saved: waited for, beside a training that changes every row as soon as it may,
/// or under zstd.
enum class SaveMode : uint8_t { kWaited, kBesideTraining, kUnderZstd };

inline SaveResult save_sample(SaveMode mode, const std::string& folder, int64_t step,
                              Communicator& communicator, uint64_t seed, FileSystem& file_system,
                              int keep_last) {
  SampleState state(communicator.rank(), communicator.world_size(), seed);
  SaveRequest request;
  request.folder = folder;
  request.run = sample_run(step);
  request.keep_last = keep_last;
  request.file_system = &file_system;
  if (mode != SaveMode::kBesideTraining) {
    const auto views = state.views();
    request.layout = &state.layout();
    request.views = views;
    request.zstd_level = mode == SaveMode::kUnderZstd ? 1 : 0;
    return save(request, communicator);
  }
  std::vector<std::byte> staging(512);  // less than what is saved: updates wait for storage
  BackgroundSave save(communicator, {state.layout(), communicator.rank(), state.mutable_views(),
                                     staging, std::chrono::seconds(60)});
  save.begin(request);
  for (ShardTensorView& view : state.mutable_views()) {
    save.wait_until_copied(view.tensor, state.layout().rows_of(view.tensor, communicator.rank()));
    std::ranges::fill(view.bytes, std::byte{0xa5});
  }
  return save.finish();
}

/// The hashes of what save_sample saves with the step as its seed.
inline std::map<int64_t, Hash128> contents_of_steps(std::initializer_list<int64_t> steps) {
  std::map<int64_t, Hash128> hashes;
  for (const int64_t step : steps) {
    const SampleState state(0, 1, static_cast<uint64_t>(step));
    hashes[step] = hash_of_views(state.layout(), state.views()).total();
  }
  return hashes;
}

/// Saves on `world_size` ranks; the sample's content is that of the step unless a seed is given.
inline std::vector<std::string> save_on_ranks(const std::string& folder, int64_t step,
                                              int world_size, uint64_t seed = 0,
                                              int keep_last = 0) {
  return errors_of_ranks(world_size, [&](Communicator& communicator) {
    save_sample(folder, step, communicator, seed == 0 ? static_cast<uint64_t>(step) : seed,
                posix_file_system(), keep_last);
  });
}

}  // namespace flashshard::checkpoint::test
