#include "launch/commands/ranks.h"

#include <cstdio>
#include <new>

#include "comm/connect.h"
#include "runtime/agreement.h"

namespace flashshard::launch {
namespace {

// A failure that the others do not know of: they wait for this rank and must be ended.
ExitCode fail_alone(Communicator& communicator, ExitCode code, const char* message) {
  if (communicator.world_size() == 1) {
    std::fprintf(stderr, "error: %s\n", message);
    return code;
  }
  std::fprintf(stderr, "error: rank %d: %s\n", communicator.rank(), message);
  std::fflush(nullptr);
  communicator.abort(code);
  return code;
}

}  // namespace

ExitCode run_ranks(std::chrono::duration<double> deadline,
                   const std::function<ExitCode(Communicator&)>& body) {
  const auto communicator = connect_ranks(deadline);
  try {
    return body(*communicator);
  } catch (const AgreedError& error) {
    if (communicator->rank() == 0) std::fprintf(stderr, "error: %s\n", error.what());
    return error.code();
  } catch (const Error& error) {
    return fail_alone(*communicator, error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return fail_alone(*communicator, ExitCode::kOutOfSpace, "out of memory");
  } catch (const std::exception& error) {
    return fail_alone(*communicator, ExitCode::kInternal, error.what());
  }
}

}  // namespace flashshard::launch
