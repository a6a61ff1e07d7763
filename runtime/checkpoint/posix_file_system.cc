// FileSystem on the machine's own system calls.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "runtime/checkpoint/file_system.h"

namespace flashshard::checkpoint {
namespace {

int result(int value) { return value < 0 ? -errno : value; }

/// Repeats a call that a signal interrupted: SIGUSR1 asks for a checkpoint and must not break one.
template <class Call>
auto uninterrupted(Call call) {
  auto value = call();
  while (value < 0 && errno == EINTR) value = call();
  return value;
}

// Linux moves at most 2 GiB - 4 KiB in one call.
constexpr size_t kMostBytesPerCall = size_t{1} << 30;

/// After a write of `done` bytes at the end of a file: keeps what the page cache holds of it to
/// about kFlushBytes. Otherwise writes would run ahead of a slow disk by the whole file, and the
/// fsync at its end would look like a disk that takes nothing. An error is told here, for good: the
/// fsync that follows would not tell it again.
int flush_behind(int file, int64_t done) {
  constexpr int64_t kFlushBytes = int64_t{64} << 20;
  const off_t end = ::lseek(file, 0, SEEK_CUR);
  if (end < 0 || end / kFlushBytes == (end - done) / kFlushBytes) return 0;
  const int flushed = uninterrupted([&] {
    return ::sync_file_range(file, 0, end, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE);
  });
  const bool unknown = errno == EINVAL || errno == ESPIPE || errno == ENOSYS;
  return flushed < 0 && !unknown ? -errno : 0;
}

class PosixFileSystem final : public FileSystem {
 public:
  int create(const std::string& path) override {
    return result(uninterrupted(
        [&] { return ::open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666); }));
  }
  int open(const std::string& path) override {
    // O_NONBLOCK: a pipe in place of a file must give an error, not a wait for its writer.
    return result(
        uninterrupted([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); }));
  }
  int close(int file) override {
    // The descriptor is gone even when a signal interrupts close on Linux.
    return ::close(file) < 0 && errno != EINTR ? -errno : 0;
  }
  int64_t write(int file, std::span<const std::byte> bytes) override {
    const auto done = uninterrupted(
        [&] { return ::write(file, bytes.data(), std::min(bytes.size(), kMostBytesPerCall)); });
    if (done < 0) return -errno;
    const int flushed = flush_behind(file, done);
    return flushed < 0 ? flushed : done;
  }
  int64_t read(int file, uint64_t offset, std::span<std::byte> bytes) override {
    const auto done = uninterrupted([&] {
      return ::pread(file, bytes.data(), std::min(bytes.size(), kMostBytesPerCall),
                     static_cast<off_t>(offset));
    });
    return done < 0 ? -errno : done;
  }
  int64_t size(int file) override {
    struct stat status = {};
    if (::fstat(file, &status) < 0) return -errno;
    return S_ISREG(status.st_mode) ? status.st_size : -EINVAL;
  }
  int sync(int file) override {
    return result(uninterrupted([&] { return ::fsync(file); }));
  }

  int sync_directory(const std::string& path) override {
    const int directory =
        uninterrupted([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
    if (directory < 0) return -errno;
    const int synced = sync(directory);
    const int closed = close(directory);
    return synced < 0 ? synced : closed;
  }
  int make_directory(const std::string& path) override {
    return result(::mkdir(path.c_str(), 0777));
  }
  int remove_file(const std::string& path) override { return result(::unlink(path.c_str())); }
  int remove_directory(const std::string& path) override { return result(::rmdir(path.c_str())); }
  int rename(const std::string& from, const std::string& to) override {
    return result(::rename(from.c_str(), to.c_str()));
  }
  int list(const std::string& path, std::vector<std::string>& names) override {
    const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(path.c_str()), ::closedir);
    if (!directory) return -errno;
    for (;;) {
      errno = 0;
      const dirent* entry = ::readdir(directory.get());
      if (entry == nullptr) return -errno;
      const std::string_view name = entry->d_name;
      if (name != "." && name != "..") names.emplace_back(name);
    }
  }
  int kind(const std::string& path, PathKind& kind) override {
    struct stat status = {};
    if (::lstat(path.c_str(), &status) < 0) {
      kind = PathKind::kMissing;
      return errno == ENOENT || errno == ENOTDIR ? 0 : -errno;
    }
    kind = S_ISDIR(status.st_mode)   ? PathKind::kDirectory
           : S_ISREG(status.st_mode) ? PathKind::kFile
                                     : PathKind::kOther;
    return 0;
  }
};

}  // namespace

FileSystem& posix_file_system() {
  static PosixFileSystem file_system;
  return file_system;
}

}  // namespace flashshard::checkpoint
