#include "runtime/checkpoint/agreement.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <new>
#include <vector>

namespace flashshard::checkpoint {
namespace {

struct Vote {
  int64_t code = 0;  // 0: all is well
  int64_t text_bytes = 0;
};

std::vector<Vote> gather_votes(Communicator& communicator, Vote mine) {
  std::vector<Vote> votes(static_cast<size_t>(communicator.world_size()));
  std::vector<ByteRange> ranges;
  for (size_t r = 0; r < votes.size(); ++r) ranges.push_back({r * sizeof(Vote), sizeof(Vote)});
  votes[static_cast<size_t>(communicator.rank())] = mine;
  communicator.all_gather(std::as_writable_bytes(std::span(votes)), ranges)
      .wait("waiting for the votes of all ranks on a checkpoint");
  return votes;
}

}  // namespace

std::optional<Failure> outcome_of(const std::function<void()>& work) {
  try {
    work();
    return std::nullopt;
  } catch (const Error& error) {
    return Failure{error.code(), error.what()};
  } catch (const std::bad_alloc&) {
    return Failure{ExitCode::kOutOfSpace, "out of memory"};
  } catch (const std::exception& error) {
    return Failure{ExitCode::kInternal, error.what()};
  }
}

void agree(Communicator& communicator, const std::optional<Failure>& mine, std::string_view what) {
  Vote vote;
  if (mine) {
    vote = {static_cast<int64_t>(mine->code), static_cast<int64_t>(mine->text.size())};
  }
  const std::vector<Vote> votes = gather_votes(communicator, vote);
  const auto failed = [](const Vote& v) { return v.code != 0; };
  const auto first = std::ranges::find_if(votes, failed);
  if (first == votes.end()) return;

  const int rank = static_cast<int>(first - votes.begin());
  std::string text(static_cast<size_t>(first->text_bytes), '\0');
  if (rank == communicator.rank()) text = mine->text;
  communicator.broadcast(std::as_writable_bytes(std::span(text)), rank)
      .wait("waiting for the reason why a checkpoint failed");
  const auto others = std::ranges::count_if(votes, failed) - 1;
  throw Error(static_cast<ExitCode>(first->code),
              fmt::format("{}: rank {} of {} on {}{}: {}", what, rank, votes.size(),
                          communicator.host(rank),
                          others > 0 ? fmt::format(" (and {} more)", others) : "", text));
}

}  // namespace flashshard::checkpoint
