#include "runtime/checkpoint/folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <functional>
#include <random>

#include "runtime/checkpoint/manifest.h"
#include "runtime/system_error.h"

namespace flashshard::checkpoint {
namespace {

constexpr std::string_view kStepPrefix = "step-";
constexpr std::string_view kTemporaryMark = ".tmp-";
constexpr std::string_view kDeletingMark = ".deleting-";
constexpr size_t kAttemptDigits = 16;

bool is_attempt_id(std::string_view text) {
  return text.size() == kAttemptDigits && std::ranges::all_of(text, [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

/// True for names that only a save or a deletion that did not end leaves behind.
bool is_leftover(std::string_view name) {
  for (const std::string_view mark : {kTemporaryMark, kDeletingMark}) {
    const size_t at = name.find(mark);
    if (at == std::string_view::npos || !is_attempt_id(name.substr(at + mark.size()))) continue;
    const std::string_view stem = name.substr(0, at);
    return step_of_name(stem) || (stem == "latest" && mark == kTemporaryMark);
  }
  return false;
}

bool is_being_deleted(std::string_view name) {
  return name.find(kDeletingMark) != std::string_view::npos;
}

/// The folder and the run's folder above it may be new, made by this start or by one that was
/// killed: all that is saved would be lost with their names.
void make_name_durable(FileSystem& file_system, const std::string& checkpoints_folder) {
  const std::string run = parent_of_path(checkpoints_folder);
  for (const std::string& folder : {run, parent_of_path(run)}) {
    const int status = file_system.sync_directory(folder);
    // What may not be opened was made by somebody else, and so was a mount point in a file system
    // that has no fsync of folders (EINVAL). The checkpoints folder itself must have it.
    if (status < 0 && !is_permission(-status) && status != -EINVAL) {
      throw write_error("cannot make the folder durable", folder, -status);
    }
  }
}

struct Step {
  int64_t step = 0;
  std::string path;
  bool complete = false;
};

/// The folders of exact names, oldest first, of one listing: a run may be saving.
std::vector<Step> steps_in(const std::string& checkpoints_folder, FileSystem& file_system) {
  std::vector<Step> steps;
  if (kind_of(file_system, checkpoints_folder) == PathKind::kMissing) return steps;
  for (const std::string& name : list(file_system, checkpoints_folder)) {
    const auto step = step_of_name(name);
    const std::string path = join(checkpoints_folder, name);
    if (!step) continue;
    const bool complete = is_complete(path, file_system);
    // Not one that a run deleted since.
    if (!complete && kind_of(file_system, path) != PathKind::kDirectory) continue;
    steps.push_back({*step, path, complete});
  }
  std::ranges::sort(steps, {}, &Step::step);
  return steps;
}

}  // namespace

std::string step_name(int64_t step) { return fmt::format("{}{:08}", kStepPrefix, step); }

std::optional<int64_t> step_of_name(std::string_view name) {
  if (!name.starts_with(kStepPrefix)) return std::nullopt;
  const std::string_view digits = name.substr(kStepPrefix.size());
  int64_t step = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), step);
  if (error != std::errc() || step < 0 || step_name(step) != name) return std::nullopt;
  return step;
}

bool is_complete(const std::string& step_folder, FileSystem& file_system) {
  if (!step_of_name(name_of_path(step_folder))) return false;
  const std::string manifest = join(step_folder, kManifestFile);
  if (kind_of(file_system, manifest) != PathKind::kFile) return false;
  return manifest_frame_holds(read_file(file_system, manifest, kLargestManifest));
}

std::vector<CompleteCheckpoint> list_complete(const std::string& checkpoints_folder,
                                              FileSystem& file_system) {
  std::vector<CompleteCheckpoint> complete;
  for (const Step& step : steps_in(checkpoints_folder, file_system)) {
    if (step.complete) complete.push_back({step.step, step.path});
  }
  return complete;
}

std::optional<std::string> find_latest_complete(const std::string& checkpoints_folder,
                                                FileSystem& file_system) {
  const std::vector<Step> steps = steps_in(checkpoints_folder, file_system);
  if (steps.empty()) return std::nullopt;
  if (steps.back().complete) return steps.back().path;
  const std::string manifest = join(steps.back().path, kManifestFile);
  const bool missing = kind_of(file_system, manifest) == PathKind::kMissing;
  const auto behind = std::find_if(steps.rbegin(), steps.rend(), std::mem_fn(&Step::complete));
  throw Error(
      ExitCode::kCheckpoint,
      missing ? "the newest checkpoint has no manifest"
              : "the newest checkpoint's manifest is damaged, or of another version",
      manifest,
      behind == steps.rend()
          ? "restore it, or move the folder away"
          : fmt::format("restore it, or move the folder away to go back to step {}", behind->step));
}

std::string resolve(const std::string& argument, FileSystem& file_system) {
  if (kind_of(file_system, argument) == PathKind::kMissing) {
    throw Error(ExitCode::kUsage, "no such checkpoint", argument,
                "give a step folder, a checkpoints folder or a run's folder");
  }
  if (step_of_name(name_of_path(argument)) ||
      kind_of(file_system, join(argument, kManifestFile)) != PathKind::kMissing) {
    return argument;
  }
  const std::string inner = join(argument, "checkpoints");
  const bool is_run = kind_of(file_system, inner) != PathKind::kMissing;
  const auto latest = find_latest_complete(is_run ? inner : argument, file_system);
  if (!latest) {
    throw Error(ExitCode::kCheckpoint, "no complete checkpoint here", argument,
                "give a step folder, a checkpoints folder or a run's folder");
  }
  return *latest;
}

std::vector<std::string> clean_up(const std::string& checkpoints_folder, FileSystem& file_system) {
  std::vector<std::string> removed;
  if (kind_of(file_system, checkpoints_folder) == PathKind::kMissing) return removed;
  make_name_durable(file_system, checkpoints_folder);
  auto leftovers = list(file_system, checkpoints_folder);
  std::erase_if(leftovers, [](const std::string& name) { return !is_leftover(name); });
  if (std::ranges::any_of(leftovers, is_being_deleted)) {
    // Killed between the rename and its fsync, a deletion may leave the complete name on the disk:
    // it must not come back with half of its files gone.
    sync_folder(file_system, checkpoints_folder);
  }
  for (const std::string& name : leftovers) {
    const std::string path = join(checkpoints_folder, name);
    if (kind_of(file_system, path) == PathKind::kDirectory) {
      remove_tree(file_system, path);
    } else if (const int status = file_system.remove_file(path); status < 0) {
      throw write_error("cannot delete", path, -status);
    }
    removed.push_back(name);
  }
  return removed;
}

std::string make_attempt_id() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}", random(), random());
}

std::string make_attempt_id(Communicator& communicator) {
  std::string id(kAttemptDigits, '0');
  if (communicator.rank() == 0) id = make_attempt_id();
  communicator.broadcast(std::as_writable_bytes(std::span(id)), 0)
      .wait("waiting for rank 0 to begin a checkpoint");
  return id;
}

}  // namespace flashshard::checkpoint
