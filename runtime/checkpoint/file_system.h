// The system calls of a checkpoint, behind one small interface: what is written, in which order it
// is made durable, and what a fault does to it can be tested call by call. Above it: owning handles
// and errors for people.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/error.h"

namespace flashshard::checkpoint {

enum class PathKind : uint8_t { kMissing, kFile, kDirectory, kOther };

/// One method, one system call (sync_directory: open, fsync, close). Results are 0 or a count, or a
/// negated errno; none throws. Files are referred to by a descriptor >= 0.
class FileSystem {
 public:
  virtual ~FileSystem() = default;
  FileSystem(const FileSystem&) = delete;
  FileSystem& operator=(const FileSystem&) = delete;

  /// Opens a new file for writing; -EEXIST when there is one already.
  virtual int create(const std::string& path) = 0;
  virtual int open(const std::string& path) = 0;  // for reading
  virtual int close(int file) = 0;
  /// May write fewer bytes than asked for.
  virtual int64_t write(int file, std::span<const std::byte> bytes) = 0;
  /// May read fewer bytes than asked for; 0 at the end of the file.
  virtual int64_t read(int file, uint64_t offset, std::span<std::byte> bytes) = 0;
  virtual int64_t size(int file) = 0;
  virtual int sync(int file) = 0;

  virtual int sync_directory(const std::string& path) = 0;
  virtual int make_directory(const std::string& path) = 0;
  virtual int remove_file(const std::string& path) = 0;
  virtual int remove_directory(const std::string& path) = 0;  // an empty one
  virtual int rename(const std::string& from, const std::string& to) = 0;
  /// Names in a folder, without "." and "..", in no particular order.
  virtual int list(const std::string& path, std::vector<std::string>& names) = 0;
  /// Symbolic links are kOther: nothing of ours is one, and deletion must not follow one.
  virtual int kind(const std::string& path, PathKind& kind) = 0;

 protected:
  FileSystem() = default;
};

/// The machine's own file system.
FileSystem& posix_file_system();

/// An error of a write: kOutOfSpace for a full disk or a failing device, kUsage for a folder that
/// may not be written. `error` is an errno. The message names the path and says what to do.
[[nodiscard]] Error write_error(std::string_view action, const std::string& path, int error);
/// An error of a read: kCheckpoint, or kUsage when permission is missing.
[[nodiscard]] Error read_error(std::string_view action, const std::string& path, int error);

/// What takes a file's content, as it is (OutputFile) or compressed (zstd_file.h).
class ByteSink {
 public:
  virtual ~ByteSink() = default;
  ByteSink(const ByteSink&) = delete;
  ByteSink& operator=(const ByteSink&) = delete;

  virtual void write(std::span<const std::byte> bytes) = 0;  // all of them, or throws write_error
  /// Makes the bytes durable and closes the file. A file that is not finished is not part of
  /// anything.
  virtual void finish() = 0;

 protected:
  ByteSink() = default;
};

/// A file being written, closed at the end of its life.
class OutputFile final : public ByteSink {
 public:
  OutputFile(FileSystem& file_system, std::string path);  // throws write_error
  ~OutputFile() override;

  void write(std::span<const std::byte> bytes) override;
  void finish() override;

 private:
  FileSystem& file_system_;
  std::string path_;
  int file_;
};

/// A file's content, as it is (InputFile) or decompressed (zstd_file.h).
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  ByteSource& operator=(const ByteSource&) = delete;

  virtual const std::string& path() const = 0;
  virtual uint64_t size() const = 0;
  /// Fills `bytes`; throws Error(kCheckpoint) when the content ends before that, read_error.
  virtual void read(uint64_t offset, std::span<std::byte> bytes) const = 0;

 protected:
  ByteSource() = default;
  ByteSource(const ByteSource&) = default;
};

/// A file being read.
class InputFile final : public ByteSource {
 public:
  InputFile(FileSystem& file_system, std::string path);  // throws read_error
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&&) = delete;
  ~InputFile() override;

  const std::string& path() const override { return path_; }
  uint64_t size() const override { return size_; }
  void read(uint64_t offset, std::span<std::byte> bytes) const override;

 private:
  FileSystem& file_system_;
  std::string path_;
  int file_;
  uint64_t size_ = 0;
};

std::string join(std::string_view folder, std::string_view name);
/// The last part of a path, trailing slashes aside.
std::string name_of_path(std::string_view path);
/// The folder that a path stands in; "." for a bare name.
std::string parent_of_path(std::string_view path);

PathKind kind_of(FileSystem& file_system, const std::string& path);  // throws read_error
std::vector<std::string> list(FileSystem& file_system,
                              const std::string&);  // sorted; throws read_error
/// Writes a small file and makes its bytes (not its name) durable.
void write_file(FileSystem& file_system, const std::string& path, std::string_view text);
/// Reads a file of at most `limit` bytes; throws read_error, or Error(kCheckpoint) for a larger
/// one.
std::string read_file(FileSystem& file_system, const std::string& path, uint64_t limit);
void rename(FileSystem& file_system, const std::string& from, const std::string& to);
/// Makes a folder's entries durable.
void sync_folder(FileSystem& file_system, const std::string& path);
/// Makes a folder and those above it; every one that is made is durable in the folder above it.
void make_folders(FileSystem& file_system, const std::string& path);
/// Deletes a folder and all it holds, without following links. Throws write_error.
void remove_tree(FileSystem& file_system, const std::string& path);

std::span<const std::byte> bytes_of(std::string_view text);

}  // namespace flashshard::checkpoint
