// Lines and the progress bar, on a terminal (a pseudo-terminal here) and off it.
#include "runtime/metrics/console.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <optional>

#include "tests/runtime/metrics/temporary_folder.h"

namespace flashshard::metrics {
namespace {

using flashshard::testing::in_child;
using ::testing::HasSubstr;
using ::testing::Not;

/// Sets environment variables and puts the old values back; an empty value unsets.
class Environment {
 public:
  explicit Environment(const std::map<std::string, std::string>& values) {
    for (const auto& [name, value] : values) {
      const char* old = std::getenv(name.c_str());
      old_[name] = old == nullptr ? std::nullopt : std::optional<std::string>(old);
      if (value.empty()) {
        unsetenv(name.c_str());
      } else {
        setenv(name.c_str(), value.c_str(), 1);
      }
    }
  }
  ~Environment() {
    for (const auto& [name, value] : old_) {
      if (value) {
        setenv(name.c_str(), value->c_str(), 1);
      } else {
        unsetenv(name.c_str());
      }
    }
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  std::map<std::string, std::optional<std::string>> old_;
};

std::map<std::string, std::string> plain_terminal() {
  return {{"TERM", "xterm"}, {"NO_COLOR", "1"}, {"LC_ALL", "C"}, {"OMPI_COMM_WORLD_SIZE", ""}};
}

/// A screen of `columns`, of which everything written can be read back.
class PseudoTerminal {
 public:
  explicit PseudoTerminal(unsigned short columns) {
    termios raw = {};
    cfmakeraw(&raw);
    winsize size = {};
    size.ws_row = 24;
    size.ws_col = columns;
    if (openpty(&master_, &slave_, nullptr, &raw, &size) != 0) {
      ADD_FAILURE() << "no pseudo-terminal";
      return;
    }
    fcntl(master_, F_SETFL, O_NONBLOCK);
    stream_ = fdopen(slave_, "w");
  }
  ~PseudoTerminal() {
    if (stream_ != nullptr) std::fclose(stream_);
    close(master_);
  }
  PseudoTerminal(const PseudoTerminal&) = delete;
  PseudoTerminal& operator=(const PseudoTerminal&) = delete;

  void resize(unsigned short columns) {
    winsize size = {};
    size.ws_row = 24;
    size.ws_col = columns;
    ioctl(slave_, TIOCSWINSZ, &size);
  }
  std::string drawn() {
    std::string text;
    char buffer[4096];
    for (ssize_t n = 0; (n = read(master_, buffer, sizeof(buffer))) > 0;) {
      text.append(buffer, static_cast<size_t>(n));
    }
    return text;
  }
  std::FILE* stream() const { return stream_; }
  int descriptor() const { return slave_; }

