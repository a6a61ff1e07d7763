// The folds against a serial reference written here on its own, on values whose sum shows any other
// order: exponents are spread over 2^-12 .. 2^12.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "comm/fold_reduce.h"
#include "tests/comm/verb_checks.h"

namespace flashshard::test {

namespace {

uint64_t scramble(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

/// Rank `rank`'s element `i`: random sign and mantissa, exponent in -12 .. 12.
float element(int rank, size_t i) {
  const uint64_t bits = scramble(static_cast<uint64_t>(rank) * 1000003 + i + 1);
  const auto exponent = static_cast<uint32_t>(127 - 12 + (bits >> 40) % 25);
  return std::bit_cast<float>(static_cast<uint32_t>(bits & 0x80000000u) | (exponent << 23) |
                              static_cast<uint32_t>(bits >> 8 & 0x7fffffu));
}

uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t tie_to_even = 0x7fffu + ((bits >> 16) & 1u);
  return static_cast<uint16_t>((bits + tie_to_even) >> 16);
}
float from_bf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

float on_the_wire(float value, DType wire) {
  return wire == DType::kBF16 ? from_bf16(to_bf16(value)) : value;
}

constexpr ReductionOrder kFlat{};
constexpr ReductionOrder two_level(int group) {
  return {.kind = ReductionOrder::Kind::kTwoLevel, .group = group};
}

/// A left fold: over nothing it has no value.
class LeftFold {
 public:
  explicit LeftFold(std::optional<float> seed = {}) : sum_(seed) {}
  void add(float value) { sum_ = sum_ ? *sum_ + value : value; }
  float sum() const { return *sum_; }

 private:
  std::optional<float> sum_;
};

float reference_fold(std::span<const int> contributors, size_t i, DType wire,
                     const ReductionOrder& order = kFlat, std::optional<float> seed = {}) {
  LeftFold total(seed);
  if (order.kind == ReductionOrder::Kind::kFlat) {
    for (int rank : contributors) total.add(on_the_wire(element(rank, i), wire));
    return total.sum();
  }
  for (size_t k = 0; k < contributors.size();) {
    const int group = contributors[k] / order.group;
    LeftFold partial;
    for (; k < contributors.size() && contributors[k] / order.group == group; ++k) {
      partial.add(on_the_wire(element(contributors[k], i), wire));
    }
    total.add(partial.sum());
  }
  return total.sum();
}

void write(std::byte* at, float value, DType dtype) {
  if (dtype == DType::kBF16) {
    const uint16_t bits = to_bf16(value);
    std::memcpy(at, &bits, sizeof bits);
  } else {
    std::memcpy(at, &value, sizeof value);
  }
}

struct FoldCase {
  std::vector<int> contributors;
  ReductionOrder order;
  DType wire = DType::kBF16;
  bool seeded = false;
};

/// A reduction of one slice per rank: uneven, and empty for every third rank.
class Reduction {
 public:
  Reduction(Communicator& comm, Backend& backend, FoldCase fold_case)
      : comm_(comm), case_(std::move(fold_case)), reduction_(comm, backend) {
    const size_t width = size_of(case_.wire);
    for (int p = 0; p < comm.world_size(); ++p) {
      const size_t elements = p % 3 == 2 ? 0 : 100 + static_cast<size_t>(p) * 37;
      slices_.push_back({packed_elements_ * width, elements * width});
      packed_elements_ += elements;
    }
    const ByteRange own = slices_[static_cast<size_t>(comm.rank())];
    first_ = own.offset / width;
    head_.resize(own.size / width / 3);
    tail_.resize(own.size / width - head_.size());
    if (!case_.seeded) return;
    for (size_t i = 0; i < tail_.size(); ++i) tail_[i] = seed(head_.size() + i);
    for (size_t i = 0; i < head_.size(); ++i) seeded_head_.push_back(seed(i));
  }

