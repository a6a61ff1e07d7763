// config.json of a model folder: what is accepted is written out and read back to the same shape.
#include "runtime/exchange/hugging_face_config.h"
#include "tests/fuzz/target.h"

namespace {

using flashshard::LlamaOptions;
using flashshard::RopeScaling;

/// The positions that config.json gets for a model without a limit of them.
constexpr int64_t kSequenceLength = 1;

bool same(const RopeScaling& a, const RopeScaling& b) {
  return a.kind == b.kind && a.factor == b.factor &&
         a.low_frequency_factor == b.low_frequency_factor &&
         a.high_frequency_factor == b.high_frequency_factor &&
         a.original_positions == b.original_positions;
}

/// `written` is `read`, written out and read again.
bool same(const LlamaOptions& read, const LlamaOptions& written) {
  const int64_t positions = read.max_position_embeddings;
  return written.vocab_size == read.vocab_size && written.hidden_size == read.hidden_size &&
         written.layers == read.layers && written.heads == read.heads &&
         written.kv_heads == read.kv_heads && written.head_dim == read.head_dim &&
         written.feed_forward_size == read.feed_forward_size &&
         written.rope_theta == read.rope_theta && same(written.rope_scaling, read.rope_scaling) &&
         written.max_position_embeddings == (positions > 0 ? positions : kSequenceLength) &&
         written.norm_epsilon == read.norm_epsilon && written.qkv_bias == read.qkv_bias &&
         written.tied_embeddings == read.tied_embeddings && written.init_std == read.init_std;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace flashshard::exchange;  // NOLINT(google-build-using-namespace)
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  flashshard::fuzz::accepts(flashshard::ExitCode::kCheckpoint, [&] {
    const HuggingFaceConfig config = read_hugging_face_config(json, "config.json");
    const auto files = write_hugging_face_config(
        {.model = config.model, .sequence_length = kSequenceLength, .end_of_document = -1});
    const HuggingFaceConfig again = read_hugging_face_config(files.config, "config.json");
    flashshard::fuzz::require(same(config.model, again.model),
                              "what was written out is read back as something else");
  });
  return 0;
}
