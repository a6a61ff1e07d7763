// Classes keep the order of MemoryClass, so that two files compare line by line.
#include "runtime/metrics/memory_report.h"

#include <array>
#include <nlohmann/json.hpp>

#include "kernels/error.h"
#include "runtime/metrics/durable_file.h"

namespace flashshard::metrics {
namespace {

using nlohmann::ordered_json;

constexpr std::array kTrainingState = {MemoryClass::kWeights,     MemoryClass::kGradients,
                                       MemoryClass::kAccumulator, MemoryClass::kMomentum,
                                       MemoryClass::kVariance,    MemoryClass::kScales,
                                       MemoryClass::kCorrection,  MemoryClass::kProjection};

ordered_json bytes_by_class(const MemoryTable& table) {
  ordered_json object = ordered_json::object();
  for (size_t i = 0; i < kMemoryClasses; ++i) {
    object[std::string(name_of(static_cast<MemoryClass>(i)))] = table.bytes[i];
  }
  object["total"] = table.total();
  return object;
}

ordered_json bytes_per_parameter(const MemoryTable& tagged, int64_t parameters) {
  const auto share = [parameters](int64_t bytes) {
    return static_cast<double>(bytes) / static_cast<double>(parameters);
  };
  ordered_json object = ordered_json::object();
  for (size_t i = 0; i < kMemoryClasses; ++i) {
    object[std::string(name_of(static_cast<MemoryClass>(i)))] = share(tagged.bytes[i]);
  }
  object["training_state"] = share(training_state_bytes(tagged));
  object["total"] = share(tagged.total());
  return object;
}

}  // namespace

int64_t training_state_bytes(const MemoryTable& table) {
  int64_t bytes = 0;
  for (const MemoryClass memory_class : kTrainingState) bytes += table[memory_class];
  return bytes;
}

std::string memory_json(std::span<const RankMemory> ranks, int64_t parameters) {
  if (parameters < 1) throw Error(ExitCode::kInternal, "a memory report of no parameters");
  ordered_json report = {{"parameters", parameters}, {"ranks", ordered_json::array()}};
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    report["ranks"].push_back(
        {{"rank", rank},
         {"predicted", bytes_by_class(ranks[rank].predicted)},
         {"tagged", bytes_by_class(ranks[rank].tagged)},
         {"seen_from_outside", ranks[rank].seen_from_outside},
         {"bytes_per_parameter", bytes_per_parameter(ranks[rank].tagged, parameters)}});
  }
  return report.dump(2) + "\n";
}

void write_memory_json(const std::filesystem::path& path, std::span<const RankMemory> ranks,
                       int64_t parameters) {
  replace_file(path, memory_json(ranks, parameters), Durability::kSynced);
}

}  // namespace flashshard::metrics
