// What the C interface's codecs and norms refuse, each with a status, a text and every byte of the
// caller's memory as it was; and which elements count as finite.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <functional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "kernels/capi/flashshard.h"
#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace flashshard {
namespace {

using ::testing::HasSubstr;

constexpr size_t kCount = 80;  // the last of three groups is short

/// All that the calls read and write, in one piece and without gaps: comparing it misses no byte,
/// and what a call writes beyond a buffer lies in it too.
struct alignas(16) Memory {
  std::array<float, kCount> values;
  std::array<uint16_t, kCount> weight;
  std::array<int16_t, kCount> correction;
  std::array<int8_t, kCount> codes;
  std::array<uint16_t, 4> scales;  // of three groups, and one to spare
  std::array<int64_t, FS_NORM_LIMBS> limbs;
  int64_t counter;
  double norm;
  int64_t spare;
};
static_assert(sizeof(Memory) == kCount * (4 + 2 + 2 + 1) + 4 * 2 + (FS_NORM_LIMBS + 3) * 8);

/// Arguments with which every call succeeds and changes something, to be spoiled one by one.
struct Arguments {
  Memory memory;
  fs_master master = {};
  fs_moments moments = {};
  fs_buffer values = {memory.values.data(), sizeof memory.values};
  int32_t type = FS_TYPE_FP32;
  int64_t count = kCount;
  const fs_master* given_master = &master;
  const fs_moments* given_moments = &moments;
  int64_t* limbs = memory.limbs.data();
  int64_t* counter = &memory.counter;
  double* norm = &memory.norm;

  Arguments() {
    std::memset(&memory, 0x11, sizeof memory);
    for (size_t i = 0; i < kCount; ++i) memory.values[i] = std::sin(static_cast<float>(i));
    memory.scales.fill(0x7f00);  // 1, which the values' own scales are not
    memory.limbs.fill(3);
    const fs_buffer scales = {memory.scales.data(), 3 * sizeof(uint16_t)};
    master = {sizeof(fs_master),
              FS_SPLIT32,
              kCount,
              values,
              {memory.weight.data(), sizeof memory.weight},
              {memory.correction.data(), sizeof memory.correction}};
    moments = {sizeof(fs_moments),
               FS_STATE_V2,
               FS_MOMENTUM,
               0,
               kCount,
               values,
               {memory.codes.data(), sizeof memory.codes},
               scales};
  }
  Arguments(const Arguments&) = delete;
  Arguments& operator=(const Arguments&) = delete;

