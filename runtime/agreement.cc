#include "runtime/agreement.h"

#include <fmt/format.h>

#include <array>
#include <cstring>
#include <exception>
#include <vector>

namespace flashshard {

std::string broadcast_text(Communicator& communicator, std::string_view what, std::string text,
                           int root) {
  int64_t size = static_cast<int64_t>(text.size());
  communicator.broadcast(std::as_writable_bytes(std::span(&size, 1)), root).wait(what);
  text.resize(static_cast<size_t>(size));
  if (size > 0) communicator.broadcast(std::as_writable_bytes(std::span(text)), root).wait(what);
  return text;
}

void run_and_agree(Communicator& communicator, std::string_view what,
                   const std::function<void()>& action) {
  ExitCode code = ExitCode::kDone;
  std::string message;
  try {
    action();
  } catch (const CommunicationError&) {
    throw;  // the others are not there to agree with
  } catch (const Error& error) {
    code = error.code();
    message = error.what();
  } catch (const std::bad_alloc&) {
    code = ExitCode::kOutOfSpace;
    message = "out of memory";
  } catch (const std::exception& error) {
    code = ExitCode::kInternal;
    message = error.what();
  }
  const bool failed = code != ExitCode::kDone;
  const int world = communicator.world_size();
  std::array<int64_t, 2> votes = {failed ? communicator.rank() : world, failed ? 1 : 0};
  communicator.all_reduce(std::span(votes).first(1), ReduceOp::kMin).wait(what);
  communicator.all_reduce(std::span(votes).last(1), ReduceOp::kSum).wait(what);
  const auto first_failed = static_cast<int>(votes[0]);
  if (first_failed == world) return;

  int64_t agreed_code = static_cast<int64_t>(code);
  communicator.broadcast(std::as_writable_bytes(std::span(&agreed_code, 1)), first_failed)
      .wait(what);
  message = broadcast_text(communicator, what, message, first_failed);
  if (votes[1] < world) {
    message =
        fmt::format("rank {} on {}: {}", first_failed, communicator.host(first_failed), message);
  }
  throw AgreedError(static_cast<ExitCode>(agreed_code), message);
}

}  // namespace flashshard
