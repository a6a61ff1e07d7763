// Uses a header and a function of every installed room.
#include <cstdio>
#include <string>

#include "comm/threads.h"
#include "kernels/backend.h"
#include "optim/shard_layout.h"
#include "runtime/config/run_config.h"

int main() {
  const auto backend = flashshard::make_cpu_backend({1});
  const auto ranks = flashshard::make_thread_communicators(2);
  flashshard::ParameterSpec parameter;
  parameter.name = "weight";
  parameter.rows = 3;
  parameter.cols = 32;
  const flashshard::ShardLayout layout({parameter}, {1}, static_cast<int>(ranks.size()));
  const flashshard::proto::RunConfig defaults;
  std::printf("%s: rank 0 owns %lld of 3 rows, %zu settings differ from the defaults\n",
              std::string(backend->name()).c_str(),
              static_cast<long long>(layout.rows_of(0, 0).count),
              flashshard::differences(defaults, defaults).size());
  return layout.rows_of(0, 0).count == 2 ? 0 : 1;
}
