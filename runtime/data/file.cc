#include "runtime/data/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "kernels/error.h"
#include "runtime/system_error.h"

namespace flashshard::data {

namespace {

struct stat status_of(const FileDescriptor& descriptor, const std::filesystem::path& path) {
  struct stat status = {};
  if (::fstat(descriptor.get(), &status) != 0) {
    throw Error(ExitCode::kBadData, fmt::format("cannot inspect file: {}", reason_of(errno)),
                path.string());
  }
  return status;
}

// O_NONBLOCK: opening a pipe must not wait for its writer, it is refused afterwards.
FileDescriptor open_regular_file(const std::filesystem::path& path) {
  FileDescriptor descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (descriptor.get() < 0) {
    throw Error(ExitCode::kBadData, fmt::format("cannot open file: {}", reason_of(errno)),
                path.string(), "check the path and that it may be read");
  }
  const struct stat status = status_of(descriptor, path);
  if (S_ISDIR(status.st_mode)) {
    throw Error(ExitCode::kBadData, "is a directory, not a file", path.string(),
                "name the files in it");
  }
  if (!S_ISREG(status.st_mode)) {
    throw Error(ExitCode::kBadData, "is not a regular file", path.string(),
                "write its content to a file first");
  }
  return descriptor;
}

}  // namespace

FileDescriptor::~FileDescriptor() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

FileDescriptor::FileDescriptor(FileDescriptor&& other) noexcept : descriptor_(other.release()) {}

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

int FileDescriptor::release() { return std::exchange(descriptor_, -1); }

void throw_write_error(int error_number, std::string_view action,
                       const std::filesystem::path& path) {
  const std::string what = fmt::format("cannot {}: {}", action, reason_of(error_number));
  if (is_out_of_space(error_number)) {
    throw Error(ExitCode::kOutOfSpace, what, path.string(),
                "free space on this disk, raise the quota, or choose another folder, then run "
                "the command again");
  }
  throw Error(ExitCode::kUsage, what, path.string(), "choose a folder that can be written");
}

OutputFile::OutputFile(const std::filesystem::path& path) : path_(path) {
  remove_file(path);
  descriptor_ = FileDescriptor(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  check(descriptor_.get() >= 0, "create file");
}

void OutputFile::check(bool succeeded, std::string_view action) const {
  if (!succeeded) throw_write_error(errno, action, path_);
}

void OutputFile::append(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_.get(), bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    check(written >= 0, "write file");
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

void OutputFile::write_at(uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written =
        ::pwrite(descriptor_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    check(written >= 0, "write file");
    bytes = bytes.subspan(static_cast<size_t>(written));
    offset += static_cast<uint64_t>(written);
  }
}

void OutputFile::commit() {
  check(::fsync(descriptor_.get()) == 0, "make file durable");
  // Some file systems report a full quota only when the file is closed.
  check(::close(descriptor_.release()) == 0, "close file");
}

InputFile::InputFile(const std::filesystem::path& path)
    : path_(path), descriptor_(open_regular_file(path)) {
  const struct stat status = status_of(descriptor_, path);
  if (status.st_size == 0) {
    throw Error(ExitCode::kBadData, "file is empty", path.string(), "leave it out");
  }
  size_ = status.st_size;
  device_ = status.st_dev;
  inode_ = status.st_ino;
}

bool InputFile::is_same_file(const InputFile& other) const {
  return device_ == other.device_ && inode_ == other.inode_;
}

size_t InputFile::read(std::span<std::byte> buffer) {
  size_t filled = 0;
  while (filled < buffer.size()) {
    const ssize_t count = ::read(descriptor_.get(), buffer.data() + filled, buffer.size() - filled);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      throw Error(ExitCode::kBadData, fmt::format("cannot read file: {}", reason_of(errno)),
                  path_.string());
    }
    if (count == 0) break;
    filled += static_cast<size_t>(count);
  }
  return filled;
}

MappedFile::MappedFile(const std::filesystem::path& path)
    : path_(path), descriptor_(open_regular_file(path)) {
  size_ = static_cast<size_t>(status_of(descriptor_, path).st_size);
  if (size_ == 0) return;  // an empty mapping is not allowed; its reader sees zero bytes
  void* const address = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor_.get(), 0);
  if (address == MAP_FAILED) {
    throw Error(ExitCode::kBadData, fmt::format("cannot map file: {}", reason_of(errno)),
                path.string());
  }
  address_ = static_cast<const std::byte*>(address);
}

MappedFile::~MappedFile() {
  if (address_ != nullptr) ::munmap(const_cast<std::byte*>(address_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::move(other.descriptor_)),
      address_(std::exchange(other.address_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

void MappedFile::check_not_shrunk() const {
  const auto found = static_cast<size_t>(status_of(descriptor_, path_).st_size);
  if (found < size_) {
    throw Error(
        ExitCode::kBadData,
        fmt::format("file was truncated while in use: expected {} bytes, found {}", size_, found),
        path_.string(), "restore the file, or prepare the data again");
  }
}

void sync_folder(const std::filesystem::path& folder) {
  const FileDescriptor descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (descriptor.get() < 0 || ::fsync(descriptor.get()) != 0) {
    throw_write_error(errno, "make folder durable", folder);
  }
}

void rename_file(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) throw_write_error(errno, "rename file", from);
}

void remove_file(const std::filesystem::path& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
    throw_write_error(errno, "remove file", path);
  }
}

}  // namespace flashshard::data
