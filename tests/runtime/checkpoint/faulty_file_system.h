// A file system for tests: passes every call on, tells of it first, and fails where the test says
// so.
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
  /// Gets a call's name and path; returns 0, or the errno that the call fails with.
  using Fault = std::function<int(const std::string& call, const std::string& path)>;
  explicit FaultyFileSystem(Fault fault) : fault_(std::move(fault)) {}

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
    return before("write", path_of(file), [&] { return real_.write(file, bytes); });
  }
  int64_t read(int file, uint64_t offset, std::span<std::byte> bytes) override {
    if (longest_write > 0) bytes = bytes.first(std::min(longest_write, bytes.size()));
    return before("read", path_of(file), [&] { return real_.read(file, offset, bytes); });
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
    const int error = fault_(name, path);
    return error != 0 ? -error : call();
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
  FileSystem& real_ = posix_file_system();
  std::mutex mutex_;
  std::map<int, Known> files_;
};

}  // namespace flashshard::checkpoint::test
