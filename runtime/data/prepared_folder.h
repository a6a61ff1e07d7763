// The output folder of `prepare`: never overwrites what is not ours, and replaces an older data set
// only when the new one is complete.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "runtime/data/dataset_manifest.h"
#include "runtime/data/file.h"

namespace flashshard::data {

/// Locks a folder for writing a data set into it. New shards lie beside the old ones under
/// temporary names until `publish`; without it the destructor removes them and the folder is as it
/// was.
class PreparedFolder {
 public:
  /// Creates the folder if needed. Throws Error(kUsage) when it holds anything but a prepared or
  /// half-prepared data set, is no folder, cannot be written, or another process prepares into it.
  explicit PreparedFolder(const std::filesystem::path& path);
  ~PreparedFolder();
  PreparedFolder(const PreparedFolder&) = delete;
  PreparedFolder& operator=(const PreparedFolder&) = delete;

  /// Where the shard is written until `publish`.
  std::filesystem::path temporary_shard(Split split, int64_t index) const;
  /// Copies a tokenizer's file into the data set under this name. Throws like OutputFile and
  /// MappedFile.
  void add_tokenizer_file(const std::filesystem::path& file, const std::string& name);
  /// Puts the shards of the manifest in place of whatever was there, then writes the manifest. A
  /// crash on the way leaves a folder without dataset.json. Throws like OutputFile.
  void publish(const DatasetManifest& manifest);

 private:
  void refuse_foreign_entries() const;
  void replace_tokenizer_files() const;
  void remove_shards_from(Split split, int64_t index) const;
  void remove_temporaries() const noexcept;

  std::filesystem::path path_;
  FileDescriptor lock_;
  std::vector<std::string> tokenizer_files_;  // copied under temporary names
};

}  // namespace flashshard::data
