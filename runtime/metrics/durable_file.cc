// Atomic replacement by rename(2), appends by a single write(2) on an O_APPEND descriptor.
#include "runtime/metrics/durable_file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <sstream>

#include "runtime/system_error.h"

namespace flashshard::metrics {
namespace {

/// Closes a descriptor on every way out.
class Descriptor {
 public:
  explicit Descriptor(int descriptor) : descriptor_(descriptor) {}
  ~Descriptor() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return descriptor_; }

 private:
  int descriptor_;
};

/// 0, or the errno of the write that failed; then part of `bytes` may stand in the file.
int write_fully(int descriptor, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      return errno;
    }
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return 0;
}

void sync_directory(const std::filesystem::path& directory) {
  const Descriptor folder(
      ::open(directory.empty() ? "." : directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // Some network file systems refuse to sync a folder; the rename itself is already visible.
  if (folder.get() >= 0) static_cast<void>(::fsync(folder.get()));
}

/// 0, or the errno of what failed.
int write_new_file(const std::filesystem::path& path, std::string_view contents,
                   Durability durability) {
  const Descriptor file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (file.get() < 0) return errno;
  if (const int failure = write_fully(file.get(), contents); failure != 0) return failure;
  if (durability == Durability::kSynced && ::fsync(file.get()) != 0) return errno;
  return 0;
}

}  // namespace

Error file_error(std::string_view action, const std::filesystem::path& path, int error_number) {
  const bool no_space = is_out_of_space(error_number);
  std::string hint;
  if (no_space) hint = "free some space, then run the same command again: it resumes";
  if (is_permission(error_number)) {
    hint = "choose a place this user may write to";
  }
  return Error(no_space ? ExitCode::kOutOfSpace : ExitCode::kUsage,
               fmt::format("cannot {}: {}", action, reason_of(error_number)), path.string(), hint);
}

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream contents;
  if (file) contents << file.rdbuf();
  // An empty file sets failbit on the stream that receives nothing, so only the source is asked.
  if (!file || file.bad()) throw file_error("read the file", path, errno == 0 ? EIO : errno);
  return std::move(contents).str();
}

void replace_file(const std::filesystem::path& path, std::string_view contents,
                  Durability durability) {
  std::filesystem::path temporary = path;
  temporary += ".tmp";
  int failure = write_new_file(temporary, contents, durability);
  if (failure == 0 && ::rename(temporary.c_str(), path.c_str()) != 0) failure = errno;
  if (failure != 0) {
    ::unlink(temporary.c_str());
    throw file_error("write the file", path, failure);
  }
  if (durability == Durability::kSynced) sync_directory(path.parent_path());
}

AppendFile::AppendFile(const std::filesystem::path& path, Opening opening) : path_(path) {
  const int exclusive = opening == Opening::kExclusive ? O_EXCL : 0;
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | exclusive, 0666);
  if (descriptor_ < 0) throw file_error("open the file for writing", path_, errno);
}

AppendFile::~AppendFile() { ::close(descriptor_); }

void AppendFile::append(std::string_view record) {
  struct stat before = {};
  if (::fstat(descriptor_, &before) != 0) throw file_error("write the file", path_, errno);
  if (const int failure = write_fully(descriptor_, record); failure != 0) {
    if (S_ISREG(before.st_mode)) {
      [[maybe_unused]] const int taken_back = ::ftruncate(descriptor_, before.st_size);
    }
    throw file_error("write the file", path_, failure);
  }
}

}  // namespace flashshard::metrics
