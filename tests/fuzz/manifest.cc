// A manifest's payload, put into a frame whose length and hash hold, so that what lies behind them
// is reached; and the bytes as they are. What is accepted can be planned and encoded again.
#include "runtime/checkpoint/manifest.h"

#include <xxhash.h>

#include <string>

#include "tests/fuzz/target.h"

namespace {

using namespace flashshard::checkpoint;  // NOLINT(google-build-using-namespace)
using flashshard::ExitCode;
using flashshard::fuzz::accepts;
using flashshard::fuzz::require;

std::string framed(std::string_view payload) {
  std::string bytes = "FSHMANI1";
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(payload.size() >> (8 * i) & 0xff);
  bytes += payload;
  const XXH128_hash_t hash = XXH3_128bits(payload.data(), payload.size());
  for (const uint64_t half : {hash.high64, hash.low64}) {
    for (int shift = 56; shift >= 0; shift -= 8) bytes += static_cast<char>(half >> shift & 0xff);
  }
  return bytes;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  accepts(ExitCode::kCheckpoint, [&] { decode_manifest(input, "raw"); });
  const std::string pb = framed(input);
  require(manifest_frame_holds(pb), "a frame that holds is refused");
  if (!accepts(ExitCode::kCheckpoint, [&] { decode_manifest(pb, "framed"); })) return 0;
  const Manifest manifest = decode_manifest(pb, "framed");
  json_difference(pb, input);
  const int last = manifest.schema.layout.world_size() - 1;
  for (const FileKind kind : {FileKind::kWeights, FileKind::kState}) {
    require(plan_file(manifest.schema, kind, last).name == manifest.file(kind, last).name,
            "a file of another name");
  }
  require(encode_manifest(manifest).pb.size() > 32, "what was read cannot be written");
  return 0;
}
