// Processors, cores and memory nodes out of made-up /sys and /proc trees, and the limits of control
// groups of both versions.
#include "kernels/cpu/cpu_topology.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <thread>

namespace flashshard::cpu {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Optional;

namespace fs = std::filesystem;

/// Files of a machine, removed at the end.
class Machine {
 public:
  Machine() {
    std::string pattern = (fs::temp_directory_path() / "flashshard-machine-XXXXXX").string();
    root_ = ::mkdtemp(pattern.data());
  }
  ~Machine() {
    std::error_code ignored;
    fs::remove_all(root_, ignored);
  }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  fs::path sys() const { return root_ / "sys"; }
  fs::path proc() const { return root_ / "proc"; }
  Machine& file(const fs::path& path, const std::string& content) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << content << "\n";
    return *this;
  }
  Machine& siblings(int processor, const std::string& list) {
    return file(
        "sys/devices/system/cpu/cpu" + std::to_string(processor) + "/topology/thread_siblings_list",
        list);
  }
  Machine& node(int number, const std::string& list) {
    return file("sys/devices/system/node/node" + std::to_string(number) + "/cpulist", list);
  }
  std::optional<double> quota() const { return read_processor_quota(proc(), sys()); }

 private:
  fs::path root_;
};

TEST(ProcessorLists, AreReadAndWrittenAsTheKernelDoes) {
  EXPECT_THAT(parse_processor_list("0-3,8"), Optional(ElementsAre(0, 1, 2, 3, 8)));
  EXPECT_THAT(parse_processor_list("5"), Optional(ElementsAre(5)));
  EXPECT_THAT(parse_processor_list("4,1-2,2"), Optional(ElementsAre(1, 2, 4)));
  EXPECT_THAT(parse_processor_list(""), Optional(IsEmpty()));
  for (const char* wrong : {"a", "3-1", "1-", "-1", "1,,2", "1 2", "0-99999999", "1-2-3"}) {
    EXPECT_EQ(parse_processor_list(wrong), std::nullopt) << wrong;
  }
  for (const char* text : {"0", "0-1", "0-3,8", "1,3,5-6"}) {
    EXPECT_EQ(processor_list_text(parse_processor_list(text).value()), text);
  }
  EXPECT_EQ(processor_list_text({}), "none");
}

/// Two nodes of two cores of two threads, numbered as Linux does on most servers: first threads
/// first, nodes in turn.
class Server : public testing::Test {
 protected:
  Server() {
    for (int core = 0; core < 4; ++core) {
      const std::string list = std::to_string(core) + "," + std::to_string(core + 4);
      machine_.siblings(core, list).siblings(core + 4, list);
    }
    machine_.node(0, "0,2,4,6").node(1, "1,3,5,7");
  }
  Machine machine_;
};

TEST_F(Server, HasCoresInOrderOfTheirNodes) {
  EXPECT_THAT(read_cores({0, 1, 2, 3, 4, 5, 6, 7}, machine_.sys()),
              ElementsAre(Core{0, {0, 4}}, Core{0, {2, 6}}, Core{1, {1, 5}}, Core{1, {3, 7}}));
}

TEST_F(Server, ShowsOfItsCoresWhatIsAllowed) {
  EXPECT_THAT(read_cores({1, 4, 5, 6}, machine_.sys()),
              ElementsAre(Core{0, {4}}, Core{0, {6}}, Core{1, {1, 5}}));
}

TEST(Cores, ThatSysfsDoesNotDescribeHaveOneThreadAndOneNode) {
  Machine machine;
  EXPECT_THAT(read_cores({0, 3}, machine.sys()), ElementsAre(Core{0, {0}}, Core{0, {3}}));
  machine.siblings(0, "nonsense").node(1, "x").file("sys/devices/system/node/nodes/cpulist", "0");
  EXPECT_THAT(read_cores({0, 3}, machine.sys()), ElementsAre(Core{0, {0}}, Core{0, {3}}));
}

TEST(Quota, IsTheSmallestOfAGroupAndThoseAboveIt) {
  Machine machine;
  EXPECT_EQ(machine.quota(), std::nullopt);
  machine.file("proc/self/cgroup", "0::/pod/job")
      .file("sys/fs/cgroup/pod/job/cpu.max", "max 100000");
  EXPECT_EQ(machine.quota(), std::nullopt);
  machine.file("sys/fs/cgroup/pod/cpu.max", "250000 100000");
  EXPECT_EQ(machine.quota(), 2.5);
  machine.file("sys/fs/cgroup/cpu.max", "400000 100000");
  EXPECT_EQ(machine.quota(), 2.5);
  machine.file("sys/fs/cgroup/pod/job/cpu.max", "50000 100000");
  EXPECT_EQ(machine.quota(), 0.5);
}

TEST(Quota, OfTheFirstVersionStandsUnderItsControllers) {
  Machine machine;
  machine.file("proc/self/cgroup", "5:memory:/box\n4:cpu,cpuacct:/box\n0::/")
      .file("sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "-1")
      .file("sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us", "100000");
  EXPECT_EQ(machine.quota(), std::nullopt);
  machine.file("sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "300000");
  EXPECT_EQ(machine.quota(), 3);
  // In a container the group's own path may not be there.
  machine.file("proc/self/cgroup", "4:cpu,cpuacct:/docker/1234")
      .file("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "150000")
      .file("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000");
  EXPECT_EQ(machine.quota(), 1.5);
}

TEST(Quota, ThatIsNoneIsIgnored) {
  Machine machine;
  machine.file("proc/self/cgroup", "nonsense\n1:\n3:cpuset:/\n0::/");
  for (const char* text : {"", "max", "x 100000", "100000 0", "-5 100000"}) {
    machine.file("sys/fs/cgroup/cpu.max", text);
    EXPECT_EQ(machine.quota(), std::nullopt) << text;
  }
}

TEST(Affinity, OfAThreadIsInheritedByThoseThatItStarts) {
  std::thread([] {
    const ProcessorList all = allowed_processors();
    ASSERT_FALSE(all.empty());
    EXPECT_TRUE(restrict_to({all.back()}));
    EXPECT_THAT(allowed_processors(), ElementsAre(all.back()));
    std::thread([&] { EXPECT_THAT(allowed_processors(), ElementsAre(all.back())); }).join();
    EXPECT_FALSE(restrict_to({}));
    EXPECT_FALSE(restrict_to({60000})) << "no machine has it";
    EXPECT_THAT(allowed_processors(), ElementsAre(all.back()));
  }).join();
}

}  // namespace
}  // namespace flashshard::cpu
