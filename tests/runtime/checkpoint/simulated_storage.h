// A storage in memory, shared by several hosts that each have a cache of their own, for tests of
// what a crash or a power loss leaves. What POSIX promises and no more: a file's bytes survive once
// the host that wrote them has synced the file, a folder's entries once the host that changed them
// has synced the folder; whatever is not synced may survive or not, each by itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "runtime/checkpoint/file_system.h"

namespace flashshard::checkpoint::test {

/// A file or a folder, whatever its names.
using NodeId = int;
constexpr NodeId kNoNode = 0;
constexpr NodeId kRootNode = 1;

/// A change, or a sync, in the order in which it happened.
struct Operation {
  enum class Kind : uint8_t {
    kCreate,
    kMakeDirectory,
    kWrite,
    kSync,
    kSyncDirectory,
    kRemove,
    kRename,
    kReport,  // by the test: a rank was told that the checkpoint of `step` is saved
  };
  Kind kind = Kind::kReport;
  int host = 0;
  int rank = 0;
  int phase = 0;          // operations of two ranks in one phase may have happened in either order
  NodeId node = kNoNode;  // what is made, written, synced, removed or renamed
  NodeId folder = kNoNode;  // where its entry is
  std::string name;
  NodeId to_folder = kNoNode;  // of a rename
  std::string to_name;
  std::string bytes;  // written
  std::string path;
  int64_t step = 0;

  bool is_sync() const { return kind == Kind::kSync || kind == Kind::kSyncDirectory; }
};

/// What is on the disk, and what the hosts' caches hold above it.
class Disk {
 public:
  struct Change {
    int host = 0;
    NodeId node = kNoNode;  // kNoNode: the entry is removed
  };
  struct Entry {
    NodeId durable = kNoNode;
    std::vector<Change> pending;  // since, oldest first
    NodeId current() const { return pending.empty() ? durable : pending.back().node; }
  };
  struct Node {
    bool is_folder = false;
    int writer = 0;  // the host whose cache holds a file's bytes
    std::string durable;
    std::string current;
    std::map<std::string, Entry> entries;
  };

  Disk();
  void apply(const Operation& operation);

  NodeId find(const std::string& path) const;  // by the current entries; kNoNode when missing
  NodeId child(NodeId folder, const std::string& name) const;
  const Node& node(NodeId id) const { return nodes_.at(id); }
  Node& node(NodeId id) { return nodes_.at(id); }
  const std::map<NodeId, Node>& nodes() const { return nodes_; }
  NodeId last_node() const { return nodes_.rbegin()->first; }
  NodeId add_node(Node node);

 private:
  void change(const Operation& operation, NodeId folder, const std::string& name, NodeId to);

  std::map<NodeId, Node> nodes_;
};

/// The storage in use. Thread-safe.
class SimulatedStorage {
 public:
  explicit SimulatedStorage(Disk disk = {})
      : disk_(std::move(disk)), last_node_(disk_.last_node()) {}
  /// The storage as another has it now, with nothing open and nothing recorded.
  SimulatedStorage(const SimulatedStorage& other) : SimulatedStorage(other.disk_) {}
  SimulatedStorage& operator=(const SimulatedStorage&) = delete;

  const Disk& disk() const { return disk_; }
  const std::vector<Operation>& log() const { return log_; }
  void report(int64_t step, int rank, int phase);

 private:
  friend class HostFileSystem;
  struct OpenFile {
    NodeId node = kNoNode;
    bool is_written = false;
  };

  std::mutex mutex_;
  Disk disk_;
  NodeId last_node_;
  std::vector<Operation> log_;
  std::map<int, OpenFile> files_;
  int last_file_ = 2;
};

/// The storage as a rank on a host sees it.
class HostFileSystem final : public FileSystem {
 public:
  explicit HostFileSystem(SimulatedStorage& storage, int host = 0, int rank = 0)
      : storage_(storage), host_(host), rank_(rank) {}

  int phase = 0;  // of what comes next

  int create(const std::string& path) override;
  int open(const std::string& path) override;
  int close(int file) override;
  int64_t write(int file, std::span<const std::byte> bytes) override;
  int64_t read(int file, uint64_t offset, std::span<std::byte> bytes) override;
  int64_t size(int file) override;
  int sync(int file) override;
  int sync_directory(const std::string& path) override;
  int make_directory(const std::string& path) override;
  int remove_file(const std::string& path) override;
  int remove_directory(const std::string& path) override;
  int rename(const std::string& from, const std::string& to) override;
  int list(const std::string& path, std::vector<std::string>& names) override;
  int kind(const std::string& path, PathKind& kind) override;

 private:
  int make(Operation::Kind kind, const std::string& path);
  int remove(const std::string& path, bool is_folder);
  int why_not_replace(NodeId source, NodeId target) const;
  void record(Operation operation);

  SimulatedStorage& storage_;
  int host_;
  int rank_;
};

}  // namespace flashshard::checkpoint::test