  /// The first third of the own slice goes to one tensor, of bf16 unless it is a seed, the rest to
  /// an fp32 one.
  void start() {
    const size_t width = size_of(case_.wire);
    if (std::ranges::count(case_.contributors, comm_.rank()) > 0) {
      packed_.resize(packed_elements_ * width);
      for (size_t i = 0; i < packed_elements_; ++i) {
        write(packed_.data() + i * width, element(comm_.rank(), i), case_.wire);
      }
    }
    staging_.resize(
        staging_bytes(slices_, case_.contributors, comm_.rank(), case_.order, case_.wire));
    const auto head_elements = static_cast<int64_t>(head_.size());
    const Tensor outputs[] = {
        case_.seeded ? Tensor(seeded_head_.data(), DType::kFP32, {head_elements})
                     : Tensor(head_.data(), DType::kBF16, {head_elements}),
        Tensor(tail_.data(), DType::kFP32, {static_cast<int64_t>(tail_.size())})};
    reduction_.start({.packed = packed_,
                      .slices = slices_,
                      .staging = staging_,
                      .wire_dtype = case_.wire,
                      .outputs = outputs,
                      .contributors = case_.contributors,
                      .order = case_.order,
                      .accumulate = case_.seeded});
  }
  bool progress() { return reduction_.progress(); }
  void advance() { reduction_.advance("the partials"); }
  void finish() { reduction_.finish("the fold"); }

  void expect_bits_of_the_reference() const {
    for (size_t i = 0; i < head_.size() + tail_.size(); ++i) {
      const float sum = reference_fold(case_.contributors, first_ + i, case_.wire, case_.order,
                                       case_.seeded ? std::optional<float>(seed(i)) : std::nullopt);
      if (i < head_.size() && !case_.seeded) {
        ASSERT_EQ(head_[i], to_bf16(sum)) << "element " << i;
      } else {
        const float value = i < head_.size() ? seeded_head_[i] : tail_[i - head_.size()];
        ASSERT_EQ(std::bit_cast<uint32_t>(value), std::bit_cast<uint32_t>(sum)) << "element " << i;
      }
    }
  }

  size_t elements() const { return head_.size() + tail_.size(); }

 private:
  /// What element `i` of the own slice starts with.
  float seed(size_t i) const { return element(comm_.world_size(), first_ + i); }

  Communicator& comm_;
  FoldCase case_;
  FoldReduction reduction_;
  std::vector<ByteRange> slices_;
  size_t packed_elements_ = 0, first_ = 0;
  std::vector<std::byte> packed_, staging_;
  std::vector<uint16_t> head_;
  std::vector<float> seeded_head_, tail_;
};

std::vector<int> ranks_where(int world_size, bool (*take)(int rank, int world_size)) {
  std::vector<int> ranks;
  for (int r = 0; r < world_size; ++r) {
    if (take(r, world_size)) ranks.push_back(r);
  }
  return ranks;
}

std::vector<int> all_ranks(int world_size) {
  return ranks_where(world_size, [](int, int) { return true; });
}

/// Contributors that leave out ranks at the start, in between and at the end.
std::vector<std::vector<int>> some_ranks(int world_size) {
  return {ranks_where(world_size, [](int r, int n) { return r != 0 || n == 1; }),
          ranks_where(world_size, [](int r, int) { return r % 2 == 0; }),
          ranks_where(world_size, [](int r, int n) { return r == n - 1; })};
}

void check_fold(Communicator& comm, const FoldCase& fold_case) {
  const auto backend = make_cpu_backend({.threads = 1});
  Reduction reduction(comm, *backend, fold_case);
  reduction.start();
  reduction.finish();
  backend->synchronize();
  reduction.expect_bits_of_the_reference();
}

void fold_of_all_ranks_has_the_bits_of_the_reference(Communicator& comm) {
  for (DType wire : {DType::kBF16, DType::kFP32}) {
    check_fold(comm, {all_ranks(comm.world_size()), kFlat, wire});
  }
}

void fold_skips_ranks_without_a_contribution(Communicator& comm) {
  for (const std::vector<int>& contributors : some_ranks(comm.world_size())) {
    for (DType wire : {DType::kBF16, DType::kFP32}) check_fold(comm, {contributors, kFlat, wire});
  }
}

void fold_starts_with_the_accumulator(Communicator& comm) {
  for (DType wire : {DType::kBF16, DType::kFP32}) {
    check_fold(comm, {all_ranks(comm.world_size()), kFlat, wire, true});
  }
  for (const std::vector<int>& contributors : some_ranks(comm.world_size())) {
    check_fold(comm, {contributors, kFlat, DType::kBF16, true});
  }
}

/// Groups of one, that divide the ranks or not, of all ranks and more.
std::vector<int> group_sizes(int world_size) { return {1, 2, 3, world_size, world_size + 2}; }

void two_level_fold_has_the_bits_of_the_reference(Communicator& comm) {
  for (int group : group_sizes(comm.world_size())) {
    for (DType wire : {DType::kBF16, DType::kFP32}) {
      for (bool seeded : {false, true}) {
        check_fold(comm, {all_ranks(comm.world_size()), two_level(group), wire, seeded});
      }
    }
  }
}

void two_level_fold_skips_ranks_without_a_contribution(Communicator& comm) {
  for (int group : group_sizes(comm.world_size())) {
    for (const std::vector<int>& contributors : some_ranks(comm.world_size())) {
      check_fold(comm, {contributors, two_level(group), DType::kBF16, group % 2 == 0});
    }
  }
}

void folds_make_progress_without_waiting(Communicator& comm) {
  const auto backend = make_cpu_backend({.threads = 1});
  for (const ReductionOrder& order : {kFlat, two_level(2)}) {
    Reduction reduction(comm, *backend, {all_ranks(comm.world_size()), order, DType::kBF16});
    reduction.start();
    while (!reduction.progress()) std::this_thread::yield();
    reduction.advance();
    while (!reduction.progress()) std::this_thread::yield();
    reduction.finish();
    backend->synchronize();
    reduction.expect_bits_of_the_reference();
  }
}

void two_level_folds_overlap(Communicator& comm) {
  const auto backend = make_cpu_backend({.threads = 1});
  const FoldCase fold_case{all_ranks(comm.world_size()), two_level(2), DType::kBF16};
  Reduction first(comm, *backend, fold_case), second(comm, *backend, fold_case);
  first.start();
  second.start();
  first.advance();
  first.advance();  // has nothing more to do
  second.finish();
  first.finish();
  backend->synchronize();
  first.expect_bits_of_the_reference();
  second.expect_bits_of_the_reference();
}

/// Counts what this rank receives from ranks of other groups, and passes every call on.
class CountedCommunicator : public Communicator {
 public:
  CountedCommunicator(Communicator& communicator, int group)
      : communicator_(communicator), group_(group) {}
  size_t bytes_from_other_groups() const { return bytes_; }

