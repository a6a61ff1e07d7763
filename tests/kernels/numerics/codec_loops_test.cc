// Encoding and decoding of masters and moments by every instruction set's loops: the bytes and the
// counts of the scalar loops, at every length and alignment, and nothing outside of the range.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <ostream>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/cpu/update_loops.h"
#include "kernels/numerics/formats.h"

namespace flashshard {
namespace {

struct Range {
  int64_t count;   // of the tensor
  int64_t offset;  // elements between an aligned address and the tensor
  int64_t begin, end;
};
void PrintTo(const Range& r, std::ostream* out) {
  *out << "[" << r.begin << ", " << r.end << ") of " << r.count << " at offset " << r.offset;
}

/// Every length up to four groups and a little, whole and in parts, at several alignments.
template <class Body>
void for_each_range(const Body& body) {
  for (int64_t count = 1; count <= 130; ++count) {
    for (int64_t offset : {0, 1, 3, 6}) {
      for (const auto& [begin, end] : {std::pair{int64_t{0}, count},
                                       {kGroup, count},
                                       {0, kGroup},
                                       {kGroup, 2 * kGroup},
                                       {3 * kGroup, count}}) {
        if (begin >= count || end > count) continue;
        body(Range{count, offset, begin, end});
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

/// What loops write: elements with a guard before and behind.
class Output {
 public:
  Output(int64_t count, int64_t offset, int element_bytes)
      : element_bytes_(element_bytes),
        begin_(offset),
        bytes_(static_cast<size_t>((offset + count + kGuard) * element_bytes), kFill) {}

  template <class T = void>
  T* data() {
    return reinterpret_cast<T*>(bytes_.data() + begin_ * element_bytes_);
  }
  /// Whether everything but the elements [begin, end) is as it was.
  bool is_untouched_outside(int64_t begin, int64_t end) const {
    const auto fill = [](std::byte b) { return b == kFill; };
    return std::all_of(bytes_.begin(), bytes_.begin() + (begin_ + begin) * element_bytes_, fill) &&
           std::all_of(bytes_.begin() + (begin_ + end) * element_bytes_, bytes_.end(), fill);
  }
  bool operator==(const Output&) const = default;

 private:
  static constexpr std::byte kFill{0xa5};
  static constexpr int64_t kGuard = 64;  // as much as the widest store

  int64_t element_bytes_, begin_;
  std::vector<std::byte> bytes_;
};

/// What loops read: nothing behind it, so that the address sanitizer sees a read too many.
template <class T>
class Input {
 public:
  Input(int64_t count, int64_t offset)
      : offset_(offset), values_(static_cast<size_t>(offset + count)) {}
  auto begin() { return values_.begin() + offset_; }
  auto end() { return values_.end(); }
  const T* data() const { return values_.data() + offset_; }

 private:
  int64_t offset_;
  std::vector<T> values_;
};

constexpr int kKinds = 8;

/// One of a group's values; `group` and `bits` are random.
float wild_value(uint64_t group, uint32_t bits) {
  const uint32_t sign = bits & 0x80000000u, mantissa = bits & 0x7fffffu;
  const auto between = [&](uint32_t least, uint32_t most) {
    const uint32_t exponent = least + (bits >> 23 & 0xff) % (most - least + 1);
    return sign | exponent << 23 | mantissa;
  };
  const auto as_float = [](uint32_t x) { return std::bit_cast<float>(x); };
  const uint32_t plain = between(107, 131);
  // Where the formats' domains end, of weights, momenta and variances.
  constexpr std::array<uint32_t, 8> kLimits = {0x7f7f7f00, 0x7f7f0001, 0x7f7f8000, 0x477ff000,
                                               0x5f000001, 0x7e800001, 0x4f7fe001, 0x7f800000};
  switch (group % kKinds) {
    case 0:
      return as_float(mantissa % 5 == 0 ? sign : plain);
    case 1:
      return as_float(between(0, 253));
    case 2:
      return as_float(sign);  // zeros
    case 3:
      return as_float(sign | mantissa);  // subnormal in fp32
    case 4:
      return as_float(between(101, 114));  // and in fp16
    case 5: {                              // half way between two values of a format
      const uint32_t half = std::array{0x80u, 0x1000u, 0x4000u, 0x8000u}[mantissa % 4];
      return as_float((plain & ~(2 * half - 1)) | half);
    }
    case 6: {  // one limit in a group, or the value below it
      const uint32_t limit = kLimits[group / kKinds % kLimits.size()] - (group >> 32) % 2;
      return as_float(mantissa % 24 == 0 ? sign | limit : plain);
    }
    default:  // some NaN
      return as_float(mantissa % 24 == 0 ? sign | 0x7f800001u | mantissa : plain);
  }
}

/// Groups of all kinds. Variances are not negative, but for -0 and those of the last kind.
Input<float> wild_values(const Range& r, bool variances) {
  Input<float> values(r.count, r.offset);
  std::mt19937_64 random(static_cast<uint64_t>(r.count * 8 + r.offset));
  uint64_t group = 0;
  int64_t i = 0;
  for (float& value : values) {
    if (i++ % kGroup == 0) group = random();
    value = wild_value(group, static_cast<uint32_t>(random() >> 16));
    if (variances && value != 0 && group % kKinds != kKinds - 1) value = std::fabs(value);
  }
  return values;
}

template <class T>
Input<T> random_codes(const Range& r, int64_t count, uint64_t least, uint64_t most) {
  Input<T> codes(count, r.offset);
  std::mt19937_64 random(static_cast<uint64_t>(r.count * 8 + r.offset));
  for (T& code : codes) code = static_cast<T>(least + (random() >> 16) % (most - least + 1));
  return codes;
}

int64_t groups_in(int64_t elements) { return (elements + kGroup - 1) / kGroup; }

/// Both outcomes must have been there for a comparison to say something.
struct Groups {
  int64_t accepted = 0, rejected = 0;

  void add(const Range& r, int64_t rejected_groups) {
    rejected += rejected_groups;
    accepted += groups_in(r.end - r.begin) - rejected_groups;
  }
  void expect_both() const {
    EXPECT_GT(accepted, 1000);
    EXPECT_GT(rejected, 100);
  }
};

// ---- masters ----

class MasterLoops : public testing::TestWithParam<WeightFormat> {
 protected:
  WeightFormat format() const { return GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(Formats, MasterLoops,
                         testing::Values(WeightFormat::kSplit24, WeightFormat::kSplit32,
                                         WeightFormat::kBF16, WeightFormat::kFP32,
                                         WeightFormat::kCorrected24, WeightFormat::kCorrected32,
                                         WeightFormat::kFP16Corrected24,
                                         WeightFormat::kFP16Corrected32, WeightFormat::kFP16));

struct EncodedMaster {
  Output weight, correction;
  int64_t rejected;

  EncodedMaster(const cpu::UpdateLoops& loops, WeightFormat format, const float* values,
                const Range& r)
      : weight(r.count, r.offset, weight_bytes(format)),
        correction(r.count, r.offset, std::max(correction_bytes(format), 1)) {
    rejected = loops.encode_master({.format = format,
                                    .values = values,
                                    .weight = weight.data(),
                                    .correction = correction.data(),
                                    .count = r.count},
                                   r.begin, r.end);
  }
  bool operator==(const EncodedMaster&) const = default;
};

TEST_P(MasterLoops, EncodeAsTheScalarLoopsDoAndWriteTheRangeAlone) {
  Groups groups;
  for_each_range([&](const Range& r) {
    const auto values = wild_values(r, false);
    const EncodedMaster expected(cpu::scalar_update_loops(), format(), values.data(), r);
    const bool corrected = correction_bytes(format()) > 0;
    ASSERT_TRUE(expected.weight.is_untouched_outside(r.begin, r.end)) << testing::PrintToString(r);
    ASSERT_TRUE(expected.correction.is_untouched_outside(r.begin, corrected ? r.end : r.begin))
        << testing::PrintToString(r);
    for (const cpu::UpdateLoops* loops : cpu::available_update_loops()) {
      const EncodedMaster ours(*loops, format(), values.data(), r);
      ASSERT_EQ(ours.rejected, expected.rejected)
          << loops->name << ", " << testing::PrintToString(r);
      ASSERT_TRUE(ours == expected) << loops->name << ", " << testing::PrintToString(r);
    }
    groups.add(r, expected.rejected);
  });
  groups.expect_both();
}

TEST_P(MasterLoops, DecodeAsTheScalarLoopsDoAndWriteTheRangeAlone) {
  for_each_range([&](const Range& r) {
    // Every bit pattern, infinities and NaN too.
    const auto halves = random_codes<uint16_t>(r, r.count, 0, 0xffff);
    const auto floats = random_codes<uint32_t>(r, r.count, 0, 0xffffffff);
    const auto bytes = random_codes<int8_t>(r, r.count, 0, 0xff);
    const auto words = random_codes<int16_t>(r, r.count, 0, 0xffff);
    const auto decoded = [&](const cpu::UpdateLoops& loops) {
      Output values(r.count, r.offset, sizeof(float));
      DecodeMaster call{
          .format = format(), .values = values.data<float>(), .weight = halves.data()};
      if (format() == WeightFormat::kFP32) call.weight = floats.data();
      if (correction_bytes(format()) == 1) call.correction = bytes.data();
      if (correction_bytes(format()) == 2) call.correction = words.data();
      call.count = r.count;
      loops.decode_master(call, r.begin, r.end);
      return values;
    };
    const Output expected = decoded(cpu::scalar_update_loops());
    ASSERT_TRUE(expected.is_untouched_outside(r.begin, r.end)) << testing::PrintToString(r);
    for (const cpu::UpdateLoops* loops : cpu::available_update_loops())
      ASSERT_TRUE(decoded(*loops) == expected) << loops->name << ", " << testing::PrintToString(r);
  });
}

// ---- moments ----

class MomentLoops : public testing::TestWithParam<std::tuple<StateFormat, Moment>> {
 protected:
  StateFormat format() const { return std::get<0>(GetParam()); }
  Moment moment() const { return std::get<1>(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Formats, MomentLoops,
                         testing::Combine(testing::Values(StateFormat::kCompanded,
                                                          StateFormat::kFlashOptim),
                                          testing::Values(Moment::kMomentum, Moment::kVariance)));

struct EncodedMoment {
  Output codes, scales;
  int64_t rejected;

  EncodedMoment(const cpu::UpdateLoops& loops, StateFormat format, Moment moment,
                const float* values, const Range& r)
      : codes(r.count, r.offset, 1), scales(groups_in(r.count), r.offset, sizeof(uint16_t)) {
    rejected = loops.encode_moment({.format = format,
                                    .moment = moment,
                                    .values = values,
                                    .codes = codes.data(),
                                    .scales = scales.data<uint16_t>(),
                                    .count = r.count},
                                   r.begin, r.end);
  }
  bool operator==(const EncodedMoment&) const = default;
};

TEST_P(MomentLoops, EncodeAsTheScalarLoopsDoAndWriteTheRangeAlone) {
  Groups groups;
  for_each_range([&](const Range& r) {
    const auto values = wild_values(r, moment() == Moment::kVariance);
    const EncodedMoment expected(cpu::scalar_update_loops(), format(), moment(), values.data(), r);
    ASSERT_TRUE(expected.codes.is_untouched_outside(r.begin, r.end)) << testing::PrintToString(r);
    ASSERT_TRUE(expected.scales.is_untouched_outside(r.begin / kGroup, groups_in(r.end)))
        << testing::PrintToString(r);
    for (const cpu::UpdateLoops* loops : cpu::available_update_loops()) {
      const EncodedMoment ours(*loops, format(), moment(), values.data(), r);
      ASSERT_EQ(ours.rejected, expected.rejected)
          << loops->name << ", " << testing::PrintToString(r);
      ASSERT_TRUE(ours == expected) << loops->name << ", " << testing::PrintToString(r);
    }
    groups.add(r, expected.rejected);
  });
  groups.expect_both();
}

TEST_P(MomentLoops, DecodeAsTheScalarLoopsDoAndWriteTheRangeAlone) {
  const bool v1 = format() == StateFormat::kFlashOptim;
  for_each_range([&](const Range& r) {
    const auto codes = random_codes<uint8_t>(r, r.count, 0, 0xff);
    const auto scales =
        v1 ? random_codes<uint16_t>(r, groups_in(r.count), 0, 0x7bff)
           : random_codes<uint16_t>(r, groups_in(r.count), numerics::kSmallestScaleCode,
                                    numerics::kLargestScaleCode);
    const auto decoded = [&](const cpu::UpdateLoops& loops) {
      Output values(r.count, r.offset, sizeof(float));
      loops.decode_moment({.format = format(),
                           .moment = moment(),
                           .values = values.data<float>(),
                           .codes = codes.data(),
                           .scales = scales.data(),
                           .count = r.count},
                          r.begin, r.end);
      return values;
    };
    const Output expected = decoded(cpu::scalar_update_loops());
    ASSERT_TRUE(expected.is_untouched_outside(r.begin, r.end)) << testing::PrintToString(r);
    for (const cpu::UpdateLoops* loops : cpu::available_update_loops())
      ASSERT_TRUE(decoded(*loops) == expected) << loops->name << ", " << testing::PrintToString(r);
  });
}

}  // namespace
}  // namespace flashshard
