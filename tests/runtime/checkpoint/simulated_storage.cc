#include "tests/runtime/checkpoint/simulated_storage.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

namespace flashshard::checkpoint::test {
namespace {

bool is_empty(const Disk::Node& folder) {
  return std::ranges::all_of(folder.entries,
                             [](const auto& entry) { return entry.second.current() == kNoNode; });
}

/// A path without the root's slash: its parts, by "/".
std::string_view first_part(std::string_view& rest) {
  while (rest.starts_with('/')) rest.remove_prefix(1);
  const std::string_view part = rest.substr(0, rest.find('/'));
  rest.remove_prefix(part.size());
  return part;
}

}  // namespace

Disk::Disk() { nodes_[kRootNode].is_folder = true; }

NodeId Disk::add_node(Node node) {
  const NodeId id = last_node() + 1;
  nodes_.emplace(id, std::move(node));
  return id;
}

NodeId Disk::child(NodeId folder, const std::string& name) const {
  const Node& parent = nodes_.at(folder);
  const auto entry = parent.entries.find(name);
  return entry == parent.entries.end() ? kNoNode : entry->second.current();
}

NodeId Disk::find(const std::string& path) const {
  NodeId at = kRootNode;
  for (std::string_view rest = path;;) {
    const std::string_view part = first_part(rest);
    if (part.empty()) return at;
    if (!nodes_.at(at).is_folder) return kNoNode;
    at = child(at, std::string(part));
    if (at == kNoNode) return kNoNode;
  }
}

void Disk::change(const Operation& operation, NodeId folder, const std::string& name, NodeId to) {
  nodes_.at(folder).entries[name].pending.push_back({operation.host, to});
}

void Disk::apply(const Operation& operation) {
  switch (operation.kind) {
    case Operation::Kind::kCreate:
    case Operation::Kind::kMakeDirectory: {
      Node& made = nodes_[operation.node];
      made.is_folder = operation.kind == Operation::Kind::kMakeDirectory;
      made.writer = operation.host;
      change(operation, operation.folder, operation.name, operation.node);
      break;
    }
    case Operation::Kind::kWrite:
      nodes_.at(operation.node).current += operation.bytes;
      break;
    case Operation::Kind::kSync: {
      Node& file = nodes_.at(operation.node);
      if (file.writer == operation.host) file.durable = file.current;
      break;
    }
    case Operation::Kind::kSyncDirectory:
      for (auto& [name, entry] : nodes_.at(operation.node).entries) {
        const auto mine = [&](const Change& change) { return change.host == operation.host; };
        const auto last = std::find_if(entry.pending.rbegin(), entry.pending.rend(), mine);
        if (last == entry.pending.rend()) continue;
        entry.durable = last->node;
        std::erase_if(entry.pending, mine);
      }
      break;
    case Operation::Kind::kRemove:
      change(operation, operation.folder, operation.name, kNoNode);
      break;
    case Operation::Kind::kRename:
      change(operation, operation.folder, operation.name, kNoNode);
      change(operation, operation.to_folder, operation.to_name, operation.node);
      break;
    case Operation::Kind::kReport:
      break;
  }
}

void SimulatedStorage::report(int64_t step, int rank, int phase) {
  const std::lock_guard lock(mutex_);
  Operation operation;
  operation.rank = rank;
  operation.phase = phase;
  operation.step = step;
  log_.push_back(std::move(operation));
}

void HostFileSystem::record(Operation operation) {
  operation.host = host_;
  operation.rank = rank_;
  operation.phase = phase;
  storage_.disk_.apply(operation);
  storage_.log_.push_back(std::move(operation));
}

int HostFileSystem::make(Operation::Kind kind, const std::string& path) {
  const Disk& disk = storage_.disk_;
  const NodeId folder = disk.find(parent_of_path(path));
  if (folder == kNoNode) return -ENOENT;
  if (!disk.node(folder).is_folder) return -ENOTDIR;
  Operation operation;
  operation.kind = kind;
  operation.folder = folder;
  operation.name = name_of_path(path);
  operation.path = path;
  if (disk.child(folder, operation.name) != kNoNode) return -EEXIST;
  operation.node = ++storage_.last_node_;
  record(std::move(operation));
  return storage_.last_node_;
}

int HostFileSystem::create(const std::string& path) {
  const std::lock_guard lock(storage_.mutex_);
  const NodeId node = make(Operation::Kind::kCreate, path);
  if (node < 0) return node;
  storage_.files_[++storage_.last_file_] = {node, true};
  return storage_.last_file_;
}

int HostFileSystem::make_directory(const std::string& path) {
  const std::lock_guard lock(storage_.mutex_);
  return std::min(0, make(Operation::Kind::kMakeDirectory, path));
}

int HostFileSystem::open(const std::string& path) {
  const std::lock_guard lock(storage_.mutex_);
  const NodeId node = storage_.disk_.find(path);
  if (node == kNoNode) return -ENOENT;
  storage_.files_[++storage_.last_file_] = {node, false};
  return storage_.last_file_;
}

int HostFileSystem::close(int file) {
  const std::lock_guard lock(storage_.mutex_);
  return storage_.files_.erase(file) == 1 ? 0 : -EBADF;
}

int64_t HostFileSystem::write(int file, std::span<const std::byte> bytes) {
  const std::lock_guard lock(storage_.mutex_);
  const auto open = storage_.files_.find(file);
  if (open == storage_.files_.end() || !open->second.is_written) return -EBADF;
  Operation operation;
  operation.kind = Operation::Kind::kWrite;
  operation.node = open->second.node;
  operation.bytes.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  record(std::move(operation));
  return static_cast<int64_t>(bytes.size());
}

int64_t HostFileSystem::read(int file, uint64_t offset, std::span<std::byte> bytes) {
  const std::lock_guard lock(storage_.mutex_);
  const auto open = storage_.files_.find(file);
  if (open == storage_.files_.end()) return -EBADF;
  const std::string& content = storage_.disk_.node(open->second.node).current;
  if (offset >= content.size()) return 0;
  const size_t count = std::min<size_t>(bytes.size(), content.size() - offset);
  if (count > 0) std::memcpy(bytes.data(), content.data() + offset, count);
  return static_cast<int64_t>(count);
}

int64_t HostFileSystem::size(int file) {
  const std::lock_guard lock(storage_.mutex_);
  const auto open = storage_.files_.find(file);
  if (open == storage_.files_.end()) return -EBADF;
  const Disk::Node& node = storage_.disk_.node(open->second.node);
  return node.is_folder ? -EINVAL : static_cast<int64_t>(node.current.size());
}

int HostFileSystem::sync(int file) {
  const std::lock_guard lock(storage_.mutex_);
  const auto open = storage_.files_.find(file);
  if (open == storage_.files_.end()) return -EBADF;
  Operation operation;
  operation.kind = Operation::Kind::kSync;
  operation.node = open->second.node;
  // The name that it was made under, for people.
  for (const Operation& earlier : storage_.log_) {
    if (earlier.kind == Operation::Kind::kCreate && earlier.node == operation.node) {
      operation.path = earlier.path;
    }
  }
  record(std::move(operation));
  return 0;
}

int HostFileSystem::sync_directory(const std::string& path) {
  const std::lock_guard lock(storage_.mutex_);
  Operation operation;
  operation.kind = Operation::Kind::kSyncDirectory;
  operation.node = storage_.disk_.find(path);
  operation.path = path;
  if (operation.node == kNoNode) return -ENOENT;
  if (!storage_.disk_.node(operation.node).is_folder) return -ENOTDIR;
  record(std::move(operation));
  return 0;
}

int HostFileSystem::remove(const std::string& path, bool is_folder) {
  const std::lock_guard lock(storage_.mutex_);
  const Disk& disk = storage_.disk_;
  Operation operation;
  operation.kind = Operation::Kind::kRemove;
  operation.node = disk.find(path);
  if (operation.node == kNoNode) return -ENOENT;
  if (disk.node(operation.node).is_folder != is_folder) return is_folder ? -ENOTDIR : -EISDIR;
  if (is_folder && !is_empty(disk.node(operation.node))) return -ENOTEMPTY;
  operation.folder = disk.find(parent_of_path(path));
  operation.name = name_of_path(path);
  operation.path = path;
  record(std::move(operation));
  return 0;
}

int HostFileSystem::remove_file(const std::string& path) { return remove(path, false); }
int HostFileSystem::remove_directory(const std::string& path) { return remove(path, true); }

/// 0, or the error of a rename onto what is there.
int HostFileSystem::why_not_replace(NodeId source, NodeId target) const {
  if (target == kNoNode) return 0;
  const Disk& disk = storage_.disk_;
  if (!disk.node(target).is_folder) return disk.node(source).is_folder ? -ENOTDIR : 0;
  if (!disk.node(source).is_folder) return -EISDIR;
  return is_empty(disk.node(target)) ? 0 : -ENOTEMPTY;
}

int HostFileSystem::rename(const std::string& from, const std::string& to) {
  const std::lock_guard lock(storage_.mutex_);
  const Disk& disk = storage_.disk_;
  Operation operation;
  operation.kind = Operation::Kind::kRename;
  operation.node = disk.find(from);
  operation.folder = disk.find(parent_of_path(from));
  operation.name = name_of_path(from);
  operation.to_folder = disk.find(parent_of_path(to));
  operation.to_name = name_of_path(to);
  operation.path = from;
  if (operation.node == kNoNode || operation.to_folder == kNoNode) return -ENOENT;
  const NodeId target = disk.child(operation.to_folder, operation.to_name);
  if (const int error = why_not_replace(operation.node, target); error < 0) return error;
  record(std::move(operation));
  return 0;
}

int HostFileSystem::list(const std::string& path, std::vector<std::string>& names) {
  const std::lock_guard lock(storage_.mutex_);
  const NodeId folder = storage_.disk_.find(path);
  if (folder == kNoNode) return -ENOENT;
  if (!storage_.disk_.node(folder).is_folder) return -ENOTDIR;
  for (const auto& [name, entry] : storage_.disk_.node(folder).entries) {
    if (entry.current() != kNoNode) names.push_back(name);
  }
  return 0;
}

int HostFileSystem::kind(const std::string& path, PathKind& kind) {
  const std::lock_guard lock(storage_.mutex_);
  const NodeId node = storage_.disk_.find(path);
  kind = node == kNoNode                       ? PathKind::kMissing
         : storage_.disk_.node(node).is_folder ? PathKind::kDirectory
                                               : PathKind::kFile;
  return 0;
}

}  // namespace flashshard::checkpoint::test
