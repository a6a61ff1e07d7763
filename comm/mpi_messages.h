// Inside of the MPI transport: non-blocking messages in flight, checked one by one.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

namespace flashshard {

/// Throws CommunicationError with MPI's own words when `code` is not MPI_SUCCESS.
void check_mpi(int code, std::string_view where);

/// Messages of one call. What is unfinished at destruction is withdrawn as far as MPI can.
class MpiMessages {
 public:
  struct Route {
    MPI_Comm comm = MPI_COMM_NULL;
    int tag = 0;
    size_t message_limit = 0;         // bytes, at most INT_MAX
    std::span<const int> ranks = {};  // in `comm`, by peer; they name peers in errors too
  };

  explicit MpiMessages(const Route& route) : route_(route) {}
  ~MpiMessages();
  MpiMessages(const MpiMessages&) = delete;
  MpiMessages& operator=(const MpiMessages&) = delete;

  // More bytes than the limit go in pieces; none at all go too: an empty message says that its
  // sender has arrived.
  void send(int peer, const std::byte* data, size_t bytes);
  void receive(int peer, std::byte* data, size_t bytes);
  /// Takes over a request that MPI gave for something else than a message.
  void adopt(MPI_Request request);

  /// Makes progress; true when nothing is in flight. Throws CommunicationError on an MPI error or a
  /// size that does not fit.
  bool advance();
  size_t in_flight() const { return in_flight_; }
  /// Whether every byte of `peer` has come.
  bool received_from(int peer) const;
  /// Ranks whose bytes have not come or, where all have, ranks that have not taken ours; ascending.
  std::vector<int> awaited() const;

 private:
  struct Message {
    int peer = -1;  // -1: adopted
    int bytes = 0;
    bool is_receive = false;
  };

  int rank_of(int peer) const { return route_.ranks[static_cast<size_t>(peer)]; }
  void track(const Message& message, MPI_Request request);
  void check(const Message& message, const MPI_Status& status) const;
  std::vector<int> unfinished_peers(bool receives) const;

  Route route_;
  std::vector<MPI_Request> requests_;
  std::vector<Message> messages_;  // messages_[i] goes with requests_[i]
  std::vector<int> finished_;      // indices, written by MPI_Testsome
  std::vector<MPI_Status> statuses_;
  size_t in_flight_ = 0;
};

}  // namespace flashshard
