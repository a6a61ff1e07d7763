// POSIX does not promise a terminated string for a name that was cut, hence the spare byte.
#include "runtime/metrics/host_name.h"

#include <unistd.h>

#include <array>

namespace flashshard::metrics {

std::string host_name() {
  std::array<char, 256> name = {};
  if (::gethostname(name.data(), name.size() - 1) != 0 || name[0] == '\0') return "unknown-host";
  return name.data();
}

}  // namespace flashshard::metrics
