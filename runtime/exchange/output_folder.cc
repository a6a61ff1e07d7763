#include "runtime/exchange/output_folder.h"

#include <fmt/format.h>

#include "runtime/checkpoint/folder.h"

namespace flashshard::exchange {

using checkpoint::join;
using checkpoint::kind_of;
using checkpoint::name_of_path;
using checkpoint::parent_of_path;
using checkpoint::PathKind;

OutputFolder::OutputFolder(checkpoint::FileSystem& file_system, const std::string& path)
    : file_system_(file_system),
      final_(join(parent_of_path(path), name_of_path(path))),
      temporary_(fmt::format("{}.tmp-{}", final_, checkpoint::make_attempt_id())) {
  if (kind_of(file_system_, final_) != PathKind::kMissing) {
    throw Error(ExitCode::kUsage, "the output exists already", final_,
                "remove it, or choose another --output");
  }
  checkpoint::make_folders(file_system_, parent_of_path(final_));
  if (const int status = file_system_.make_directory(temporary_); status < 0) {
    throw checkpoint::write_error("cannot make the output folder", temporary_, -status);
  }
}

OutputFolder::~OutputFolder() {
  if (published_) return;
  try {
    if (kind_of(file_system_, temporary_) == PathKind::kDirectory) {
      checkpoint::remove_tree(file_system_, temporary_);
    }
  } catch (const std::exception&) {
    // The name says what it is.
  }
}

void OutputFolder::write_file(const std::string& name, const std::string& text) const {
  checkpoint::write_file(file_system_, join(temporary_, name), text);
}

void OutputFolder::publish() {
  checkpoint::sync_folder(file_system_, temporary_);
  checkpoint::rename(file_system_, temporary_, final_);
  published_ = true;
  checkpoint::sync_folder(file_system_, parent_of_path(final_));
}

}  // namespace flashshard::exchange
