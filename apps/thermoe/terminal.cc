// SPDX-License-Identifier: Apache-2.0
#include "terminal.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "interrupt.h"
#include "output.h"

namespace thermoe {
namespace {

// Short work shows no bar: it would only flicker.
constexpr auto kBarDelay = std::chrono::milliseconds(400);
constexpr auto kBarInterval = std::chrono::milliseconds(100);
constexpr int kLeastBar = 8;  // columns below which a bar says nothing
constexpr int kMostBar = 40;

std::string Styled(std::string_view text, const char* code, int fd) {
  if (!UseColour(fd)) return std::string(text);
  return fmt::format("\x1b[{}m{}\x1b[0m", code, text);
}

// Columns of UTF-8 text, taking one per character: labels are file names and plain words.
int Columns(std::string_view text) {
  return static_cast<int>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

// The first `columns` characters.
std::string_view Head(std::string_view text, int columns) {
  size_t end = 0;
  while (end < text.size() && columns > 0) {
    ++end;
    while (end < text.size() && (text[end] & 0xc0) == 0x80) ++end;
    --columns;
  }
  return text.substr(0, end);
}

std::string BarLine(const std::string& label, double done_frac, double elapsed_s, int width) {
  std::string right = fmt::format("{:3.0f} %", 100 * done_frac);
  if (done_frac > 0.01) right += "  " + DurationText(elapsed_s * (1 - done_frac) / done_frac) + " left";
  const int room = width - static_cast<int>(right.size()) - 1;
  if (room < 1) return std::string(Head(right, width));
  const std::string left(Head(label, room));
  const int bar = std::min(kMostBar, room - Columns(left) - 3);
  if (bar < kLeastBar) return left + " " + right;
  const int filled = static_cast<int>(done_frac * bar);
  return fmt::format("{} [{}{}] {}", left, std::string(filled, '#'), std::string(bar - filled, '.'), right);
}

}  // namespace

bool IsTerminal(int fd) { return isatty(fd) == 1; }

bool UseColour(int fd) {
  const char* no_color = std::getenv("NO_COLOR");
  if (no_color != nullptr && *no_color != '\0') return false;
  const char* term = std::getenv("TERM");
  if (term != nullptr && std::string_view(term) == "dumb") return false;
  return IsTerminal(fd);
}

int TerminalWidth() {
  constexpr int kLeast = 20;
  winsize size{};
  for (const int fd : {STDERR_FILENO, STDOUT_FILENO}) {
    if (ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return std::max<int>(kLeast, size.ws_col);
  }
  const char* columns = std::getenv("COLUMNS");
  const int given = columns == nullptr ? 0 : std::atoi(columns);
  return given > 0 ? std::max(kLeast, given) : 80;
}

std::string Dim(std::string_view text, int fd) { return Styled(text, "2", fd); }
std::string Bold(std::string_view text, int fd) { return Styled(text, "1", fd); }

std::string EscapeControls(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const bool c0 = (byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7f;
    // U+0080 to U+009F, which some terminals obey too, are C2 80 to C2 9F.
    const bool c1 = byte == 0xc2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xa0;
    if (c0) {
      out += fmt::format("\\x{:02x}", byte);
    } else if (c1) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(text[++i]));
    } else {
      out += text[i];
    }
  }
  return out;
}

std::string Printable(std::string_view text, int fd) {
  return IsTerminal(fd) ? EscapeControls(text) : std::string(text);
}

std::string Join(const std::vector<std::string>& parts, std::string_view separator) {
  std::string out;
  for (const std::string& part : parts) {
    if (!out.empty()) out += separator;
    out += part;
  }
  return out;
}

std::string WithCommas(int64_t number) {
  const std::string digits = std::to_string(number);
  std::string out;
  for (size_t i = 0; i < digits.size(); ++i) {
    const bool group = i > 0 && digits[i - 1] != '-' && (digits.size() - i) % 3 == 0;
    if (group) out += ',';
    out += digits[i];
  }
  return out;
}

std::string BytesText(double bytes) {
  constexpr const char* kUnits[] = {"bytes", "kB", "MB", "GB", "TB"};
  int unit = 0;
  while (bytes >= 999.5 && unit < 4) {
    bytes /= 1000;
    ++unit;
  }
  if (unit == 0) return fmt::format("{:.0f} bytes", bytes);
  return fmt::format("{:.{}f} {}", bytes, bytes < 99.95 ? 1 : 0, kUnits[unit]);
}

std::string DurationText(double seconds) {
  const auto total = static_cast<int64_t>(seconds + 0.5);
  if (total >= 3600) return fmt::format("{}:{:02}:{:02}", total / 3600, total / 60 % 60, total % 60);
  return fmt::format("{}:{:02}", total / 60, total % 60);
}

std::string Wrap(std::string_view text, int indent, int width) {
  const std::string margin(indent, ' ');
  std::string out;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.empty() || line.front() == ' ') {
      out += line.empty() ? "\n" : margin + std::string(line) + "\n";
      continue;
    }
    int column = 0;
    while (!line.empty()) {
      const size_t space = std::min(line.find(' '), line.size());
      const std::string_view word = line.substr(0, space);
      line.remove_prefix(std::min(space + 1, line.size()));
      const int length = Columns(word);
      if (column == 0) {
        out += margin;
      } else if (indent + column + 1 + length > width) {
        out += "\n" + margin;
        column = 0;
      } else {
        out += " ";
        ++column;
      }
      out += word;
      column += length;
    }
    out += "\n";
  }
  return out;
}

ProgressBar::ProgressBar(std::string label)
    : label_(EscapeControls(label)), enabled_(IsTerminal(STDERR_FILENO)), next_draw_(start_ + kBarDelay) {}

void ProgressBar::Update(double done_frac) {
  const Clock::time_point now = Clock::now();
  if (!enabled_ || now < next_draw_) return;
  next_draw_ = now + kBarInterval;
  const double elapsed_s = std::chrono::duration<double>(now - start_).count();
  // One column stays free: a full last column makes some terminals wrap.
  const std::string line = BarLine(label_, std::clamp(done_frac, 0.0, 1.0), elapsed_s, TerminalWidth() - 1);
  const int columns = Columns(line);
  // Padding instead of an erase sequence works on every terminal, dumb ones too.
  PrintNote(fmt::format("\r{}{}", line, std::string(std::max(0, drawn_columns_ - columns), ' ')));
  drawn_columns_ = columns;
}

void ProgressBar::Clear() {
  if (drawn_columns_ == 0) return;
  PrintNote(fmt::format("\r{}\r", std::string(drawn_columns_, ' ')));
  drawn_columns_ = 0;
}

std::function<bool(double)> BarProgress(ProgressBar* bar) {
  return [bar](double done_frac) {
    bar->Update(done_frac);
    return !Interrupted();
  };
}

}  // namespace thermoe
