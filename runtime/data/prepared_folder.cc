#include "runtime/data/prepared_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <system_error>

#include "kernels/error.h"
#include "runtime/data/token_shard.h"
#include "runtime/data/tokenizer.h"

namespace flashshard::data {

namespace {

constexpr std::string_view kTemporarySuffix = ".tmp";

bool is_temporary(std::string_view name) { return name.ends_with(kTemporarySuffix); }

std::string_view without_temporary_suffix(std::string_view name) {
  if (is_temporary(name)) name.remove_suffix(kTemporarySuffix.size());
  return name;
}

// "train-" or "validation-", five digits, ".tokens".
bool is_shard_name(std::string_view name) {
  for (const Split split : {Split::kTrain, Split::kValidation}) {
    const std::string pattern = shard_file_name(split, 0);
    const size_t digits = std::string_view(split_name(split)).size() + 1;
    if (name.size() == pattern.size() && name.starts_with(pattern.substr(0, digits)) &&
        name.ends_with(pattern.substr(digits + 5)) &&
        std::all_of(name.begin() + digits, name.begin() + digits + 5,
                    [](char c) { return c >= '0' && c <= '9'; })) {
      return true;
    }
  }
  return false;
}

bool holds_shard(const std::filesystem::path& path) {
  std::array<char, 8> magic = {};
  std::ifstream(path, std::ios::binary).read(magic.data(), magic.size());
  return is_token_shard(std::as_bytes(std::span(magic)));
}

bool holds_manifest(const std::filesystem::path& path) {
  std::ifstream stream(path);
  const auto json = nlohmann::json::parse(stream, nullptr, /*allow_exceptions=*/false);
  return json.is_object() && json.value("format", nlohmann::json()) == "flashshard-dataset";
}

// A tokenizer's files carry no sign of ours; beside a shard or a dataset.json they are part of it.
bool lies_in_data_set(const std::filesystem::path& file) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(file.parent_path(), error)) {
    const std::string name = entry.path().filename().string();
    if (name == kManifestFileName && holds_manifest(entry.path())) return true;
    if (is_shard_name(without_temporary_suffix(name)) && holds_shard(entry.path())) return true;
  }
  return false;
}

// A name of ours is not enough: somebody's own train-00000.tokens or dataset.json must survive.
bool is_ours(const std::filesystem::directory_entry& entry) {
  const std::string name = entry.path().filename().string();
  const std::string_view final_name = without_temporary_suffix(name);
  std::error_code error;
  if (entry.is_symlink(error) || !entry.is_regular_file(error)) return false;
  if (final_name == kManifestFileName) return is_temporary(name) || holds_manifest(entry.path());
  if (is_tokenizer_file(final_name)) return is_temporary(name) || lies_in_data_set(entry.path());
  return is_shard_name(final_name) && (is_temporary(name) || holds_shard(entry.path()));
}

std::vector<std::filesystem::directory_entry> entries_of(const std::filesystem::path& folder,
                                                         std::error_code& error) {
  std::vector<std::filesystem::directory_entry> entries;
  std::filesystem::directory_iterator iterator(folder, error);
  while (!error && iterator != std::filesystem::directory_iterator()) {
    entries.push_back(*iterator);
    iterator.increment(error);
  }
  return entries;
}

std::vector<std::filesystem::directory_entry> entries_of(const std::filesystem::path& folder) {
  std::error_code error;
  auto entries = entries_of(folder, error);
  if (error) throw_write_error(error.value(), "list output folder", folder);
  return entries;
}

}  // namespace

PreparedFolder::PreparedFolder(const std::filesystem::path& path) : path_(path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) throw_write_error(error.value(), "create output folder", path);
  lock_ = FileDescriptor(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (lock_.get() < 0) throw_write_error(errno, "open output folder", path);
  // Network file systems without locks answer otherwise than EWOULDBLOCK; there the user sees to
  // it.
  if (::flock(lock_.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    throw Error(ExitCode::kUsage, "another `flashshard prepare` writes into this folder",
                path.string(), "wait for it to end, or choose another folder");
  }
  refuse_foreign_entries();
  remove_temporaries();
}

PreparedFolder::~PreparedFolder() { remove_temporaries(); }

void PreparedFolder::refuse_foreign_entries() const {
  for (const auto& entry : entries_of(path_)) {
    if (!is_ours(entry)) {
      throw Error(ExitCode::kUsage,
                  fmt::format("output folder holds `{}`, which is no part of a prepared data set",
                              entry.path().filename().string()),
                  path_.string(), "choose an empty folder");
    }
  }
}

std::filesystem::path PreparedFolder::temporary_shard(Split split, int64_t index) const {
  return path_ / (shard_file_name(split, index) + std::string(kTemporarySuffix));
}

void PreparedFolder::add_tokenizer_file(const std::filesystem::path& file,
                                        const std::string& name) {
  const MappedFile content(file);
  OutputFile copy(path_ / (name + std::string(kTemporarySuffix)));
  copy.append(content.bytes());
  copy.commit();
  tokenizer_files_.push_back(name);
}

void PreparedFolder::replace_tokenizer_files() const {
  for (const char* name : {kSentencePieceFile, kHuggingFaceFile, kHuggingFaceSettingsFile}) {
    const auto path = path_ / name;
    if (std::ranges::find(tokenizer_files_, name) == tokenizer_files_.end()) {
      remove_file(path);
    } else {
      rename_file(path.string() + std::string(kTemporarySuffix), path);
    }
  }
}

void PreparedFolder::publish(const DatasetManifest& manifest) {
  // From here to write_manifest the folder has no dataset.json, durably: a crash cannot mix two
  // data sets.
  remove_file(path_ / kManifestFileName);
  sync_folder(path_);
  for (const Split split : {Split::kTrain, Split::kValidation}) {
    const auto count = static_cast<int64_t>(manifest.shards(split).size());
    for (int64_t index = 0; index < count; ++index) {
      rename_file(temporary_shard(split, index), path_ / shard_file_name(split, index));
    }
    remove_shards_from(split, count);
  }
  replace_tokenizer_files();
  sync_folder(path_);
  write_manifest(path_, manifest);
}

void PreparedFolder::remove_shards_from(Split split, int64_t index) const {
  const std::string first = shard_file_name(split, index);
  for (const auto& entry : entries_of(path_)) {
    const std::string name = entry.path().filename().string();
    // Names of one split have one length, so they sort by index.
    if (name.size() == first.size() && name.starts_with(split_name(split)) && name >= first) {
      remove_file(entry.path());
    }
  }
}

void PreparedFolder::remove_temporaries() const noexcept {
  // What cannot be removed is recognised and removed by the next prepare.
  std::error_code ignored;
  for (const auto& entry : entries_of(path_, ignored)) {
    if (is_temporary(entry.path().filename().string()) && is_ours(entry)) {
      std::filesystem::remove(entry.path(), ignored);
    }
  }
}

}  // namespace flashshard::data
