// The name of this machine, as lock, status and event files carry it.
#pragma once

#include <string>

namespace flashshard::metrics {

/// gethostname(2); "unknown-host" where the machine has no name.
std::string host_name();

}  // namespace flashshard::metrics
