// Files of a data set at the level of system calls: every failure becomes one Error with the file's
// name in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace flashshard::data {

/// Owns one open file descriptor.
class FileDescriptor {
 public:
  explicit FileDescriptor(int descriptor = -1) : descriptor_(descriptor) {}
  ~FileDescriptor();
  FileDescriptor(FileDescriptor&& other) noexcept;
  FileDescriptor& operator=(FileDescriptor&& other) noexcept;

  int get() const { return descriptor_; }
  /// Gives the descriptor up to the caller, who closes it.
  int release();

 private:
  int descriptor_;
};

/// A file being written, from its first byte on; an older file of that name is replaced by a new
/// one, never truncated in place (a reader may have it mapped). Every member throws Error:
/// kOutOfSpace when the disk, the quota or the file size limit is reached, kUsage for anything else
/// that stops writing.
class OutputFile {
 public:
  explicit OutputFile(const std::filesystem::path& path);

  void append(std::span<const std::byte> bytes);
  void write_at(uint64_t offset, std::span<const std::byte> bytes);
  /// Makes the bytes durable (fsync) and closes. Without it the file's content is not promised.
  void commit();

 private:
  void check(bool succeeded, std::string_view action) const;

  std::filesystem::path path_;
  FileDescriptor descriptor_;
};

/// A regular file being read from front to back. Throws Error(kBadData) when it is missing, a
/// directory, a pipe or device, empty or unreadable.
class InputFile {
 public:
  explicit InputFile(const std::filesystem::path& path);

  /// Bytes when it was opened.
  int64_t size() const { return size_; }
  const std::filesystem::path& path() const { return path_; }
  /// True when both are one file on disk, whatever their names.
  bool is_same_file(const InputFile& other) const;
  /// Fills `buffer` as far as the file goes; returns the bytes read, fewer than asked for only at
  /// the end.
  size_t read(std::span<std::byte> buffer);

 private:
  std::filesystem::path path_;
  FileDescriptor descriptor_;
  int64_t size_ = 0;
  uint64_t device_ = 0;
  uint64_t inode_ = 0;
};

/// The whole of a file, mapped read-only and shared with every process that maps it. Throws
/// Error(kBadData).
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) = delete;

  std::span<const std::byte> bytes() const { return {address_, size_}; }
  const std::filesystem::path& path() const { return path_; }
  /// Throws Error(kBadData) when the file has become shorter than its mapping: reading on would
  /// raise SIGBUS.
  void check_not_shrunk() const;

 private:
  std::filesystem::path path_;
  FileDescriptor descriptor_;
  const std::byte* address_ = nullptr;
  size_t size_ = 0;
};

/// Makes created, renamed and removed names of a folder durable. Throws like OutputFile.
void sync_folder(const std::filesystem::path& folder);

/// rename(2), which replaces `to` in one step. Throws like OutputFile.
void rename_file(const std::filesystem::path& from, const std::filesystem::path& to);

/// unlink(2); a missing file is no error. Throws like OutputFile.
void remove_file(const std::filesystem::path& path);

/// Throws the Error of a failed write-side system call: "cannot <action>: <reason of
/// error_number>".
[[noreturn]] void throw_write_error(int error_number, std::string_view action,
                                    const std::filesystem::path& path);

}  // namespace flashshard::data
