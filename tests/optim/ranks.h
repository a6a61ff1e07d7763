// In-process ranks for tests of everything above comm: one thread each.
#pragma once

#include <exception>
#include <functional>
#include <thread>
#include <vector>

#include "comm/threads.h"

namespace flashshard::test {

/// Runs `body(communicator)` on every rank and rethrows the lowest rank's exception. A rank that
/// throws aborts the others.
inline void run_ranks(int world_size, const std::function<void(Communicator&)>& body) {
  auto communicators = make_thread_communicators(world_size);
  std::vector<std::exception_ptr> errors(static_cast<size_t>(world_size));
  std::vector<std::thread> threads;
  for (int r = 0; r < world_size; ++r) {
    threads.emplace_back([&, r] {
      const auto i = static_cast<size_t>(r);
      communicators[i]->set_deadline(std::chrono::seconds(30));
      try {
        body(*communicators[i]);
      } catch (...) {
        errors[i] = std::current_exception();
        communicators[i]->abort(ExitCode::kInternal);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (auto& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace flashshard::test
