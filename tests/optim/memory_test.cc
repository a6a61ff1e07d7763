#include "optim/memory.h"

#include "kernels/error.h"

#include <gtest/gtest.h>

namespace flashshard {
namespace {

TEST(MemoryLedger, TagsEveryAllocationWithItsClass) {
  auto backend = make_cpu_backend({1});
  MemoryLedger ledger(*backend);
  const Tensor weights = ledger.tensor(MemoryClass::kWeights, DType::kBF16, {10, 30});
  ledger.allocate(MemoryClass::kBuckets, 1000);
  ledger.allocate(MemoryClass::kBuckets, 24);
  EXPECT_EQ(ledger.allocate(MemoryClass::kOther, 0), nullptr);
  EXPECT_EQ(ledger.tagged()[MemoryClass::kWeights], 600);
  EXPECT_EQ(ledger.tagged()[MemoryClass::kBuckets], 1024);
  EXPECT_EQ(ledger.tagged().total(), 1624);
  for (int64_t i = 0; i < weights.elements(); ++i) ASSERT_EQ(weights.as<uint16_t>()[i], 0);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(weights.data) % 256, 0u);
}

TEST(MemoryLedger, NamesTheClassWhenMemoryRunsOut) {
  auto backend = make_cpu_backend({1});
  MemoryLedger ledger(*backend);
  try {
    ledger.allocate(MemoryClass::kActivations, size_t{1} << 60);
    FAIL() << "an exabyte was allocated";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kOutOfSpace);
    EXPECT_NE(std::string(error.what()).find("activations"), std::string::npos);
  }
}

TEST(MemoryClass, EveryClassHasANameOfItsOwn) {
  for (size_t a = 0; a < kMemoryClasses; ++a) {
    EXPECT_FALSE(name_of(static_cast<MemoryClass>(a)).empty());
    for (size_t b = 0; b < a; ++b) {
      EXPECT_NE(name_of(static_cast<MemoryClass>(a)), name_of(static_cast<MemoryClass>(b)));
    }
  }
}

}  // namespace
}  // namespace flashshard
