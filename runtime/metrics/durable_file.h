// Files that stay readable whatever happens to the process that writes them: a file is either
// replaced as a whole or grows by whole records.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "kernels/error.h"

namespace flashshard::metrics {

/// The error of a system call that failed on `path`: "cannot `action`: `reason` (`path`)".
/// A full disk, a quota and a file size limit are kOutOfSpace; anything else is kUsage.
Error file_error(std::string_view action, const std::filesystem::path& path, int error_number);

/// The whole file. Throws file_error.
std::string read_file(const std::filesystem::path& path);

enum class Durability {
  kAtomic,  // readers see the old file or the new one, also after the writer was killed
  kSynced,  // the same after a power failure
};

/// Replaces `path` by `contents`: a temporary file beside it is written and renamed. On error the
/// old file stands and the temporary one is gone. One writer per path at a time. Throws file_error.
void replace_file(const std::filesystem::path& path, std::string_view contents,
                  Durability durability);

/// A file that only grows, one write(2) a record, so a reader never sees half of one while the
/// writer lives.
class AppendFile {
 public:
  enum class Opening {
    kAppend,     // created when missing
    kExclusive,  // must not exist; throws file_error(EEXIST)
  };
  /// Throws file_error.
  explicit AppendFile(const std::filesystem::path& path, Opening opening = Opening::kAppend);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  /// Appends all of `record` or nothing: a write cut short by a full disk is taken back. Throws
  /// file_error.
  void append(std::string_view record);

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
};

}  // namespace flashshard::metrics
