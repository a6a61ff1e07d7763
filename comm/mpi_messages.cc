#include "comm/mpi_messages.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>

#include "comm/communicator.h"

namespace flashshard {

namespace {

/// Calls `piece(offset, bytes)` for the pieces of a message; once with 0 bytes for an empty one.
template <class Piece>
void for_each_piece(size_t bytes, size_t limit, Piece piece) {
  size_t offset = 0;
  do {
    const size_t size = std::min(limit, bytes - offset);
    piece(offset, static_cast<int>(size));
    offset += size;
  } while (offset < bytes);
}

std::string words_of(int code) {
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  if (MPI_Error_string(code, text.data(), &length) != MPI_SUCCESS) return "unknown MPI error";
  return {text.data(), static_cast<size_t>(length)};
}

[[noreturn]] void refuse_size(int peer, int expected_bytes, std::string_view sent) {
  throw CommunicationError(
      fmt::format("the ranks' sizes do not match: rank {} sends {} where {} bytes are expected",
                  peer, sent, expected_bytes),
      "", "", {peer});
}

}  // namespace

void check_mpi(int code, std::string_view where) {
  if (code == MPI_SUCCESS) return;
  throw CommunicationError("MPI failed: " + words_of(code), std::string(where), "", {});
}

MpiMessages::~MpiMessages() {
  if (in_flight_ == 0) return;
  for (size_t i = 0; i < requests_.size(); ++i) {
    if (requests_[i] == MPI_REQUEST_NULL || messages_[i].peer < 0) continue;
    // A receive must not write into memory that its owner is about to free; MPI cannot withdraw a
    // send.
    if (messages_[i].is_receive) MPI_Cancel(&requests_[i]);
    MPI_Request_free(&requests_[i]);
  }
}

void MpiMessages::track(const Message& message, MPI_Request request) {
  messages_.push_back(message);
  requests_.push_back(request);
  ++in_flight_;
}

void MpiMessages::send(int peer, const std::byte* data, size_t bytes) {
  for_each_piece(bytes, route_.message_limit, [&](size_t offset, int size) {
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(
        MPI_Isend(data + offset, size, MPI_BYTE, rank_of(peer), route_.tag, route_.comm, &request),
        "MPI_Isend");
    track({peer, size, false}, request);
  });
}

void MpiMessages::receive(int peer, std::byte* data, size_t bytes) {
  for_each_piece(bytes, route_.message_limit, [&](size_t offset, int size) {
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(
        MPI_Irecv(data + offset, size, MPI_BYTE, rank_of(peer), route_.tag, route_.comm, &request),
        "MPI_Irecv");
    track({peer, size, true}, request);
  });
}

void MpiMessages::adopt(MPI_Request request) { track({}, request); }

bool MpiMessages::advance() {
  if (in_flight_ == 0) return true;
  finished_.resize(requests_.size());
  statuses_.resize(requests_.size());
  int count = 0;
  const int code = MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &count,
                                finished_.data(), statuses_.data());
  if (code != MPI_ERR_IN_STATUS) check_mpi(code, "MPI_Testsome");
  for (int i = 0; i < count; ++i) {
    const auto slot = static_cast<size_t>(i);
    const Message& message = messages_[static_cast<size_t>(finished_[slot])];
    --in_flight_;
    const int error = code == MPI_ERR_IN_STATUS ? statuses_[slot].MPI_ERROR : MPI_SUCCESS;
    if (error == MPI_ERR_TRUNCATE) refuse_size(rank_of(message.peer), message.bytes, "more");
    check_mpi(error, message.peer < 0 ? std::string("duplicate of a communicator")
                                      : fmt::format("message with rank {}", rank_of(message.peer)));
    if (message.is_receive) check(message, statuses_[slot]);
  }
  return in_flight_ == 0;
}

void MpiMessages::check(const Message& message, const MPI_Status& status) const {
  int received = 0;
  check_mpi(MPI_Get_count(&status, MPI_BYTE, &received), "MPI_Get_count");
  if (received != message.bytes)
    refuse_size(rank_of(message.peer), message.bytes, fmt::format("{} bytes", received));
}

bool MpiMessages::received_from(int peer) const {
  for (size_t i = 0; i < requests_.size(); ++i) {
    if (messages_[i].is_receive && messages_[i].peer == peer && requests_[i] != MPI_REQUEST_NULL) {
      return false;
    }
  }
  return true;
}

std::vector<int> MpiMessages::unfinished_peers(bool receives) const {
  std::vector<int> peers;
  for (size_t i = 0; i < requests_.size(); ++i) {
    if (requests_[i] != MPI_REQUEST_NULL && messages_[i].peer >= 0 &&
        messages_[i].is_receive == receives) {
      peers.push_back(messages_[i].peer);
    }
  }
  std::ranges::sort(peers);
  peers.erase(std::unique(peers.begin(), peers.end()), peers.end());
  return peers;
}

std::vector<int> MpiMessages::awaited() const {
  std::vector<int> peers = unfinished_peers(true);
  return peers.empty() ? unfinished_peers(false) : peers;
}

}  // namespace flashshard
