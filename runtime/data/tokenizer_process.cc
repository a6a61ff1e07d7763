#include "runtime/data/tokenizer_process.h"

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <system_error>
#include <thread>

#include "kernels/error.h"

namespace flashshard::data {
namespace {

constexpr uint32_t kGreeting = 0x314b5446;  // "FTK1"
constexpr uint32_t kLongestMessage = 4096;  // bytes of an error's text
// Beyond any vocabulary's longest token, and beyond the tokens that a byte becomes: normalisation
// makes 18 characters of one of three bytes, and each may fall back to its bytes.
constexpr uint64_t kLongestToken = 1 << 16;
constexpr uint64_t kMostTokensOfAByte = 32;
constexpr size_t kReceivedAtOnce = size_t{1} << 20;

[[noreturn]] void throw_system_error(const char* action) {
  throw Error(ExitCode::kInternal, fmt::format("cannot {} for a tokenizer", action),
              std::generic_category().message(errno));
}

void append_number(std::string& bytes, uint32_t number) {
  bytes.append(reinterpret_cast<const char*>(&number), sizeof(number));
}

uint32_t checked_size(size_t size) {
  if (size > std::numeric_limits<uint32_t>::max()) {
    throw Error(ExitCode::kBadData, "one text of more than 4 GiB", "", "cut it into documents");
  }
  return static_cast<uint32_t>(size);
}

uint64_t hash_of_file(const std::filesystem::path& path) {
  const MappedFile file(path);
  return XXH3_64bits(file.bytes().data(), file.bytes().size());
}

// The programs that come with this one: beside it in a build folder, in libexec/ when installed.
std::filesystem::path program_folder() {
  if (const char* folder = std::getenv("FLASHSHARD_LIBEXEC"); folder != nullptr) return folder;
  std::error_code ignored;
  auto here = std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();
  for (const auto& folder : {here / "libexec", here.parent_path() / "libexec"}) {
    if (std::filesystem::is_directory(folder / "flashshard", ignored)) return folder / "flashshard";
  }
  return here;
}

class SpawnActions {
 public:
  SpawnActions() { ::posix_spawn_file_actions_init(&actions_); }
  ~SpawnActions() { ::posix_spawn_file_actions_destroy(&actions_); }
  SpawnActions(const SpawnActions&) = delete;
  SpawnActions& operator=(const SpawnActions&) = delete;
  // The descriptor's close-on-exec flag does not pass to its copy.
  void copy(int from, int to) { ::posix_spawn_file_actions_adddup2(&actions_, from, to); }
  const posix_spawn_file_actions_t* get() const { return &actions_; }

 private:
  posix_spawn_file_actions_t actions_;
};

}  // namespace

TokenizerProcess::TokenizerProcess(Options options) : options_(std::move(options)) {
  identity_.kind = options_.kind;
  identity_.hash = hash_of_file(options_.files.front());
  start();
  try {
    greet();
  } catch (...) {
    ::kill(process_, SIGKILL);
    ::waitpid(process_, nullptr, 0);
    throw;
  }
}

TokenizerProcess::~TokenizerProcess() {
  ::shutdown(connection_.get(), SHUT_RDWR);
  constexpr int kPatience = 200;  // x 10 ms
  for (int i = 0; i < kPatience; ++i) {
    const pid_t ended = ::waitpid(process_, nullptr, WNOHANG);
    if (ended == process_ || (ended < 0 && errno != EINTR)) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(i == 0 ? 1 : 10));
  }
  ::kill(process_, SIGKILL);
  ::waitpid(process_, nullptr, 0);
}

