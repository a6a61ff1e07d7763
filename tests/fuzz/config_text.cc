// The text of a configuration: what is accepted is written out and read back to the same.
#include "runtime/config/run_config.h"
#include "tests/fuzz/target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  flashshard::fuzz::accepts(flashshard::ExitCode::kUsage, [&] {
    const auto config = flashshard::parse_run_config(text, "input", {});
    const std::string resolved = flashshard::to_text(config);
    const auto again = flashshard::parse_run_config(resolved, "again", {});
    flashshard::fuzz::require(flashshard::to_text(again) == resolved,
                              "what was written out is read back as something else");
  });
  return 0;
}
