// A token shard, with the hashes of header and payload put right so that the fields behind them are
// reached, and as it is. What is accepted can be read to its end.
#include "runtime/data/token_shard.h"

#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "tests/fuzz/target.h"

namespace {

using namespace flashshard::data;  // NOLINT(google-build-using-namespace)
using flashshard::ExitCode;
using flashshard::fuzz::accepts;

constexpr size_t kPayloadHashAt = 32;
constexpr size_t kHeaderHashAt = 56;

void set_hash(std::string& file, size_t at, std::string_view of) {
  const uint64_t hash = XXH3_64bits(of.data(), of.size());
  std::memcpy(file.data() + at, &hash, sizeof(hash));
}

void read_all(const std::string& path) {
  const TokenShard shard(path, PayloadCheck::kHash);
  std::vector<int32_t> tokens(std::min<uint64_t>(shard.header().token_count, 1 << 16));
  shard.read(0, tokens);
  shard.hide_uncounted(0, tokens);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string path = "/tmp/flashshard-fuzz-" + std::to_string(::getpid());
  const auto read = [&](const std::string& bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    accepts(ExitCode::kBadData, [&] { read_all(path); });
    ::unlink(path.c_str());
  };
  std::string file(reinterpret_cast<const char*>(data), size);
  read(file);
  if (size < kShardHeaderBytes) return 0;
  set_hash(file, kPayloadHashAt, std::string_view(file).substr(kShardHeaderBytes));
  set_hash(file, kHeaderHashAt, std::string_view(file).substr(0, kHeaderHashAt));
  read(file);
  return 0;
}