void TokenizerProcess::start() {
  // A socket rather than two pipes: writing to a program that is gone is an error and no signal.
  std::array<int, 2> ends = {-1, -1};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) {
    throw_system_error("make a connection");
  }
  connection_ = FileDescriptor(ends[0]);
  const FileDescriptor theirs(ends[1]);
  // A program that does not read must not hold us up any longer than one that does not answer.
  const auto microseconds =
      std::chrono::duration_cast<std::chrono::microseconds>(options_.deadline).count();
  const timeval limit = {.tv_sec = microseconds / 1'000'000, .tv_usec = microseconds % 1'000'000};
  if (::setsockopt(ends[0], SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) != 0) {
    throw_system_error("set a deadline");
  }
  errors_ = FileDescriptor(::memfd_create("tokenizer-stderr", MFD_CLOEXEC));
  if (errors_.get() < 0) throw_system_error("make a file");

  SpawnActions actions;
  actions.copy(theirs.get(), STDIN_FILENO);
  actions.copy(theirs.get(), STDOUT_FILENO);
  actions.copy(errors_.get(), STDERR_FILENO);
  std::vector<char*> arguments;
  for (std::string& word : options_.command) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  const int error = ::posix_spawnp(&process_, arguments.front(), actions.get(), nullptr,
                                   arguments.data(), environ);
  if (error != 0) {
    throw Error(ExitCode::kUsage,
                fmt::format("cannot start {}: {}", options_.command.front(),
                            std::generic_category().message(error)),
                "", options_.program_hint);
  }
}

void TokenizerProcess::greet() {
  answer_due_ = std::chrono::steady_clock::now() +
                std::chrono::duration_cast<std::chrono::steady_clock::duration>(options_.deadline);
  expect_success();
  if (receive_number() != kGreeting) fail("its greeting is not that of a tokenizer");
  const uint32_t vocab_size = receive_number();
  const uint32_t end = receive_number();
  if (vocab_size == 0 || vocab_size >= uint32_t{std::numeric_limits<int32_t>::max()} ||
      end >= vocab_size) {
    fail(fmt::format("a vocabulary of {} with end of document {}", vocab_size, end));
  }
  identity_.vocab_size = vocab_size;
  identity_.end_of_document = static_cast<int32_t>(end);
}

void TokenizerProcess::send(std::string_view bytes) {
  answer_due_ = std::chrono::steady_clock::now() +
                std::chrono::duration_cast<std::chrono::steady_clock::duration>(options_.deadline);
  while (!bytes.empty()) {
    const ssize_t sent = ::send(connection_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno == EAGAIN) fail_late();
    if (sent < 0) fail("it ended before its work was done");
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
}

void TokenizerProcess::receive(void* bytes, size_t size) {
  auto* out = static_cast<char*>(bytes);
  while (size > 0) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        answer_due_ - std::chrono::steady_clock::now());
    pollfd readable = {.fd = connection_.get(), .events = POLLIN, .revents = 0};
    const int ready = ::poll(&readable, 1, static_cast<int>(std::max<int64_t>(0, left.count())));
    if (ready < 0 && errno == EINTR) continue;
    if (ready == 0) fail_late();
    const ssize_t count = ::recv(connection_.get(), out, size, 0);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) fail("it ended before its work was done");
    out += count;
    size -= static_cast<size_t>(count);
  }
}

uint32_t TokenizerProcess::receive_number() {
  uint32_t number = 0;
  receive(&number, sizeof(number));
  return number;
}

/// Memory is asked for as the bytes come: a size alone costs nothing.
std::string TokenizerProcess::receive_text(size_t size) {
  std::string text;
  while (text.size() < size) {
    const size_t received = text.size();
    text.resize(received + std::min(kReceivedAtOnce, size - received));
    receive(text.data() + received, text.size() - received);
  }
  return text;
}

std::vector<int32_t> TokenizerProcess::receive_tokens(size_t text_bytes) {
  const uint64_t count = receive_number();
  if (count > kMostTokensOfAByte * (text_bytes + 1)) {
    fail(fmt::format("it gave {} tokens for {} bytes of text", count, text_bytes));
  }
  const std::string bytes = receive_text(count * sizeof(int32_t));
  std::vector<int32_t> tokens(count);
  if (count > 0) std::memcpy(tokens.data(), bytes.data(), bytes.size());
  for (const int32_t token : tokens) {
    if (token < 0 || token >= identity_.vocab_size) {
      fail(fmt::format("it gave the id {}, its vocabulary has {}", token, identity_.vocab_size));
    }
  }
  return tokens;
}

