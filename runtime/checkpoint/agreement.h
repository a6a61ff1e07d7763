// All ranks succeed or all fail, with the same words: how work that each rank does alone ends.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "comm/communicator.h"
#include "kernels/error.h"

namespace flashshard::checkpoint {

struct Failure {
  ExitCode code = ExitCode::kInternal;
  std::string text;
};

/// Runs work of this rank alone (no communication) and catches how it failed.
std::optional<Failure> outcome_of(const std::function<void()>& work);

/// Every rank brings its outcome. When one failed, all throw the same Error: the code and text of
/// the lowest failing rank, with its number and host. `what` begins the message: "the checkpoint of
/// step 200 was not saved".
void agree(Communicator& communicator, const std::optional<Failure>& mine, std::string_view what);

}  // namespace flashshard::checkpoint
