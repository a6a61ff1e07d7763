// Runs a fuzz target without libFuzzer: every file of a corpus, then mutations of them from a seed,
// so that two runs try the same inputs. Ends with 0 when nothing was found; a finding ends the
// process where it stands, after the input was written to ./finding-<target>.
//
//   fuzz_NAME [--mutations N] [--seed S] CORPUS...       files or folders
#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <charconv>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "tests/fuzz/target.h"

namespace {

// Far above what any input of the corpus needs, far below what an unchecked length asks for.
constexpr rlim_t kMostMemory = rlim_t{2} << 30;
constexpr size_t kLongestInput = size_t{1} << 16;

/// splitmix64
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t x = state_ += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }
  size_t below(size_t limit) { return limit == 0 ? 0 : next() % limit; }

 private:
  uint64_t state_;
};

std::vector<std::string> read_corpus(const std::vector<std::string>& paths) {
  std::vector<std::string> files;
  for (const std::string& path : paths) {
    if (!std::filesystem::is_directory(path)) {
      files.push_back(path);
      continue;
    }
    for (const auto& entry : std::filesystem::directory_iterator(path)) {
      files.push_back(entry.path().string());
    }
  }
  std::ranges::sort(files);
  std::vector<std::string> corpus;
  for (const std::string& file : files) {
    std::ifstream stream(file, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
  }
  return corpus;
}

/// Values at which sizes and signs turn.
constexpr uint64_t kEdges[] = {0,
                               1,
                               0x7f,
                               0x80,
                               0xff,
                               0x7fff,
                               0x8000,
                               0xffff,
                               0x7fffffff,
                               0x80000000,
                               0xffffffff,
                               uint64_t{1} << 32,
                               ~uint64_t{0} >> 1,
                               ~uint64_t{0}};

void change_once(std::string& input, const std::vector<std::string>& corpus, Random& random) {
  const size_t at = random.below(input.size() + 1);
  switch (random.below(8)) {
    case 0:
      if (at < input.size()) input[at] = static_cast<char>(input[at] ^ (1 << random.below(8)));
      break;
    case 1:
      if (at < input.size()) input[at] = static_cast<char>(random.next());
      break;
    case 2:
      input.resize(at);
      break;
    case 3:
      input.erase(at, random.below(16));
      break;
    case 4:
      input.insert(at, input.substr(random.below(input.size() + 1), random.below(64)));
      break;
    case 5: {  // an edge value over whole bytes
      const uint64_t edge = kEdges[random.below(std::size(kEdges))];
      const size_t width = size_t{1} << random.below(4);
      for (size_t i = 0; i < width && at + i < input.size(); ++i) {
        input[at + i] = static_cast<char>(edge >> (8 * i));
      }
      break;
    }
    case 6: {  // an edge value as a decimal number, in place of the digits there
      const size_t digits = std::min(input.find_first_not_of("0123456789", at), input.size()) - at;
      input.replace(at, digits, fmt::format("{}", kEdges[random.below(std::size(kEdges))]));
      break;
    }
    default: {
      const std::string& other = corpus[random.below(corpus.size())];
      input = input.substr(0, at) + other.substr(random.below(other.size() + 1));
    }
  }
  if (input.size() > kLongestInput) input.resize(kLongestInput);
}

std::string* in_hand = nullptr;
std::string finding_path;

/// A finding must be repeatable: the input in hand is written before the process ends.
void save_input() {
  if (in_hand != nullptr) std::ofstream(finding_path, std::ios::binary) << *in_hand;
  std::fprintf(stderr, "the input was written to %s\n", finding_path.c_str());
}

void on_signal(int number) {
  save_input();
  std::signal(number, SIG_DFL);
  std::raise(number);
}

void run(std::string& input) {
  in_hand = &input;
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
  in_hand = nullptr;
}

uint64_t number_of(std::string_view text) {
  uint64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

void limit_memory() {
#ifndef __SANITIZE_ADDRESS__  // whose shadow memory alone is beyond any limit
  const rlimit limit = {kMostMemory, kMostMemory};
  setrlimit(RLIMIT_AS, &limit);
#endif
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t mutations = 0;
  uint64_t seed = 1;
  std::vector<std::string> paths;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--mutations" && i + 1 < argc) {
      mutations = number_of(argv[++i]);
    } else if (argument == "--seed" && i + 1 < argc) {
      seed = number_of(argv[++i]);
    } else {
      paths.emplace_back(argument);
    }
  }
  finding_path = "finding-" + std::filesystem::path(argv[0]).filename().string();
  const std::vector<std::string> corpus = read_corpus(paths);
  if (corpus.empty()) {
    std::fprintf(stderr, "no corpus\n");
    return 2;
  }
  limit_memory();
  for (const int number : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE}) std::signal(number, on_signal);
  for (std::string input : corpus) run(input);
  Random random(seed);
  for (uint64_t n = 0; n < mutations; ++n) {
    std::string input = corpus[random.below(corpus.size())];
    for (size_t change = 0; change <= random.below(6); ++change) {
      change_once(input, corpus, random);
    }
    run(input);
  }
  std::printf("%zu inputs and %llu mutations, nothing found\n", corpus.size(),
              static_cast<unsigned long long>(mutations));
  return 0;
}
