// Sizes come from TIOCGWINSZ (ioctl_tty(2)).
#include "runtime/metrics/terminal.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <utility>

namespace flashshard::metrics {
namespace {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

int columns_of(int descriptor) {
  winsize size = {};
  return ::ioctl(descriptor, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

/// The terminal mpirun itself writes to, opened; -1 when it has none.
int open_terminal_of_launcher() {
  if (environment("OMPI_COMM_WORLD_SIZE").empty()) return -1;
  std::error_code failure;
  const std::filesystem::path target =
      std::filesystem::read_symlink(fmt::format("/proc/{}/fd/1", ::getppid()), failure);
  // Only a terminal is opened: opening the pipe of a shell would keep its reader waiting.
  const std::string name = target.string();
  if (failure || (!name.starts_with("/dev/pts/") && !name.starts_with("/dev/tty"))) return -1;
  return ::open(name.c_str(), O_RDONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
}

bool locale_is_utf8() {
  std::string locale = environment("LC_ALL");
  if (locale.empty()) locale = environment("LC_CTYPE");
  if (locale.empty()) locale = environment("LANG");
  std::transform(locale.begin(), locale.end(), locale.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return locale.find("utf-8") != std::string::npos || locale.find("utf8") != std::string::npos;
}

}  // namespace

Terminal Terminal::behind(int descriptor) {
  Terminal terminal;
  const std::string kind = environment("TERM");
  if (::isatty(descriptor) != 1 || kind.empty() || kind == "dumb") return terminal;
  terminal.descriptor_ = descriptor;
  if (columns_of(descriptor) == 0) {
    terminal.descriptor_ = open_terminal_of_launcher();
    terminal.owned_ = terminal.descriptor_ >= 0;
  }
  terminal.can_redraw_ = terminal.width() > 0;
  terminal.colour_ = terminal.can_redraw_ && environment("NO_COLOR").empty();
  terminal.unicode_ = terminal.can_redraw_ && locale_is_utf8();
  return terminal;
}

Terminal::~Terminal() {
  if (owned_) ::close(descriptor_);
}

Terminal::Terminal(Terminal&& other) noexcept
    : descriptor_(other.descriptor_),
      owned_(std::exchange(other.owned_, false)),
      can_redraw_(other.can_redraw_),
      colour_(other.colour_),
      unicode_(other.unicode_) {}

int Terminal::width() const { return descriptor_ < 0 ? 0 : columns_of(descriptor_); }

}  // namespace flashshard::metrics
