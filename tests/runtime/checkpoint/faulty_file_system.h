// A file system for tests: passes every call on, tells of it first, and does what the test says:
// fail, before or after the call had its effect, or move fewer bytes than asked for.
#pragma once

#include <cerrno>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/checkpoint/file_system.h"

namespace flashshard::checkpoint::test {

class FaultyFileSystem final : public FileSystem {
 public:
  /// Gets a call's name and path; returns 0, the errno that the call fails with, or one of the
  /// below. Closing a file has its effect whatever is returned, as on Linux.
  using Fault = std::function<int(const std::string& call, const std::string& path)>;
  static constexpr int kHalfOfTheBytes = -1;
  static constexpr int kDoneButEIO = -2;  // a network's storage did it, and the answer got lost
  explicit FaultyFileSystem(Fault fault, FileSystem& real = posix_file_system())
      : fault_(std::move(fault)), real_(real) {}

  /// Writes at most so many bytes in one call; 0: as many as asked for.
  size_t longest_write = 0;

  int create(const std::string& path) override {
    return opened(path, true, before("create", path, [&] { return real_.create(path); }));
  }
  int open(const std::string& path) override {
    return opened(path, false, before("open", path, [&] { return real_.open(path); }));
  }
  int close(int file) override {
    // The descriptor is given back even when the call fails, as on Linux.
    const auto [path, written] = known(file);
    const int status = real_.close(file);
    return before(written ? "close" : "close_read", path, [&] { return status; });
  }
  int64_t write(int file, std::span<const std::byte> bytes) override {
    if (longest_write > 0) bytes = bytes.first(std::min(longest_write, bytes.size()));
    return moved("write", path_of(file), bytes,
                 [&](std::span<const std::byte> part) { return real_.write(file, part); });
  }
  int64_t read(int file, uint64_t offset, std::span<std::byte> bytes) override {
    if (longest_write > 0) bytes = bytes.first(std::min(longest_write, bytes.size()));
    return moved("read", path_of(file), bytes,
                 [&](std::span<std::byte> part) { return real_.read(file, offset, part); });
  }
  int64_t size(int file) override {
    return before("size", path_of(file), [&] { return real_.size(file); });
  }
  int sync(int file) override {
    return before("sync", path_of(file), [&] { return real_.sync(file); });
  }
  int sync_directory(const std::string& path) override {
    return before("sync_directory", path, [&] { return real_.sync_directory(path); });
  }
  int make_directory(const std::string& path) override {
    return before("make_directory", path, [&] { return real_.make_directory(path); });
  }
  int remove_file(const std::string& path) override {
    return before("remove_file", path, [&] { return real_.remove_file(path); });
  }
  int remove_directory(const std::string& path) override {
    return before("remove_directory", path, [&] { return real_.remove_directory(path); });
  }
  int rename(const std::string& from, const std::string& to) override {
    return before("rename", from, [&] { return real_.rename(from, to); });
  }
  int list(const std::string& path, std::vector<std::string>& names) override {
    return before("list", path, [&] { return real_.list(path, names); });
  }
  int kind(const std::string& path, PathKind& kind) override {
    return before("kind", path, [&] { return real_.kind(path, kind); });
  }

 private:
  template <class Call>
  auto before(const std::string& name, const std::string& path, Call call) -> decltype(call()) {
    const int fault = fault_(name, path);
    if (fault > 0) return -fault;
    const auto result = call();
    return fault == kDoneButEIO ? -EIO : result;
  }
  template <class Bytes, class Call>
  int64_t moved(const std::string& name, const std::string& path, Bytes bytes, Call call) {
    const int fault = fault_(name, path);
    if (fault > 0) return -fault;
    const int64_t result =
        call(fault == kHalfOfTheBytes ? bytes.first((bytes.size() + 1) / 2) : bytes);
    return fault == kDoneButEIO ? -EIO : result;
  }
  struct Known {
    std::string path;
    bool written = false;
  };
  int opened(const std::string& path, bool written, int file) {
    const std::lock_guard lock(mutex_);
    if (file >= 0) files_[file] = {path, written};
    return file;
  }
  Known known(int file) {
    const std::lock_guard lock(mutex_);
    return files_[file];
  }
  std::string path_of(int file) { return known(file).path; }

  Fault fault_;
  FileSystem& real_;
  std::mutex mutex_;
  std::map<int, Known> files_;
};

}  // namespace flashshard::checkpoint::test
