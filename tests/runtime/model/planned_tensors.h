// What a plan of activation memory must never do.
#pragma once

#include <gtest/gtest.h>

#include "runtime/model/activation_plan.h"

namespace flashshard {

/// No byte belongs to two tensors at one step, and none lies outside the region.
inline void expect_no_overlap(const ActivationPlan& plan) {
  for (const PlannedTensor& a : plan.tensors()) {
    EXPECT_GE(a.offset, 0) << a.name;
    EXPECT_LE(a.offset + a.bytes, plan.bytes()) << a.name;
    for (const PlannedTensor& b : plan.tensors()) {
      if (&a == &b || !a.is_live_with(b)) continue;
      EXPECT_TRUE(a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset)
          << a.name << " and " << b.name;
    }
  }
}

}  // namespace flashshard
