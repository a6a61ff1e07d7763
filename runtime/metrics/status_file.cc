// A small JSON object, replaced by rename so that a launcher never reads half of one.
#include "runtime/metrics/status_file.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <unistd.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "runtime/metrics/durable_file.h"
#include "runtime/metrics/host_name.h"

namespace flashshard::metrics {
namespace {

std::string utc_now() {
  const auto now = std::chrono::system_clock::now();
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}",
                     fmt::gmtime(std::chrono::system_clock::to_time_t(now)));
}

/// Puts `text` where the old status stands, inside the blocks the file already has. Spaces cover
/// what is left of a longer old text, so that it is whole JSON before and after the file is cut to
/// size.
bool overwrite_in_place(const std::filesystem::path& path, std::string text) {
  const int file = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (file < 0) return false;
  const size_t length = text.size();
  const off_t old_length = ::lseek(file, 0, SEEK_END);
  if (old_length > static_cast<off_t>(length)) text.resize(static_cast<size_t>(old_length), ' ');
  const bool written =
      ::pwrite(file, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size());
  const bool cut = written && ::ftruncate(file, static_cast<off_t>(length)) == 0;
  ::close(file);
  return cut;
}

}  // namespace

std::string_view name_of(RunState state) {
  switch (state) {
    case RunState::kStarting:
      return "starting";
    case RunState::kRunning:
      return "running";
    case RunState::kSaving:
      return "saving";
    case RunState::kDone:
      return "done";
    case RunState::kFailed:
      return "failed";
    case RunState::kStopped:
      return "stopped";
  }
  return "failed";
}

std::string to_json(const RankStatus& status) {
  nlohmann::ordered_json object = {
      {"state", name_of(status.state)},
      {"exit_code", nullptr},
      {"reason", status.reason},
      {"last_step", status.last_step},
      {"time", utc_now()},
      {"pid", ::getpid()},
      {"host", host_name()},
  };
  if (status.exit_code) object["exit_code"] = static_cast<int>(*status.exit_code);
  // A reason may quote a path that is not UTF-8; the file stays readable all the same.
  return object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

void StatusFile::set(const RankStatus& status) {
  const std::string text = to_json(status);
  try {
    replace_file(path_, text, Durability::kAtomic);
  } catch (const Error& error) {
    if (error.code() != ExitCode::kOutOfSpace || !overwrite_in_place(path_, text)) throw;
  }
}

bool StatusFile::try_set(const RankStatus& status) noexcept {
  try {
    set(status);
    return true;
  } catch (...) {
    return false;
  }
}

}  // namespace flashshard::metrics
