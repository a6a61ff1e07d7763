// The lock is flock(2) on a file that is never removed: removing it would let two trainers lock two
// files of one name.
#include "runtime/run_folder.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <thread>
#include <utility>

#include "kernels/error.h"
#include "runtime/metrics/durable_file.h"
#include "runtime/metrics/host_name.h"

namespace flashshard {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLockName = ".lock";

RunTicket draw_ticket() {
  std::random_device source;
  constexpr std::string_view kDigits = "0123456789abcdef";
  RunTicket ticket;
  for (char& digit : ticket) digit = kDigits[source() % kDigits.size()];
  return ticket;
}

struct LockHolder {
  int64_t pid = 0;
  std::string host;
  std::string ticket;
};

/// What the lock file says; nothing when it cannot be read or was caught half written.
std::optional<LockHolder> read_holder(const fs::path& lock_path) {
  try {
    const nlohmann::json holder = nlohmann::json::parse(metrics::read_file(lock_path));
    return LockHolder{holder.at("pid").get<int64_t>(), holder.at("host").get<std::string>(),
                      holder.at("ticket").get<std::string>()};
  } catch (const std::exception&) {
    // The holder may be about to write it: the caller asks again or does without.
    return std::nullopt;
  }
}

Error folder_in_use(const fs::path& directory) {
  std::string who = "another process";
  if (const auto holder = read_holder(directory / kLockName)) {
    who = fmt::format("process {} on {}", holder->pid, holder->host);
  }
  return Error(ExitCode::kUsage, "the run folder is in use by " + who, directory.string(),
               "wait for that run to end, stop it, or set another run.dir");
}

void make_directory(const fs::path& directory) {
  if (directory.empty()) {
    throw Error(ExitCode::kUsage, "run.dir is empty", {}, "name a folder");
  }
  const fs::path parent = fs::absolute(directory / "").parent_path().parent_path();
  std::error_code ignored;
  if (!fs::is_directory(parent, ignored)) {
    throw Error(ExitCode::kUsage, "the folder that should hold the run folder does not exist",
                parent.string(), fmt::format("mkdir -p '{}'", parent.string()));
  }
  if (::mkdir(directory.c_str(), 0777) == 0) return;
  if (errno != EEXIST) throw metrics::file_error("create the run folder", directory, errno);
  if (!fs::is_directory(directory, ignored)) {
    throw Error(ExitCode::kUsage, "run.dir is not a folder", directory.string(),
                "remove the file or set another run.dir");
  }
}

/// A descriptor that holds the lock. Throws Error(kUsage).
int take_lock(const fs::path& directory) {
  const fs::path path = directory / kLockName;
  const int lock = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (lock < 0) throw metrics::file_error("write into the run folder", directory, errno);
  if (::flock(lock, LOCK_EX | LOCK_NB) == 0) return lock;
  const int failure = errno;
  ::close(lock);
  if (failure == EWOULDBLOCK) throw folder_in_use(directory);
  throw metrics::file_error("lock the run folder", path, failure);
}

void write_holder(int lock, const fs::path& directory, const RunTicket& ticket) {
  const nlohmann::json holder = {{"pid", ::getpid()},
                                 {"host", metrics::host_name()},
                                 {"ticket", std::string(ticket.data(), ticket.size())}};
  const std::string text = holder.dump() + "\n";
  ssize_t written = -1;
  if (::ftruncate(lock, 0) == 0) written = ::pwrite(lock, text.data(), text.size(), 0);
  if (written != static_cast<ssize_t>(text.size())) {
    const int failure = written < 0 ? errno : ENOSPC;
    throw metrics::file_error("write the lock of the run folder", directory, failure);
  }
}

void make_sub_folder(const fs::path& directory) {
  if (::mkdir(directory.c_str(), 0777) != 0 && errno != EEXIST) {
    throw metrics::file_error("create a folder", directory, errno);
  }
}

std::string rank_file(int rank, std::string_view extension) {
  return fmt::format("rank-{:05}{}", rank, extension);
}

}  // namespace

RunFolder RunFolder::create(const fs::path& directory) {
  make_directory(directory);
  RunFolder folder(directory, draw_ticket(), take_lock(directory));
  write_holder(folder.lock_, directory, folder.ticket_);
  for (const char* name : {"tensorboard", "checkpoints", "logs", "status"}) {
    make_sub_folder(directory / name);
  }
  return folder;
}

RunFolder RunFolder::join(const fs::path& directory, const RunTicket& ticket,
                          std::chrono::milliseconds patience) {
  const std::string expected(ticket.data(), ticket.size());
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (true) {
    const auto holder = read_holder(directory / kLockName);
    if (holder && holder->ticket == expected) break;
    if (std::chrono::steady_clock::now() >= deadline) {
      throw Error(ExitCode::kUsage,
                  fmt::format("the run folder is not the one that rank 0 sees, seen from {}",
                              metrics::host_name()),
                  directory.string(), "set run.dir to a folder that all machines share");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  for (const char* name : {"checkpoints", "logs", "status"}) {
    if (::access((directory / name).c_str(), W_OK | X_OK) != 0) {
      throw metrics::file_error(
          fmt::format("write into the run folder from {}", metrics::host_name()), directory / name,
          errno);
    }
  }
  return RunFolder(directory, ticket, -1);
}

RunFolder::~RunFolder() {
  if (lock_ >= 0) ::close(lock_);
}

RunFolder::RunFolder(RunFolder&& other) noexcept
    : directory_(std::move(other.directory_)),
      ticket_(other.ticket_),
      lock_(std::exchange(other.lock_, -1)) {}

fs::path RunFolder::log_path(int rank) const {
  return directory_ / "logs" / rank_file(rank, ".log");
}

fs::path RunFolder::status_path(int rank) const {
  return directory_ / "status" / rank_file(rank, ".json");
}
fs::path RunFolder::trace_path(int rank) const {
  return directory_ / "profile" / rank_file(rank, ".json");
}

void RunFolder::write_config(std::string_view textproto) const {
  metrics::replace_file(config_path(), textproto, metrics::Durability::kSynced);
}

}  // namespace flashshard