 private:
  int master_ = -1;
  int slave_ = -1;
  std::FILE* stream_ = nullptr;
};

const std::string kErase = "\r\033[K";
const Progress kHalfWay = {50, 100, 0, 30.0};

TEST(Progress, KnowsTheTimeLeftOnceAStepIsDone) {
  EXPECT_DOUBLE_EQ(seconds_left({50, 100, 0, 30.0}), 30.0);
  EXPECT_DOUBLE_EQ(seconds_left({50, 100, 40, 30.0}), 150.0);  // only the steps taken here count
  EXPECT_LT(seconds_left({40, 100, 40, 3.0}), 0.0);
  EXPECT_DOUBLE_EQ(seconds_left({100, 100, 0, 30.0}), 0.0);
}

TEST(Progress, DrawsABarThatFitsTheWidth) {
  EXPECT_EQ(render_progress(kHalfWay, {60}),
            "step 50/100   50%  [=============--------------]  0:30 left");
  EXPECT_EQ(render_progress(kHalfWay, {60, false, true}),
            "step 50/100   50%  ━━━━━━━━━━━━━━───────────────  0:30 left");
  EXPECT_EQ(render_progress({0, 100, 0, 0.0}, {60}),
            "step 0/100    0%  [-------------------------------]  - left");
  EXPECT_EQ(render_progress({5, 5, 0, 1.0}, {40}), "step 5/5  100%  [==========]  0:00 left");
}

TEST(Progress, ColoursOnlyOnRequest) {
  EXPECT_THAT(render_progress(kHalfWay, {60, true}), HasSubstr("\033[32m==="));
  EXPECT_THAT(render_progress(kHalfWay, {60, false}), Not(HasSubstr("\033")));
}

TEST(Progress, DropsTheBarAndThenTextOnNarrowTerminals) {
  EXPECT_EQ(render_progress(kHalfWay, {40}), "step 50/100   50%  0:30 left");
  EXPECT_EQ(render_progress(kHalfWay, {20}), "step 50/100   50%  ");
  EXPECT_EQ(render_progress(kHalfWay, {9}), "");
}

TEST(Progress, NeverPassesTheWidth) {
  for (int width = 10; width < 200; ++width) {
    EXPECT_LT(render_progress(kHalfWay, {width}).size(), static_cast<size_t>(width));
  }
}

TEST(Progress, SurvivesARunOfNoSteps) {
  EXPECT_THAT(render_progress({0, 0, 0, 0.0}, {60}), HasSubstr("100%"));
}

TEST(Console, KeepsTheBarOnTheLastLineOfATerminal) {
  const Environment environment(plain_terminal());
  PseudoTerminal screen(60);
  const std::string bar = render_progress(kHalfWay, {60});
  {
    Console console(screen.stream(), screen.stream());
    console.print("first");
    EXPECT_EQ(screen.drawn(), "first\n");
    console.show_progress(kHalfWay);
    EXPECT_EQ(screen.drawn(), kErase + bar);
    console.show_progress(kHalfWay);
    EXPECT_EQ(screen.drawn(), "") << "a bar that did not change is not drawn again";
    console.print("second");
    EXPECT_EQ(screen.drawn(), kErase + "second\n" + bar);
    console.print_error("third");
    EXPECT_EQ(screen.drawn(), kErase + "third\n" + bar);
  }
  EXPECT_EQ(screen.drawn(), kErase) << "the bar goes away at the end";
}

TEST(Console, FollowsTheWindowsSize) {
  const Environment environment(plain_terminal());
  PseudoTerminal screen(60);
  Console console(screen.stream(), screen.stream());
  console.show_progress(kHalfWay);
  screen.drawn();
  screen.resize(50);
  console.show_progress(kHalfWay);
  EXPECT_EQ(screen.drawn(), kErase + render_progress(kHalfWay, {50}));
}

TEST(Console, DrawsNoBarIntoAFile) {
  const Environment environment(plain_terminal());
  const flashshard::testing::TemporaryFolder folder;
  std::FILE* file = std::fopen((folder / "out").c_str(), "w");
  ASSERT_NE(file, nullptr);
  {
    Console console(file, file);
    console.print("a table\n");
    console.show_progress(kHalfWay);
    console.print("line");
    console.print_error("warning");
    console.erase_progress();
  }
  std::fclose(file);
  EXPECT_EQ(flashshard::testing::contents_of(folder / "out"), "a table\nline\nwarning\n");
}

struct TerminalCase {
  const char* name;
  std::map<std::string, std::string> environment;
  unsigned short columns;
  bool can_redraw, colour, unicode;
};

class TerminalWith : public ::testing::TestWithParam<TerminalCase> {};

TEST_P(TerminalWith, IsTakenForWhatItIs) {
  std::map<std::string, std::string> values = {{"TERM", "xterm"}, {"NO_COLOR", ""},
                                               {"LC_ALL", ""},    {"LC_CTYPE", ""},
                                               {"LANG", ""},      {"OMPI_COMM_WORLD_SIZE", ""}};
  for (const auto& [name, value] : GetParam().environment) values[name] = value;
  const Environment environment(values);
  PseudoTerminal screen(GetParam().columns);
  const Terminal terminal = Terminal::behind(screen.descriptor());
  EXPECT_EQ(terminal.can_redraw(), GetParam().can_redraw);
  EXPECT_EQ(terminal.colour(), GetParam().colour);
  EXPECT_EQ(terminal.unicode(), GetParam().unicode);
  EXPECT_EQ(terminal.width(), GetParam().can_redraw ? GetParam().columns : 0);
}

INSTANTIATE_TEST_SUITE_P(
    Terminals, TerminalWith,
    ::testing::Values(
        TerminalCase{"Ordinary", {}, 80, true, true, false},
        TerminalCase{"Utf8", {{"LANG", "C.UTF-8"}}, 80, true, true, true},
        TerminalCase{"Utf8Spelled", {{"LC_CTYPE", "en_US.utf8"}}, 80, true, true, true},
        TerminalCase{"LcAllWins", {{"LC_ALL", "C"}, {"LANG", "C.UTF-8"}}, 80, true, true, false},
        TerminalCase{"NoColor", {{"NO_COLOR", "1"}}, 80, true, false, false},
        TerminalCase{"Dumb", {{"TERM", "dumb"}}, 80, false, false, false},
        TerminalCase{"Unnamed", {{"TERM", ""}}, 80, false, false, false},
        TerminalCase{"WithoutSize", {}, 0, false, false, false}),
    [](const auto& instance) { return instance.param.name; });

/// Runs as a child of a process whose stdout is `launcher_out`, the way a rank runs under mpirun.
int width_seen_under_launcher(int launcher_out, int rank_out) {
  return in_child([&] {
    dup2(launcher_out, 1);
    return in_child([&] { return Terminal::behind(rank_out).width(); });
  });
}

TEST(Terminal, OfARankIsTheOneMpirunWritesTo) {
  auto values = plain_terminal();
  values["OMPI_COMM_WORLD_SIZE"] = "2";
  const Environment environment(values);
  PseudoTerminal of_the_person(77);
  PseudoTerminal of_the_rank(0);
  EXPECT_EQ(width_seen_under_launcher(of_the_person.descriptor(), of_the_rank.descriptor()), 77);

  const int file = open("/dev/null", O_WRONLY | O_CLOEXEC);
  EXPECT_EQ(width_seen_under_launcher(file, of_the_rank.descriptor()), 0);
  close(file);
}

TEST(Terminal, CanBeMoved) {
  const Environment environment(plain_terminal());
  PseudoTerminal screen(66);
  Terminal first = Terminal::behind(screen.descriptor());
  const Terminal second = std::move(first);
  EXPECT_EQ(second.width(), 66);
}

TEST(Terminal, DoesNotExistBehindAPipe) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const Terminal terminal = Terminal::behind(ends[1]);
  EXPECT_FALSE(terminal.can_redraw());
  EXPECT_EQ(terminal.width(), 0);
  close(ends[0]);
  close(ends[1]);
}

}  // namespace
}  // namespace flashshard::metrics
