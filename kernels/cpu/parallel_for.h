// How loops are handed to threads: the caller brings the threads.
#pragma once

#include <cstdint>
#include <functional>

namespace flashshard {

/// Calls the body on disjoint ranges [begin, end) that together cover [0, count), possibly at the
/// same time, and returns when all are done. The ranges are the callee's choice; a body whose
/// results depend on them is wrong.
using ParallelFor =
    std::function<void(int64_t count, const std::function<void(int64_t begin, int64_t end)>& body)>;

}  // namespace flashshard