void TokenizerProcess::expect_success() {
  char status = 0;
  receive(&status, 1);
  if (status == '+') return;
  if (status != 'd' && status != 'u') fail("its answer is outside the protocol");
  const uint32_t size = receive_number();
  if (size > kLongestMessage) fail("its answer is outside the protocol");
  throw Error(status == 'd' ? ExitCode::kBadData : ExitCode::kUsage, receive_text(size),
              options_.files.front().string());
}

std::string TokenizerProcess::last_words() const {
  std::string words(kLongestMessage, '\0');
  const off_t end = ::lseek(errors_.get(), 0, SEEK_END);
  const off_t from = std::max<off_t>(0, end - static_cast<off_t>(words.size()));
  const ssize_t count = ::pread(errors_.get(), words.data(), words.size(), from);
  words.resize(static_cast<size_t>(std::max<ssize_t>(0, count)));
  while (words.ends_with('\n')) words.pop_back();
  return words.substr(words.rfind('\n') + 1);
}

void TokenizerProcess::fail(const std::string& what) {
  const std::string words = last_words();
  throw Error(ExitCode::kInternal,
              fmt::format("the {} tokenizer's process failed: {}", options_.kind,
                          words.empty() ? what : fmt::format("{} ({})", what, words)),
              options_.files.front().string());
}

void TokenizerProcess::fail_late() {
  fail(fmt::format("it has not answered for {} seconds", options_.deadline.count()));
}

std::vector<std::vector<int32_t>> TokenizerProcess::encode(
    std::span<const std::string_view> texts) {
  std::string request = "E";
  append_number(request, checked_size(texts.size()));
  for (const std::string_view text : texts) {
    append_number(request, checked_size(text.size()));
    request += text;
  }
  send(request);
  expect_success();
  std::vector<std::vector<int32_t>> all;
  all.reserve(texts.size());
  for (const std::string_view text : texts) all.push_back(receive_tokens(text.size()));
  return all;
}

std::string TokenizerProcess::decode(std::span<const int32_t> tokens) {
  std::string request = "D";
  append_number(request, checked_size(tokens.size()));
  request.append(reinterpret_cast<const char*>(tokens.data()), tokens.size_bytes());
  send(request);
  expect_success();
  const uint64_t size = receive_number();
  if (size > kLongestToken * tokens.size()) {
    fail(fmt::format("it gave {} bytes of text for {} tokens", size, tokens.size()));
  }
  return receive_text(size);
}

std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(const std::filesystem::path& model) {
  TokenizerProcess::Options options;
  options.command = {(program_folder() / "flashshard-sentencepiece").string(), model.string()};
  options.kind = "sentencepiece";
  options.files = {model};
  options.program_hint =
      "it is built and installed with flashshard; set FLASHSHARD_LIBEXEC to its folder";
  return std::make_unique<TokenizerProcess>(std::move(options));
}

std::unique_ptr<Tokenizer> make_hugging_face_tokenizer(const std::filesystem::path& folder) {
  const std::filesystem::path script = program_folder() / "hugging_face_tokenizer.py";
  std::error_code ignored;
  if (!std::filesystem::exists(script, ignored)) {
    throw Error(ExitCode::kUsage, "cannot find the tokenizer program", script.string(),
                "it is built and installed with flashshard; FLASHSHARD_LIBEXEC names its folder");
  }
  TokenizerProcess::Options options;
  options.command = {"python3", script.string(), folder.string()};
  options.kind = "hf";
  options.files = {folder / kHuggingFaceFile};
  const auto settings = folder / kHuggingFaceSettingsFile;
  if (std::filesystem::exists(settings)) options.files.push_back(settings);
  options.program_hint = "install python3 and the package: pip install 'tokenizers>=0.15.1'";
  return std::make_unique<TokenizerProcess>(std::move(options));
}

}  // namespace flashshard::data
