// What stands behind an output stream: a person's terminal or a file, and what that terminal can
// show.
#pragma once

namespace flashshard::metrics {

/// Conventions followed: isatty(3), TERM=dumb, NO_COLOR (no-color.org), the locale's character set.
class Terminal {
 public:
  /// No terminal.
  Terminal() = default;
  /// Open MPI gives every rank a pseudo-terminal of no size even when mpirun writes to a file; then
  /// the terminal that counts is mpirun's own, which the first rank of this machine finds through
  /// its parent process.
  static Terminal behind(int descriptor);

  ~Terminal();
  Terminal(Terminal&& other) noexcept;
  Terminal& operator=(Terminal&&) = delete;
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  /// Lines can be drawn again: a terminal with a size that is not "dumb".
  bool can_redraw() const { return can_redraw_; }
  bool colour() const { return colour_; }
  bool unicode() const { return unicode_; }
  /// Columns now (people resize windows); 0 without a terminal.
  int width() const;

 private:
  int descriptor_ = -1;
  bool owned_ = false;
  bool can_redraw_ = false;
  bool colour_ = false;
  bool unicode_ = false;
};

}  // namespace flashshard::metrics
