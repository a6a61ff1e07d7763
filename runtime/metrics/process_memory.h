// This process's memory as Linux sees it (proc(5)), the outside view beside the run's own memory
// table.
#pragma once

#include <cstdint>
#include <string_view>

namespace flashshard::metrics {

/// Bytes.
struct ProcessMemory {
  int64_t resident = 0;       // VmRSS
  int64_t peak_resident = 0;  // VmHWM
};

/// From /proc/self/status. Throws Error(kInternal) where the kernel does not tell.
ProcessMemory read_process_memory();
/// MemTotal of /proc/meminfo, bytes. Throws Error(kInternal).
int64_t read_system_memory();

/// The value of a line "`name`:   1234 kB" in the text of such a file, bytes; -1 without such a
/// line.
int64_t parse_kilobyte_field(std::string_view text, std::string_view name);

}  // namespace flashshard::metrics
