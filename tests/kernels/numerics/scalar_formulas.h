// The formulas for one element, to be tested by themselves.
#pragma once

#include "kernels/numerics/scalar_arithmetic.h"

#define FLASHSHARD_FORMULA inline
namespace flashshard::formulas {
#include "kernels/numerics/formulas.inc"
using Scalar = numerics::ScalarArithmetic;
}  // namespace flashshard::formulas
#undef FLASHSHARD_FORMULA
