#include "optim/memory.h"

#include <fmt/format.h>

#include "kernels/error.h"

namespace flashshard {

std::string_view name_of(MemoryClass memory_class) {
  constexpr std::array<std::string_view, kMemoryClasses> names = {
      "weights",    "gradients", "accumulator", "momentum", "variance",    "scales", "correction",
      "projection", "buckets",   "gathered",    "staging",  "activations", "other"};
  return names[static_cast<size_t>(memory_class)];
}

int64_t MemoryTable::total() const {
  int64_t sum = 0;
  for (int64_t b : bytes) sum += b;
  return sum;
}

MemoryLedger::~MemoryLedger() {
  for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block) {
    backend_.release(block->pointer, block->bytes);
  }
}

void* MemoryLedger::allocate(MemoryClass memory_class, size_t bytes) {
  if (bytes == 0) return nullptr;
  void* pointer = nullptr;
  try {
    pointer = backend_.allocate(bytes);
  } catch (const Error& error) {
    if (error.code() != ExitCode::kOutOfSpace) throw;
    throw Error(ExitCode::kOutOfSpace,
                fmt::format("out of memory: {:.1f} MiB for {}, beside {:.1f} MiB already held",
                            static_cast<double>(bytes) / (1 << 20), name_of(memory_class),
                            static_cast<double>(tagged_.total()) / (1 << 20)),
                std::string(backend_.name()),
                "use more ranks, a smaller train.micro_batch or model, or model.recompute FULL");
  }
  blocks_.push_back({pointer, bytes});
  tagged_[memory_class] += static_cast<int64_t>(bytes);
  return pointer;
}

Tensor MemoryLedger::tensor(MemoryClass memory_class, DType dtype,
                            std::initializer_list<int64_t> shape) {
  Tensor view(nullptr, dtype, shape);
  view.data = allocate(memory_class, view.bytes());
  return view;
}

}  // namespace flashshard