  std::array<std::byte, sizeof(Memory)> bytes() const {
    return std::bit_cast<std::array<std::byte, sizeof(Memory)>>(memory);
  }
};

struct Call {
  const char* name;
  fs_status (*run)(Arguments&);
};
constexpr Call kEncodeMaster = {
    "EncodeMaster", [](Arguments& a) { return fs_encode_master(a.given_master, a.counter); }};
constexpr Call kDecodeMaster = {"DecodeMaster",
                                [](Arguments& a) { return fs_decode_master(a.given_master); }};
constexpr Call kEncodeMoments = {
    "EncodeMoments", [](Arguments& a) { return fs_encode_moments(a.given_moments, a.counter); }};
constexpr Call kDecodeMoments = {"DecodeMoments",
                                 [](Arguments& a) { return fs_decode_moments(a.given_moments); }};
constexpr Call kAddSquares = {
    "AddSquares",
    [](Arguments& a) { return fs_add_squares(a.values, a.type, a.count, a.limbs, a.counter); }};
constexpr Call kCheckFinite = {"CheckFinite", [](Arguments& a) {
                                 return fs_check_finite(a.values, a.type, a.count, a.counter);
                               }};
constexpr Call kNorm = {"Norm", [](Arguments& a) { return fs_norm(a.limbs, a.norm); }};
const std::vector<Call> kCalls = {kEncodeMaster, kDecodeMaster, kEncodeMoments, kDecodeMoments,
                                  kAddSquares,   kCheckFinite,  kNorm};

/// What to spoil, for each of `calls`.
struct Spoil {
  std::vector<Call> calls;
  const char* name;
  fs_status status;
  const char* text;
  std::function<void(Arguments&)> spoil;
};

char* at(const void* start, ptrdiff_t offset) {
  return static_cast<char*>(const_cast<void*>(start)) + offset;
}
int64_t* integer_at(const void* start, ptrdiff_t offset) {
  return reinterpret_cast<int64_t*>(at(start, offset));
}

std::vector<Spoil> bad_masters() {
  const std::vector<Call> both = {kEncodeMaster, kDecodeMaster}, encode = {kEncodeMaster};
  return {
      {both, "NullCall", FS_INVALID_ARGUMENT, "call is null",
       [](auto& a) { a.given_master = nullptr; }},
      {both, "WrongStruct", FS_INVALID_ARGUMENT, "fs_master.struct_size is 8",
       [](auto& a) { a.master.struct_size = 8; }},
      {both, "UnknownFormat", FS_INVALID_ARGUMENT, "format is 9",
       [](auto& a) { a.master.format = FS_FP16 + 1; }},
      {both, "NegativeFormat", FS_INVALID_ARGUMENT, "format is -1",
       [](auto& a) { a.master.format = -1; }},
      {both, "NegativeCount", FS_INVALID_ARGUMENT, "count is -1",
       [](auto& a) { a.master.count = -1; }},
      {both, "HugeCount", FS_INVALID_ARGUMENT, "0 to 2^48",
       [](auto& a) { a.master.count = (int64_t{1} << 48) + 1; }},
      {both, "ShortValues", FS_WRONG_SIZE, "values has 316 bytes, the call needs 320",
       [](auto& a) { a.master.values.bytes -= 4; }},
      {both, "LongWeight", FS_WRONG_SIZE, "weight has 162 bytes, the call needs 160",
       [](auto& a) { a.master.weight.bytes += 2; }},
      {both, "NoCorrection", FS_WRONG_SIZE, "correction has 0 bytes, the call needs 160",
       [](auto& a) { a.master.correction = {}; }},
      {both, "UnneededCorrection", FS_WRONG_SIZE, "correction has 160 bytes, the call needs 0",
       [](auto& a) { a.master.format = FS_BF16; }},
      {both, "NullValues", FS_INVALID_ARGUMENT, "values is null",
       [](auto& a) { a.master.values.data = nullptr; }},
      {both, "NullWeight", FS_INVALID_ARGUMENT, "weight is null",
       [](auto& a) { a.master.weight.data = nullptr; }},
      {both, "MisalignedValues", FS_MISALIGNED, "values does not start at a multiple of 4",
       [](auto& a) { a.master.values.data = at(a.values.data, 2); }},
      {both, "MisalignedWeight", FS_MISALIGNED, "weight does not start at a multiple of 2",
       [](auto& a) { a.master.weight.data = at(a.master.weight.data, 1); }},
      {both, "MisalignedCorrection", FS_MISALIGNED, "correction does not start at a multiple of 2",
       [](auto& a) { a.master.correction.data = at(a.master.correction.data, 1); }},
      {both, "WeightInValues", FS_OVERLAP, "values and weight share memory",
       [](auto& a) { a.master.weight.data = at(a.master.weight.data, -2); }},
      {both, "CorrectionInWeight", FS_OVERLAP, "weight and correction share memory",
       [](auto& a) { a.master.correction.data = at(a.master.correction.data, -2); }},
      {encode, "MisalignedCounter", FS_MISALIGNED, "rejected_groups does not start",
       [](auto& a) { a.counter = integer_at(a.counter, 4); }},
      {encode, "CounterInValues", FS_OVERLAP, "values and rejected_groups share memory",
       [](auto& a) { a.counter = integer_at(a.memory.weight.data(), -8); }},
      {encode, "CounterInWeight", FS_OVERLAP, "weight and rejected_groups share memory",
       [](auto& a) { a.counter = integer_at(a.memory.weight.data(), 16); }},
      {encode, "CounterInCorrection", FS_OVERLAP, "correction and rejected_groups share memory",
       [](auto& a) { a.counter = integer_at(a.memory.codes.data(), -8); }},
  };
}

std::vector<Spoil> bad_moments() {
  const std::vector<Call> both = {kEncodeMoments, kDecodeMoments};
  const std::vector<Call> encode = {kEncodeMoments}, decode = {kDecodeMoments};
  return {
      {both, "NullCall", FS_INVALID_ARGUMENT, "call is null",
       [](auto& a) { a.given_moments = nullptr; }},
      {both, "UnsetStruct", FS_INVALID_ARGUMENT, "fs_moments.struct_size is 0",
       [](auto& a) { a.moments.struct_size = 0; }},
      {both, "UnknownFormat", FS_INVALID_ARGUMENT, "format is 3",
       [](auto& a) { a.moments.format = FS_STATE_FLASHOPTIM_V1 + 1; }},
      {both, "FormatWithoutCodes", FS_INVALID_ARGUMENT, "no codes",
       [](auto& a) { a.moments.format = FS_STATE_FP32; }},
      {both, "UnknownMoment", FS_INVALID_ARGUMENT, "moment is 2",
       [](auto& a) { a.moments.moment = FS_VARIANCE + 1; }},
      {both, "NegativeMoment", FS_INVALID_ARGUMENT, "moment is -1",
       [](auto& a) { a.moments.moment = -1; }},
      {both, "NegativeCount", FS_INVALID_ARGUMENT, "count is -80",
       [](auto& a) { a.moments.count *= -1; }},
      {both, "HugeCount", FS_INVALID_ARGUMENT, "0 to 2^48",
       [](auto& a) { a.moments.count = INT64_MAX; }},
      {both, "ShortValues", FS_WRONG_SIZE, "values has 319 bytes, the call needs 320",
       [](auto& a) { a.moments.values.bytes -= 1; }},
      {both, "ShortCodes", FS_WRONG_SIZE, "codes has 79 bytes, the call needs 80",
       [](auto& a) { a.moments.codes.bytes -= 1; }},
      {both, "NoScaleForTheShortGroup", FS_WRONG_SIZE, "scales has 4 bytes, the call needs 6",
       [](auto& a) { a.moments.scales.bytes -= 2; }},
      {both, "NullCodes", FS_INVALID_ARGUMENT, "codes is null",
       [](auto& a) { a.moments.codes.data = nullptr; }},
      {both, "NullScales", FS_INVALID_ARGUMENT, "scales is null",
       [](auto& a) { a.moments.scales.data = nullptr; }},
      {both, "MisalignedValues", FS_MISALIGNED, "values does not start at a multiple of 4",
       [](auto& a) { a.moments.values.data = at(a.values.data, 1); }},
      {both, "MisalignedScales", FS_MISALIGNED, "scales does not start at a multiple of 2",
       [](auto& a) { a.moments.scales.data = at(a.moments.scales.data, 1); }},
      {both, "CodesInValues", FS_OVERLAP, "values and codes share memory",
       [](auto& a) { a.moments.codes.data = at(a.memory.weight.data(), -1); }},
      {both, "ScalesInCodes", FS_OVERLAP, "codes and scales share memory",
       [](auto& a) { a.moments.scales.data = at(a.moments.scales.data, -2); }},
      {encode, "MisalignedCounter", FS_MISALIGNED, "rejected_groups does not start",
       [](auto& a) { a.counter = integer_at(a.counter, 1); }},
      {encode, "CounterInValues", FS_OVERLAP, "values and rejected_groups share memory",
       [](auto& a) { a.counter = integer_at(a.memory.values.data(), 0); }},
      {encode, "CounterInCodes", FS_OVERLAP, "codes and rejected_groups share memory",
       [](auto& a) { a.counter = integer_at(a.memory.scales.data(), -8); }},
      {encode, "CounterInScales", FS_OVERLAP, "scales and rejected_groups share memory",
       [](auto& a) { a.counter = integer_at(a.memory.scales.data(), 0); }},
      {decode, "CorruptScale", FS_CORRUPT, "scales[2] is 16",
       [](auto& a) { a.memory.scales[2] = 16; }},
  };
}

std::vector<Spoil> bad_norms() {
  const std::vector<Call> both = {kAddSquares, kCheckFinite};
  const std::vector<Call> add = {kAddSquares}, check = {kCheckFinite}, norm = {kNorm};
  const std::vector<Call> limbs = {kAddSquares, kNorm};
  return {
      {both, "UnknownType", FS_INVALID_ARGUMENT, "type is 2",
       [](auto& a) { a.type = FS_TYPE_FP32 + 1; }},
      {both, "NegativeType", FS_INVALID_ARGUMENT, "type is -1", [](auto& a) { a.type = -1; }},
      {both, "NegativeCount", FS_INVALID_ARGUMENT, "count is -1", [](auto& a) { a.count = -1; }},
      {both, "HugeCount", FS_INVALID_ARGUMENT, "0 to 2^48", [](auto& a) { a.count = INT64_MAX; }},
      {both, "ShortValues", FS_WRONG_SIZE, "values has 316 bytes, the call needs 320",
       [](auto& a) { a.values.bytes -= 4; }},
      {both, "ValuesOfAnotherType", FS_WRONG_SIZE, "values has 320 bytes, the call needs 160",
       [](auto& a) { a.type = FS_TYPE_BF16; }},
      {both, "NullValues", FS_INVALID_ARGUMENT, "values is null",
       [](auto& a) { a.values.data = nullptr; }},
      {both, "MisalignedFP32", FS_MISALIGNED, "values does not start at a multiple of 4",
       [](auto& a) { a.values.data = at(a.values.data, 2); }},
      {both, "MisalignedBF16", FS_MISALIGNED, "values does not start at a multiple of 2",
       [](auto& a) {
         a.type = FS_TYPE_BF16;
         a.values = {at(a.values.data, 1), kCount * 2};
       }},
      {both, "MisalignedCounter", FS_MISALIGNED, "nonfinite_groups does not start",
       [](auto& a) { a.counter = integer_at(a.counter, 4); }},
      {both, "CounterInValues", FS_OVERLAP, "values and nonfinite_groups share memory",
       [](auto& a) { a.counter = integer_at(a.memory.weight.data(), -8); }},
      {check, "NullCounter", FS_INVALID_ARGUMENT, "nonfinite_groups is null",
       [](auto& a) { a.counter = nullptr; }},
      {add, "CounterInLimbs", FS_OVERLAP, "limbs and nonfinite_groups share memory",
       [](auto& a) { a.counter = &a.memory.limbs[FS_NORM_LIMBS - 1]; }},
      {add, "LimbsInValues", FS_OVERLAP, "values and limbs share memory",
       [](auto& a) { a.limbs = integer_at(a.memory.weight.data(), -8); }},
      {limbs, "NullLimbs", FS_INVALID_ARGUMENT, "limbs is null",
       [](auto& a) { a.limbs = nullptr; }},
      {limbs, "MisalignedLimbs", FS_MISALIGNED, "limbs does not start at a multiple of 8",
       [](auto& a) { a.limbs = integer_at(a.limbs, -4); }},
      {limbs, "NegativeLimb", FS_INVALID_ARGUMENT, "limbs[4] is -1, a sum of squares lies in 0 to",
       [](auto& a) { a.limbs[4] = -1; }},
      {limbs, "HugeLimb", FS_INVALID_ARGUMENT, "limbs[9] is 9223372036854775807",
       [](auto& a) { a.limbs[FS_NORM_LIMBS - 1] = INT64_MAX; }},
      {norm, "NullNorm", FS_INVALID_ARGUMENT, "norm is null", [](auto& a) { a.norm = nullptr; }},
      {norm, "MisalignedNorm", FS_MISALIGNED, "norm does not start at a multiple of 8",
       [](auto& a) { a.norm = reinterpret_cast<double*>(at(a.norm, 4)); }},
      {norm, "NormInLimbs", FS_OVERLAP, "limbs and norm share memory",
       [](auto& a) { a.norm = reinterpret_cast<double*>(&a.memory.limbs[FS_NORM_LIMBS - 1]); }},
  };
}

struct BadCall {
  Call call;
  Spoil spoil;
};
void PrintTo(const BadCall& bad, std::ostream* out) { *out << bad.call.name << bad.spoil.name; }

std::vector<BadCall> bad_calls() {
  std::vector<BadCall> bad;
  for (const auto& spoils : {bad_masters(), bad_moments(), bad_norms()}) {
    for (const Spoil& spoil : spoils) {
      for (const Call& call : spoil.calls) bad.push_back({call, spoil});
    }
  }
  return bad;
}

class BadCalls : public testing::TestWithParam<BadCall> {};
INSTANTIATE_TEST_SUITE_P(All, BadCalls, testing::ValuesIn(bad_calls()), [](const auto& instance) {
  return std::string(instance.param.call.name) + instance.param.spoil.name;
});

TEST_P(BadCalls, GiveAStatusAndATextAndChangeNoByte) {
  const auto& [call, spoil] = GetParam();
  Arguments arguments;
  spoil.spoil(arguments);
  const auto before = arguments.bytes();
  EXPECT_EQ(call.run(arguments), spoil.status);
  EXPECT_THAT(fs_last_error(), HasSubstr(spoil.text));
  EXPECT_TRUE(arguments.bytes() == before);
}

// Else the bytes that a refused call leaves say nothing, nor its status.
TEST(CApiCalls, SucceedAndChangeMemoryUnlessSpoiled) {
  for (const Call& call : kCalls) {
    SCOPED_TRACE(call.name);
    Arguments arguments;
    const auto before = arguments.bytes();
    EXPECT_EQ(call.run(arguments), FS_OK) << fs_last_error();
    EXPECT_FALSE(arguments.bytes() == before);
  }
}

#if defined(__SSE__)
unsigned denormal_mode() { return _mm_getcsr(); }
void set_denormal_mode(unsigned mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
uint64_t denormal_mode() {
  uint64_t mode = 0;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
void set_denormal_mode(uint64_t mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#endif

#if defined(__SSE__) || defined(__aarch64__)
/// Of every call, in the mode of the floating-point unit that `flush` sets.
void expect_refusal_of_flushed_denormals(const std::function<void()>& flush) {
  for (const Call& call : kCalls) {
    SCOPED_TRACE(call.name);
    Arguments arguments;
    const auto before = arguments.bytes();
    const auto mode = denormal_mode();
    flush();
    const fs_status status = call.run(arguments);
    set_denormal_mode(mode);
    EXPECT_EQ(status, FS_ENVIRONMENT);
    EXPECT_THAT(fs_last_error(), HasSubstr("flushes denormals"));
    EXPECT_TRUE(arguments.bytes() == before);
    EXPECT_EQ(call.run(arguments), FS_OK) << "with the thread's own mode: " << fs_last_error();
  }
}
#endif

#if defined(__SSE__)
TEST(CApiCalls, RefuseAThreadThatFlushesDenormalResults) {
  expect_refusal_of_flushed_denormals([] { _MM_SET_FLUSH_ZERO_MODE(_MM_FLUSH_ZERO_ON); });
}

TEST(CApiCalls, RefuseAThreadThatTakesDenormalsForZero) {
  expect_refusal_of_flushed_denormals([] { _MM_SET_DENORMALS_ZERO_MODE(_MM_DENORMALS_ZERO_ON); });
}
#elif defined(__aarch64__)
TEST(CApiCalls, RefuseAThreadThatFlushesDenormals) {
  expect_refusal_of_flushed_denormals([] { set_denormal_mode(denormal_mode() | 1u << 24); });
}
#endif

// ---- which elements are finite ----

/// 70 ones and what follows them in memory, 32-bit or 16-bit patterns.
template <class Bits>
class Elements {
 public:
  Elements() : bits_(96, pattern(0x7fc00000)) { std::fill_n(bits_.begin(), kElements, kOne); }
  void set(size_t i, uint32_t fp32) { bits_[i] = pattern(fp32); }

  int64_t nonfinite_groups() {
    int64_t groups = 9;
    EXPECT_EQ(fs_check_finite(buffer(), kType, kElements, &groups), FS_OK) << fs_last_error();
    return groups;
  }
  /// Of all groups that are not left out; those are added to *left_out.
  double norm(int64_t* left_out) {
    std::array<int64_t, FS_NORM_LIMBS> limbs = {};
    double norm = -1;
    EXPECT_EQ(fs_add_squares(buffer(), kType, kElements, limbs.data(), left_out), FS_OK);
    EXPECT_EQ(fs_norm(limbs.data(), &norm), FS_OK);
    return norm;
  }

 private:
  static constexpr int kShift = 32 - 8 * static_cast<int>(sizeof(Bits));
  static constexpr int64_t kElements = 70;
  static constexpr int32_t kType = sizeof(Bits) == 4 ? FS_TYPE_FP32 : FS_TYPE_BF16;
  static constexpr Bits pattern(uint32_t fp32) { return static_cast<Bits>(fp32 >> kShift); }
  static constexpr Bits kOne = pattern(0x3f800000);
  fs_buffer buffer() { return {bits_.data(), kElements * sizeof(Bits)}; }

  std::vector<Bits> bits_;
};

template <class Bits>
class CApiFinite : public testing::Test {};
using ElementBits = testing::Types<uint32_t, uint16_t>;  // fp32, bf16
class ElementNames {
 public:
  template <class Bits>
  static std::string GetName(int) {
    return sizeof(Bits) == 4 ? "FP32" : "BF16";
  }
};
TYPED_TEST_SUITE(CApiFinite, ElementBits, ElementNames);

TYPED_TEST(CApiFinite, WhatIsNotCountsItsGroupEvenTheShortLastOne) {
  const std::vector<std::pair<const char*, uint32_t>> patterns = {
      {"NaN", 0x7fc00000},  {"negative NaN", 0xffc00000}, {"signalling NaN", 0x7f810000},
      {"inf", 0x7f800000},  {"-inf", 0xff800000},         {"largest", 0x7f7fffff},
      {"2^60", 0x5d800000}, {"-2^60", 0xdd800000}};
  for (const auto& [name, bits] : patterns) {
    for (size_t i : {64u, 69u}) {
      SCOPED_TRACE(testing::Message() << name << " at " << i);
      Elements<TypeParam> elements;
      elements.set(i, bits);
      EXPECT_EQ(elements.nonfinite_groups(), 1);
      int64_t left_out = 9;
      EXPECT_EQ(elements.norm(&left_out), 8) << "of the two other groups";
      EXPECT_EQ(left_out, 10);
    }
  }
}

TYPED_TEST(CApiFinite, WhatIsBelow2To60IsAndGoesIntoTheNorm) {
  for (const uint32_t sign : {0u, 0x80000000u}) {
    Elements<TypeParam> elements;
    elements.set(69, sign | 0x5d7fffff);  // the next below 2^60 in either type
    EXPECT_EQ(elements.nonfinite_groups(), 0);
    int64_t left_out = 9;
    const double norm = elements.norm(&left_out);
    EXPECT_GT(norm, 0x1.fcp59);
    EXPECT_LT(norm, 0x1p60);
    EXPECT_EQ(left_out, 9);
  }
  Elements<TypeParam> elements;
  elements.set(69, 0x00010000);  // a denormal in either type
  EXPECT_EQ(elements.nonfinite_groups(), 0);
}

TYPED_TEST(CApiFinite, AGroupCountsOnceAndWhatFollowsTheElementsNot) {
  Elements<TypeParam> elements;
  EXPECT_EQ(elements.nonfinite_groups(), 0) << "NaN follows";
  elements.set(0, 0x7fc00000);
  elements.set(31, 0x7f800000);
  EXPECT_EQ(elements.nonfinite_groups(), 1);
  elements.set(69, 0x7fc00000);
  EXPECT_EQ(elements.nonfinite_groups(), 2);
  elements.set(32, 0xff800000);
  EXPECT_EQ(elements.nonfinite_groups(), 3);
}

}  // namespace
}  // namespace flashshard