  int rank() const override { return communicator_.rank(); }
  int world_size() const override { return communicator_.world_size(); }
  std::string_view transport() const override { return communicator_.transport(); }
  std::string_view host(int rank) const override { return communicator_.host(rank); }
  void set_deadline(std::chrono::duration<double> deadline) override {
    communicator_.set_deadline(deadline);
  }
  Pending all_to_all(std::span<const std::byte> send, std::span<const ByteRange> send_ranges,
                     std::span<std::byte> receive,
                     std::span<const ByteRange> receive_ranges) override {
    for (int p = 0; p < world_size(); ++p) {
      if (p / group_ != rank() / group_) bytes_ += receive_ranges[static_cast<size_t>(p)].size;
    }
    return communicator_.all_to_all(send, send_ranges, receive, receive_ranges);
  }
  Pending all_gather(std::span<std::byte> buffer, std::span<const ByteRange> ranges) override {
    return communicator_.all_gather(buffer, ranges);
  }
  Pending all_reduce(std::span<int64_t> values, ReduceOp op) override {
    return communicator_.all_reduce(values, op);
  }
  Pending broadcast(std::span<std::byte> buffer, int root) override {
    return communicator_.broadcast(buffer, root);
  }
  Pending barrier() override { return communicator_.barrier(); }
  std::unique_ptr<Communicator> split(int color) override { return communicator_.split(color); }
  void abort(ExitCode code) noexcept override { communicator_.abort(code); }

