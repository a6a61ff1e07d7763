// The binary golden files of the numerics (golden/make_*.py say what is in them).
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace flashshard {

/// A golden file, read array by array.
class Golden {
 public:
  explicit Golden(const std::string& name) {
    std::ifstream file(std::string(FLASHSHARD_TEST_DATA) + "/kernels/numerics/golden/" + name,
                       std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
    EXPECT_FALSE(bytes_.empty()) << name;
  }
  ~Golden() { EXPECT_EQ(at_, bytes_.size()) << "the file has more than was read"; }

  template <class T>
  std::vector<T> next(size_t count) {
    std::vector<T> values(count);
    if (at_ + count * sizeof(T) > bytes_.size()) {
      ADD_FAILURE() << "the file is too short";
      return values;
    }
    std::memcpy(values.data(), bytes_.data() + at_, count * sizeof(T));
    at_ += count * sizeof(T);
    return values;
  }

 private:
  std::vector<char> bytes_;
  size_t at_ = 0;
};

}  // namespace flashshard
