#include "runtime/agreement.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <new>

namespace flashshard {
namespace {

struct Vote {
  int64_t code = 0;  // 0: all is well
  int64_t text_bytes = 0;
};

}  // namespace

std::optional<Failure> outcome_of(const std::function<void()>& work) {
  try {
    work();
    return std::nullopt;
  } catch (const CommunicationError&) {
    throw;
  } catch (const Error& error) {
    return Failure{error.code(), error.what()};
  } catch (const std::bad_alloc&) {
    return Failure{ExitCode::kOutOfSpace, "out of memory"};
  } catch (const std::exception& error) {
    return Failure{ExitCode::kInternal, error.what()};
  }
}

void agree(Communicator& communicator, const std::optional<Failure>& mine,
           std::string_view prefix) {
  std::vector<Vote> votes(static_cast<size_t>(communicator.world_size()));
  Vote& own = votes[static_cast<size_t>(communicator.rank())];
  if (mine) {
    own = {static_cast<int64_t>(mine->code), static_cast<int64_t>(mine->text.size())};
  }
  gather_plain(communicator, "waiting for the votes of all ranks", std::span(votes));
  const auto failed = [](const Vote& vote) { return vote.code != 0; };
  const auto first = std::ranges::find_if(votes, failed);
  if (first == votes.end()) return;

  const int rank = static_cast<int>(first - votes.begin());
  std::string text(static_cast<size_t>(first->text_bytes), '\0');
  if (rank == communicator.rank()) text = mine->text;
  communicator.broadcast(std::as_writable_bytes(std::span(text)), rank)
      .wait("waiting for the reason of a failure");
  const auto failures = static_cast<size_t>(std::ranges::count_if(votes, failed));
  if (failures < votes.size()) {
    text = fmt::format("rank {} of {} on {}{}: {}", rank, votes.size(), communicator.host(rank),
                       failures > 1 ? fmt::format(" (and {} more)", failures - 1) : "", text);
  }
  if (!prefix.empty()) text = fmt::format("{}: {}", prefix, text);
  throw AgreedError(static_cast<ExitCode>(first->code), text);
}

void run_and_agree(Communicator& communicator, const std::function<void()>& work) {
  agree(communicator, outcome_of(work));
}

std::string broadcast_text(Communicator& communicator, std::string_view what, std::string text) {
  auto size = static_cast<int64_t>(text.size());
  communicator.broadcast(std::as_writable_bytes(std::span(&size, 1)), 0).wait(what);
  text.resize(static_cast<size_t>(size));
  if (size > 0) communicator.broadcast(std::as_writable_bytes(std::span(text)), 0).wait(what);
  return text;
}

}  // namespace flashshard
