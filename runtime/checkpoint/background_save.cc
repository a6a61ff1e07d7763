#include "runtime/checkpoint/background_save.h"

#include <fmt/format.h>

#include <algorithm>
#include <new>
#include <system_error>
#include <utility>

#include "comm/blocked_signals.h"
#include "comm/exit_timer.h"

namespace flashshard::checkpoint {
namespace {

constexpr std::chrono::duration<double> kShortPatience{1};

Error silent_storage(const std::string& path, std::chrono::duration<double> deadline) {
  return {ExitCode::kCommunication,
          fmt::format("the storage has taken nothing of a checkpoint for {:g} seconds",
                      deadline.count()),
          path, "check the disk or its server; run.deadline_seconds allows for a slow one"};
}

}  // namespace

BackgroundSave::BackgroundSave(Communicator& communicator, Source source)
    : communicator_(communicator),
      source_(std::move(source)),
      rows_(schema_of(source_.layout, source_.views), source_.shard, source_.views,
            source_.staging),
      patience_(source_.deadline) {}

BackgroundSave::~BackgroundSave() {
  if (!thread_.joinable()) return;
  saving_->give_up();
  // A system call that does not return would keep the process from ending.
  const Error stuck = silent_storage(saving_->result().path, source_.deadline);
  const Failure told = leaving_with_ ? *leaving_with_ : Failure{stuck.code(), stuck.what()};
  const ExitTimer timer(patience_, told.code, fmt::format("error: {}", told.text));
  thread_.join();
}

void BackgroundSave::begin(SaveRequest request) {
  request.layout = &source_.layout;
  request.shard = source_.shard;
  request.views = source_.views;
  saving_.emplace(request, communicator_);
  try {
    saving_->work();
    saving_->settle();
  } catch (...) {
    saving_.reset();
    throw;
  }
  saving_->write_from(
      [this](const ShardEntry& entry, RowRange rows) {
        {
          const std::lock_guard lock(mutex_);
          ++pieces_asked_for_;
        }
        return rows_.next(entry, rows);
      },
      rows_.piece_bytes());
  rows_.begin();
  start_work();
}

void BackgroundSave::start_work() {
  const auto work = [this] {
    try {
      rows_.copy_ahead();  // before the first byte is written: storage may be slow
    } catch (const std::bad_alloc&) {
      // Copying goes on piece by piece inside work(), which tells of it.
    }
    saving_->work();
    rows_.end();
    {
      const std::lock_guard lock(mutex_);
      at_rest_ = true;
    }
    changed_.notify_all();
  };
  at_rest_ = false;
  const BlockedSignals blocked;
  try {
    thread_ = std::thread(work);
  } catch (const std::system_error&) {
    work();  // no more threads: this part is waited for
  }
}

void BackgroundSave::wait_until_copied(int tensor, RowRange rows) {
  if (!rows_.wait_until_copied(tensor, rows, source_.deadline)) give_up_on_storage();
}

void BackgroundSave::leave_with(ExitCode code, std::string_view message) {
  if (!leaving_with_) leaving_with_ = Failure{code, std::string(message)};
  patience_ = std::min(patience_, kShortPatience);
}

void BackgroundSave::give_up_on_storage() {
  patience_ = std::min(patience_, kShortPatience);
  throw silent_storage(saving_->result().path, source_.deadline);
}

BackgroundSave::Progress BackgroundSave::progress() const {
  const std::lock_guard lock(mutex_);
  if (!at_rest_) return Progress::kWorking;
  return saving_ && saving_->failed() ? Progress::kFailed : Progress::kAtRest;
}

void BackgroundSave::wait_for_rest() {
  std::unique_lock lock(mutex_);
  const auto at_rest = [this] { return at_rest_; };
  using Clock = std::chrono::steady_clock;
  constexpr int kLooks = 8;  // a deadline; with fewer the last piece would begin another one
  auto since = Clock::now();
  uint64_t before = pieces_asked_for_;
  while (!changed_.wait_for(lock, source_.deadline / kLooks, at_rest)) {
    if (std::exchange(before, pieces_asked_for_) != pieces_asked_for_) {
      since = Clock::now();
    } else if (Clock::now() - since > source_.deadline) {
      give_up_on_storage();
    }
  }
  lock.unlock();
  if (thread_.joinable()) thread_.join();
}

std::optional<SaveResult> BackgroundSave::advance(bool some_rank_failed) {
  if (some_rank_failed && progress() != Progress::kFailed) saving_->give_up();
  wait_for_rest();
  try {
    if (saving_->settle()) {
      start_work();
      return std::nullopt;
    }
  } catch (...) {
    saving_.reset();
    throw;
  }
  SaveResult result = saving_->result();
  saving_.reset();
  return result;
}

SaveResult BackgroundSave::finish() {
  for (;;) {
    if (auto result = advance(false)) return *std::move(result);
  }
}

}  // namespace flashshard::checkpoint
