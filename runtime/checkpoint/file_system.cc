#include "runtime/checkpoint/file_system.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "runtime/system_error.h"

namespace flashshard::checkpoint {

Error write_error(std::string_view action, const std::string& path, int error) {
  const std::string what = fmt::format("{}: {}", action, reason_of(error));
  if (is_out_of_space(error)) {
    return {ExitCode::kOutOfSpace, what, path,
            "free space on this disk, or keep fewer checkpoints (checkpoint.keep_last)"};
  }
  if (is_permission(error)) {
    return {ExitCode::kUsage, what, path, "make the folder writable, or choose another run.dir"};
  }
  switch (error) {
    case ENOENT:
    case ENOTDIR:
    case EEXIST:
    case ENAMETOOLONG:
    case ELOOP:
      return {ExitCode::kUsage, what, path,
              "check run.dir, and that no other program changes this folder"};
    case ENOMEM:
    case EMFILE:
    case ENFILE:
      return {ExitCode::kOutOfSpace, what, path, "free memory, or raise the limit on open files"};
    default:
      return {ExitCode::kOutOfSpace, what, path, "the storage failed: check the disk"};
  }
}

Error read_error(std::string_view action, const std::string& path, int error) {
  const std::string what = fmt::format("{}: {}", action, reason_of(error));
  if (is_permission(error)) {
    return {ExitCode::kUsage, what, path, "make it readable for this user"};
  }
  return {ExitCode::kCheckpoint, what, path};
}

OutputFile::OutputFile(FileSystem& file_system, std::string path)
    : file_system_(file_system), path_(std::move(path)), file_(file_system_.create(path_)) {
  if (file_ < 0) throw write_error("cannot create a file", path_, -file_);
}

OutputFile::~OutputFile() {
  if (file_ >= 0) file_system_.close(file_);
}

void OutputFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const int64_t done = file_system_.write(file_, bytes);
    // A device that takes nothing and reports nothing would loop for ever.
    if (done <= 0)
      throw write_error("cannot write", path_, done == 0 ? EIO : static_cast<int>(-done));
    bytes = bytes.subspan(static_cast<size_t>(done));
  }
}

void OutputFile::finish() {
  if (const int synced = file_system_.sync(file_); synced < 0) {
    throw write_error("cannot make the file durable", path_, -synced);
  }
  const int closed = file_system_.close(std::exchange(file_, -1));
  if (closed < 0) throw write_error("cannot close the file", path_, -closed);
}

InputFile::InputFile(FileSystem& file_system, std::string path)
    : file_system_(file_system), path_(std::move(path)), file_(file_system_.open(path_)) {
  if (file_ < 0) throw read_error("cannot open", path_, -file_);
  const int64_t size = file_system_.size(file_);
  if (size < 0) {
    file_system_.close(file_);
    throw read_error("cannot tell the file's size", path_, static_cast<int>(-size));
  }
  size_ = static_cast<uint64_t>(size);
}

InputFile::InputFile(InputFile&& other) noexcept
    : file_system_(other.file_system_),
      path_(std::move(other.path_)),
      file_(std::exchange(other.file_, -1)),
      size_(other.size_) {}

InputFile::~InputFile() {
  if (file_ >= 0) file_system_.close(file_);
}

void InputFile::read(uint64_t offset, std::span<std::byte> bytes) const {
  if (offset > size_ || bytes.size() > size_ - offset) {
    throw Error(
        ExitCode::kCheckpoint,
        fmt::format("the file ends at byte {}, wanted {} bytes at {}", size_, bytes.size(), offset),
        path_);
  }
  while (!bytes.empty()) {
    const int64_t done = file_system_.read(file_, offset, bytes);
    if (done < 0) throw read_error("cannot read", path_, static_cast<int>(-done));
    if (done == 0) throw Error(ExitCode::kCheckpoint, "the file became shorter while read", path_);
    offset += static_cast<uint64_t>(done);
    bytes = bytes.subspan(static_cast<size_t>(done));
  }
}

std::string join(std::string_view folder, std::string_view name) {
  if (folder.empty()) return std::string(name);
  return fmt::format("{}{}{}", folder, folder.ends_with('/') ? "" : "/", name);
}

namespace {
std::string_view without_trailing_slashes(std::string_view path) {
  while (path.size() > 1 && path.ends_with('/')) path.remove_suffix(1);
  return path;
}
}  // namespace

std::string name_of_path(std::string_view path) {
  path = without_trailing_slashes(path);
  const size_t slash = path.rfind('/');
  return std::string(slash == std::string_view::npos ? path : path.substr(slash + 1));
}

std::string parent_of_path(std::string_view path) {
  path = without_trailing_slashes(path);
  const size_t slash = path.rfind('/');
  if (slash == std::string_view::npos) return ".";
  return std::string(without_trailing_slashes(path.substr(0, slash + 1)));
}

PathKind kind_of(FileSystem& file_system, const std::string& path) {
  PathKind kind = PathKind::kMissing;
  if (const int status = file_system.kind(path, kind); status < 0) {
    throw read_error("cannot look at", path, -status);
  }
  return kind;
}

std::vector<std::string> list(FileSystem& file_system, const std::string& path) {
  std::vector<std::string> names;
  if (const int status = file_system.list(path, names); status < 0) {
    throw read_error("cannot list the folder", path, -status);
  }
  std::sort(names.begin(), names.end());
  return names;
}

void write_file(FileSystem& file_system, const std::string& path, std::string_view text) {
  OutputFile file(file_system, path);
  file.write(bytes_of(text));
  file.finish();
}

std::string read_file(FileSystem& file_system, const std::string& path, uint64_t limit) {
  const InputFile file(file_system, path);
  if (file.size() > limit) {
    throw Error(
        ExitCode::kCheckpoint,
        fmt::format("the file has {} bytes, more than the {} it may have", file.size(), limit),
        path);
  }
  std::string text(file.size(), '\0');
  file.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

void rename(FileSystem& file_system, const std::string& from, const std::string& to) {
  if (const int status = file_system.rename(from, to); status < 0) {
    throw write_error(fmt::format("cannot rename it to {}", name_of_path(to)), from, -status);
  }
}

void sync_folder(FileSystem& file_system, const std::string& path) {
  if (const int status = file_system.sync_directory(path); status < 0) {
    throw write_error("cannot make the folder durable", path, -status);
  }
}

void make_folders(FileSystem& file_system, const std::string& path) {
  if (kind_of(file_system, path) == PathKind::kDirectory) return;
  const std::string parent = parent_of_path(path);
  if (parent != path && parent != ".") make_folders(file_system, parent);
  const int status = file_system.make_directory(path);
  // EEXIST: a symbolic link to a folder, or another program was faster; a file there shows at the
  // first use.
  if (status == -EEXIST) return;
  if (status < 0) throw write_error("cannot make the folder", path, -status);
  sync_folder(file_system, parent);
}

void remove_tree(FileSystem& file_system, const std::string& path) {
  for (const std::string& name : list(file_system, path)) {
    const std::string child = join(path, name);
    if (kind_of(file_system, child) == PathKind::kDirectory) {
      remove_tree(file_system, child);
    } else if (const int status = file_system.remove_file(child); status < 0) {
      throw write_error("cannot delete", child, -status);
    }
  }
  if (const int status = file_system.remove_directory(path); status < 0) {
    throw write_error("cannot delete the folder", path, -status);
  }
}

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace flashshard::checkpoint
