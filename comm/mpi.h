// Ranks as MPI processes (Open MPI 4.1 or any MPI-3.1). Every verb is made of non-blocking
// point-to-point messages, so that each wait can stop at its deadline, receives can be withdrawn,
// and sizes and calls are checked message by message.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>

#include "comm/communicator.h"

namespace flashshard {

struct MpiOptions {
  std::chrono::duration<double> deadline{
      600.0};  // of MPI_Init, of connecting, and of waits until set_deadline
  std::chrono::duration<double> roll_call_grace{
      2.0};  // how long a rank may take to say that it is there
  size_t message_limit = size_t{1}
                         << 24;  // bytes; a longer one is sent in pieces (MPI counts are ints)
};

/// MPI_Init_thread at construction, MPI_Finalize at destruction; both end the process with code 6
/// when they miss the deadline. Finalize is left out after a failed communication and while an
/// exception is in flight: it would wait for ranks that are gone. At most one per process.
class MpiEnvironment {
 public:
  explicit MpiEnvironment(std::chrono::duration<double> deadline);
  ~MpiEnvironment();
  MpiEnvironment(const MpiEnvironment&) = delete;
  MpiEnvironment& operator=(const MpiEnvironment&) = delete;

  void mark_failed() { failed_ = true; }

 private:
  std::chrono::duration<double> deadline_;
  bool failed_ = false;
};

/// All ranks of the job, on a duplicate of MPI_COMM_WORLD; called by every rank. One thread at a
/// time may use it. The communicator keeps the environment alive. Throws CommunicationError, and is
/// unusable after it has thrown one once.
std::unique_ptr<Communicator> make_mpi_communicator(std::shared_ptr<MpiEnvironment> environment,
                                                    const MpiOptions& options);

}  // namespace flashshard
