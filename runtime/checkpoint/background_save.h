// Saving while training goes on (docs/checkpoints.md, "Asynchronous"): a thread of each rank copies
// its rows, writes them and makes them durable. Votes stay on the main thread, at step boundaries.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
#include <thread>
#include <vector>

#include "runtime/checkpoint/saving.h"
#include "runtime/checkpoint/staged_rows.h"

namespace flashshard::checkpoint {

class BackgroundSave {
 public:
  /// Saves `views` (ShardedState::shard_views) through `staging`; both must stay where they are, as
  /// must layout and communicator. `deadline`: how long storage may take nothing before a wait for
  /// it ends the run. Throws Error(kUsage): the staging has no room for a unit.
  struct Source {
    const ShardLayout& layout;
    int shard;  // of the layout, that the views are
    std::vector<ShardTensorView> views;
    std::span<std::byte> staging;
    std::chrono::duration<double> deadline;
  };
  BackgroundSave(Communicator& communicator, Source source);
  /// Gives up what is in flight; the folder of the attempt stays for the next start to clean up.
  ~BackgroundSave();
  BackgroundSave(const BackgroundSave&) = delete;
  BackgroundSave& operator=(const BackgroundSave&) = delete;

  /// Collective, between two steps and with nothing in flight. `request` without layout and views.
  /// Throws as save() does.
  void begin(SaveRequest request);
  bool in_flight() const { return saving_.has_value(); }

  /// Before these rows of this rank change: waits until they are copied. Throws
  /// Error(kCommunication) when storage takes nothing any more.
  void wait_until_copied(int tensor, RowRange rows);

  /// Where this rank's thread is. Ranks compare: kFailed on one calls for advance() on all,
  /// otherwise kAtRest on all does.
  enum class Progress : uint8_t { kWorking, kAtRest, kFailed };
  Progress progress() const;
  /// Collective, at a step boundary, for a save in flight: votes and lets the threads go on; the
  /// result once the checkpoint is safe. Throws as save() does; then nothing is in flight.
  std::optional<SaveResult> advance(bool some_rank_failed);
  /// Collective: waits for the end of what is in flight.
  SaveResult finish();

  /// This error ends the run: where the thread's storage does not return even now, the destructor
  /// ends the process with it.
  void leave_with(ExitCode code, std::string_view message);

 private:
  void start_work();
  void wait_for_rest();
  [[noreturn]] void give_up_on_storage();

  Communicator& communicator_;
  Source source_;
  StagedRows rows_;
  std::optional<Saving> saving_;
  std::chrono::duration<double> patience_;  // with a thread that was given up
  std::optional<Failure> leaving_with_;

  std::thread thread_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool at_rest_ = true;
  uint64_t pieces_asked_for_ = 0;
};

}  // namespace flashshard::checkpoint
