// What the number of a failed system call means for a person; the three places that touch files
// (data, checkpoints, metrics) word their own hints.
#pragma once

#include <cerrno>
#include <string>
#include <system_error>

namespace flashshard {

inline std::string reason_of(int error_number) {
  return std::generic_category().message(error_number);
}

/// The disk, the quota or the file size limit is reached: ExitCode::kOutOfSpace.
inline bool is_out_of_space(int error_number) {
  return error_number == ENOSPC || error_number == EDQUOT || error_number == EFBIG;
}

/// This user may not: ExitCode::kUsage.
inline bool is_permission(int error_number) {
  return error_number == EACCES || error_number == EPERM || error_number == EROFS;
}

}  // namespace flashshard