 private:
  Communicator& communicator_;
  int group_;
  size_t bytes_ = 0;
};

void two_level_fold_sends_one_partial_per_group_and_owner(Communicator& comm) {
  const auto backend = make_cpu_backend({.threads = 1});
  const std::vector<int> everyone = all_ranks(comm.world_size());
  for (int group : group_sizes(comm.world_size())) {
    const auto received = [&](const ReductionOrder& order, size_t& elements) {
      CountedCommunicator counted(comm, group);
      Reduction reduction(counted, *backend, {everyone, order, DType::kBF16});
      reduction.start();
      reduction.finish();
      elements = reduction.elements();
      return counted.bytes_from_other_groups();
    };
    const auto groups = static_cast<size_t>((comm.world_size() + group - 1) / group);
    const int last = std::min((comm.rank() / group + 1) * group, comm.world_size());
    const auto outside =
        static_cast<size_t>(comm.world_size() - (last - comm.rank() / group * group));
    size_t elements = 0;
    const size_t of_partials = received(two_level(group), elements);
    EXPECT_EQ(of_partials, (groups - 1) * elements * sizeof(float)) << "groups of " << group;
    const size_t of_slices = received(kFlat, elements);
    EXPECT_EQ(of_slices, outside * elements * sizeof(uint16_t)) << "groups of " << group;
  }
}

void fold_of_negative_zeros_stays_negative(Communicator& comm) {
  // Any seed of +0, or a skipped rank added as +0, would turn the sum into +0.
  const auto n = static_cast<size_t>(comm.world_size());
  const std::vector<int> contributors =
      ranks_where(comm.world_size(), [](int r, int size) { return r + 1 < size || size == 1; });
  std::vector<ByteRange> slices;
  for (size_t p = 0; p < n; ++p) slices.push_back({p * 2, 2});
  std::vector<uint16_t> packed(n, 0x8000);
  const auto backend = make_cpu_backend({.threads = 1});
  for (const ReductionOrder& order : {kFlat, two_level(2)}) {
    std::vector<float> staging(4 * n);
    float sum = -0.0f;
    FoldReduction reduction(comm, *backend);
    for (bool seeded : {false, true}) {
      const Tensor output(&sum, DType::kFP32, {1});
      reduction.start({.packed = std::as_bytes(std::span(packed)),
                       .slices = slices,
                       .staging = std::as_writable_bytes(std::span(staging)),
                       .wire_dtype = DType::kBF16,
                       .outputs = std::span(&output, 1),
                       .contributors = contributors,
                       .order = order,
                       .accumulate = seeded});
      reduction.finish("the fold");
      backend->synchronize();
      EXPECT_EQ(std::bit_cast<uint32_t>(sum), 0x80000000u);
    }
  }
}

void folds_that_cannot_be_right_are_refused(Communicator& comm) {
  const auto backend = make_cpu_backend({.threads = 1});
  const std::vector<ByteRange> slices(static_cast<size_t>(comm.world_size()), {0, 4});
  std::vector<std::byte> packed(4), staging(4 * slices.size());
  float out = 0;
  const Tensor output(&out, DType::kBF16, {2}), short_output(&out, DType::kBF16, {1});
  const Tensor integers(&out, DType::kINT16, {2});
  const std::vector<int> first = {0}, outside = {comm.world_size()}, twice = {0, 0};
  const FoldReduce good{.packed = packed,
                        .slices = slices,
                        .staging = staging,
                        .wire_dtype = DType::kBF16,
                        .outputs = std::span(&output, 1),
                        .contributors = first};
  FoldReduction reduction(comm, *backend);
  const auto refused = [&](auto change) {
    FoldReduce call = good;
    change(call);
    EXPECT_THROW(reduction.start(call), Error);
  };
  refused([](FoldReduce& call) { call.contributors = {}; });
  refused([&](FoldReduce& call) { call.contributors = outside; });
  refused([&](FoldReduce& call) { call.contributors = twice; });
  refused([](FoldReduce& call) { call.slices = {}; });
  refused([&](FoldReduce& call) { call.outputs = std::span(&short_output, 1); });
  refused([&](FoldReduce& call) { call.outputs = std::span(&integers, 1); });
  refused([](FoldReduce& call) { call.wire_dtype = DType::kINT8; });
  refused([](FoldReduce& call) { call.accumulate = true; });
  refused([](FoldReduce& call) { call.order = two_level(0); });
  if (comm.world_size() > 1) {
    refused([](FoldReduce& call) { call.order = two_level(2); });  // the slices overlap
  }
  if (comm.rank() == 0) {
    refused([](FoldReduce& call) { call.packed = call.packed.first(3); });
  } else {
    refused([](FoldReduce& call) { call.staging = {}; });
  }
  EXPECT_THROW(reduction.finish("nothing"), Error);
  reduction.start(good);
  EXPECT_THROW(reduction.start(good), Error);
  reduction.finish("the fold after refusals");
  backend->synchronize();
}

void two_level_folds_that_cannot_be_right_are_refused(Communicator& comm) {
  const auto backend = make_cpu_backend({.threads = 1});
  const auto n = static_cast<size_t>(comm.world_size());
  std::vector<ByteRange> slices;
  for (size_t p = 0; p < n; ++p) slices.push_back({p * 4, 4});
  std::vector<std::byte> packed(4 * n);
  float out = 0;
  const Tensor output(&out, DType::kBF16, {2});
  const std::vector<int> everyone = all_ranks(comm.world_size());
  const size_t bytes = staging_bytes(slices, everyone, comm.rank(), two_level(2), DType::kBF16);
  std::vector<std::byte> staging(bytes + 1);
  const FoldReduce good{.packed = packed,
                        .slices = slices,
                        .staging = staging,
                        .wire_dtype = DType::kBF16,
                        .outputs = std::span(&output, 1),
                        .contributors = everyone,
                        .order = two_level(2)};
  FoldReduction reduction(comm, *backend);
  FoldReduce call = good;
  call.staging = std::span(staging).subspan(1);
  EXPECT_THROW(reduction.start(call), Error) << "not aligned";
  call.staging = std::span(staging).first(bytes - 1);
  EXPECT_THROW(reduction.start(call), Error) << "too small";
  reduction.start(good);
  reduction.finish("the fold after refusals");
  backend->synchronize();
}

constexpr VerbCheck kFoldChecks[] = {
    {"FoldOfAllRanksHasTheBitsOfTheReference", fold_of_all_ranks_has_the_bits_of_the_reference},
    {"FoldSkipsRanksWithoutAContribution", fold_skips_ranks_without_a_contribution},
    {"FoldStartsWithTheAccumulator", fold_starts_with_the_accumulator},
    {"TwoLevelFoldHasTheBitsOfTheReference", two_level_fold_has_the_bits_of_the_reference},
    {"TwoLevelFoldSkipsRanksWithoutAContribution",
     two_level_fold_skips_ranks_without_a_contribution},
    {"FoldsMakeProgressWithoutWaiting", folds_make_progress_without_waiting},
    {"TwoLevelFoldsOverlap", two_level_folds_overlap},
    {"TwoLevelFoldSendsOnePartialPerGroupAndOwner",
     two_level_fold_sends_one_partial_per_group_and_owner},
    {"TwoLevelFoldsThatCannotBeRightAreRefused", two_level_folds_that_cannot_be_right_are_refused},
    {"FoldOfNegativeZerosStaysNegative", fold_of_negative_zeros_stays_negative},
    {"FoldsThatCannotBeRightAreRefused", folds_that_cannot_be_right_are_refused},
};

TEST(FoldReference, ShowsAnyOtherOrder) {
  const std::vector<int> forward = {0, 1, 2, 3}, swapped = {0, 1, 3, 2};
  const auto different = [&](const auto& fold_a, const auto& fold_b) {
    int count = 0;
    for (size_t i = 0; i < 1000; ++i) count += fold_a(i) != fold_b(i);
    return count;
  };
  for (DType wire : {DType::kBF16, DType::kFP32}) {
    const auto flat = [&](size_t i) { return reference_fold(forward, i, wire); };
    const auto other = [&](size_t i) { return reference_fold(swapped, i, wire); };
    const auto in_pairs = [&](size_t i) { return reference_fold(forward, i, wire, two_level(2)); };
    const auto in_one_group = [&](size_t i) {
      return reference_fold(forward, i, wire, two_level(4), element(9, i));
    };
    const auto seeded = [&](size_t i) {
      return reference_fold(forward, i, wire, kFlat, element(9, i));
    };
    EXPECT_GT(different(flat, other), 10) << "of 1000 elements";
    EXPECT_GT(different(flat, in_pairs), 10);
    EXPECT_GT(different(seeded, in_one_group), 10) << "seed + P0 is another order";
    EXPECT_EQ(different(seeded,
                        [&](size_t i) {
                          return reference_fold(forward, i, wire, two_level(1), element(9, i));
                        }),
              0)
        << "groups of one are FLAT";
  }
}

}  // namespace

std::span<const VerbCheck> fold_checks() { return kFoldChecks; }

}  // namespace flashshard::test
