// A file system of one file, which is the input of a fuzz target.
#pragma once

#include <cerrno>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "runtime/checkpoint/file_system.h"
#include "tests/fuzz/target.h"

namespace flashshard::fuzz {

/// One file that is these bytes, for reading.
class OneFile final : public checkpoint::FileSystem {
 public:
  explicit OneFile(std::span<const std::byte> bytes) : bytes_(bytes) {}

  int open(const std::string&) override { return 0; }
  int close(int) override { return 0; }
  int64_t size(int) override { return static_cast<int64_t>(bytes_.size()); }
  int64_t read(int, uint64_t offset, std::span<std::byte> out) override {
    require(offset <= bytes_.size() && out.size() <= bytes_.size() - offset,
            "a read beyond the file");
    std::memcpy(out.data(), bytes_.data() + offset, out.size());
    return static_cast<int64_t>(out.size());
  }

  int create(const std::string&) override { return -EROFS; }
  int64_t write(int, std::span<const std::byte>) override { return -EROFS; }
  int sync(int) override { return -EROFS; }
  int sync_directory(const std::string&) override { return -EROFS; }
  int make_directory(const std::string&) override { return -EROFS; }
  int remove_file(const std::string&) override { return -EROFS; }
  int remove_directory(const std::string&) override { return -EROFS; }
  int rename(const std::string&, const std::string&) override { return -EROFS; }
  int list(const std::string&, std::vector<std::string>&) override { return -EROFS; }
  int kind(const std::string&, checkpoint::PathKind& kind) override {
    kind = checkpoint::PathKind::kFile;
    return 0;
  }

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace flashshard::fuzz
