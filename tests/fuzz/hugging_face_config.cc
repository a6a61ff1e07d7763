// config.json of a model folder: what is accepted is written out and read back to the same shape.
#include "runtime/exchange/hugging_face_config.h"
#include "tests/fuzz/target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace flashshard::exchange;  // NOLINT(google-build-using-namespace)
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  flashshard::fuzz::accepts(flashshard::ExitCode::kCheckpoint, [&] {
    const HuggingFaceConfig config = read_hugging_face_config(json, "config.json");
    const auto files = write_hugging_face_config(
        {.model = config.model, .sequence_length = 1, .end_of_document = -1});
    const HuggingFaceConfig again = read_hugging_face_config(files.config, "config.json");
    flashshard::fuzz::require(again.model.vocab_size == config.model.vocab_size &&
                                  again.model.rope_theta == config.model.rope_theta &&
                                  again.model.rope_scaling.kind == config.model.rope_scaling.kind,
                              "what was written out is read back as something else");
  });
  return 0;
}
