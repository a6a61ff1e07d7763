// The binary golden files of the numerics (golden/make_*.py say what is in them).
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace flashshard {

/// The folder of the tests; the environment names another where the tests run without the sources.
inline std::string test_data_folder() {
  const char* folder = std::getenv("FLASHSHARD_TEST_DATA");
  return folder != nullptr ? folder : FLASHSHARD_TEST_DATA;
}

/// A golden file, read array by array, as a whole unless said otherwise.
class Golden {
 public:
  enum class Read { kWhole, kBeginning };
  explicit Golden(const std::string& name, Read read = Read::kWhole) : read_(read) {
    std::ifstream file(test_data_folder() + "/kernels/numerics/golden/" + name, std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
    EXPECT_FALSE(bytes_.empty()) << name;
  }
  ~Golden() {
    if (read_ == Read::kBeginning) return;
    EXPECT_EQ(at_, bytes_.size()) << "the file has more than was read";
  }

  template <class T>
  std::vector<T> next(size_t count) {
    std::vector<T> values(count);
    if (count == 0) return values;  // has no memory to copy to
    if (at_ + count * sizeof(T) > bytes_.size()) {
      ADD_FAILURE() << "the file is too short";
      return values;
    }
    std::memcpy(values.data(), bytes_.data() + at_, count * sizeof(T));
    at_ += count * sizeof(T);
    return values;
  }

 private:
  Read read_;
  std::vector<char> bytes_;
  size_t at_ = 0;
};

}  // namespace flashshard
