// SPDX-License-Identifier: Apache-2.0
#include "live_screen.h"

#include <signal.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <string_view>

#include "interrupt.h"
#include "terminal.h"

namespace thermoe {
namespace {

// The second page, no cursor, no wrapping at the last column; and back.
constexpr std::string_view kEnter = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J", kLeave = "\x1b[?7h\x1b[?25h\x1b[0m\x1b[?1049l";

// Read by signal handlers.
volatile sig_atomic_t g_fd = -1;
volatile sig_atomic_t g_changed = 0;
bool g_has_modes = false;
termios g_before, g_during;

constexpr std::array kFatal = {SIGTERM, SIGHUP, SIGQUIT, SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL};
std::array<struct sigaction, kFatal.size()> g_fatal_before;
struct sigaction g_stop_before, g_size_before;

void Write(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t put = write(fd, text.data(), text.size());
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return;  // nobody is there to see it
    text.remove_prefix(static_cast<size_t>(put));
  }
}

// Only what signal handlers may call.
void Enter() {
  if (g_has_modes) tcsetattr(g_fd, TCSANOW, &g_during);
  Write(g_fd, kEnter);
}
void Leave() {
  if (g_fd < 0) return;
  Write(g_fd, kLeave);
  if (g_has_modes) tcsetattr(g_fd, TCSANOW, &g_before);
}

void OnFatal(int signal_number) {
  Leave();
  g_fd = -1;
  struct sigaction action {};
  action.sa_handler = SIG_DFL;
  sigaction(signal_number, &action, nullptr);
  raise(signal_number);
}

// Ctrl-Z: the terminal belongs to the shell until the program comes back.
void OnStop(int) {
  const int kept = errno;
  Leave();
  kill(getpid(), SIGSTOP);
  Enter();
  g_changed = 1;
  errno = kept;
}

void OnSize(int) { g_changed = 1; }

void Handle(int signal_number, void (*handler)(int), struct sigaction* before) {
  struct sigaction action {};
  action.sa_handler = handler;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  sigaction(signal_number, &action, before);
}

int Size(int fd, unsigned short winsize::* what, int otherwise) {
  winsize size{};
  return ioctl(fd, TIOCGWINSZ, &size) == 0 && size.*what > 0 ? size.*what : otherwise;
}

}  // namespace

bool CanDraw(int fd) {
  const char* term = std::getenv("TERM");
  return IsTerminal(fd) && term != nullptr && *term != '\0' && std::string_view(term) != "dumb";
}

LiveScreen::LiveScreen(int fd) : fd_(fd) {
  g_has_modes = tcgetattr(fd, &g_before) == 0;
  g_during = g_before;
  g_during.c_lflag &= ~static_cast<tcflag_t>(ECHO);  // what is typed would write over the picture
  g_fd = fd;
  g_changed = 1;
  for (size_t i = 0; i < kFatal.size(); ++i) Handle(kFatal[i], OnFatal, &g_fatal_before[i]);
  Handle(SIGTSTP, OnStop, &g_stop_before);
  Handle(SIGWINCH, OnSize, &g_size_before);
  BeforeSecondInterrupt(Leave);
  Enter();
}

LiveScreen::~LiveScreen() {
  Leave();
  g_fd = -1;
  BeforeSecondInterrupt(nullptr);
  for (size_t i = 0; i < kFatal.size(); ++i) sigaction(kFatal[i], &g_fatal_before[i], nullptr);
  sigaction(SIGTSTP, &g_stop_before, nullptr);
  sigaction(SIGWINCH, &g_size_before, nullptr);
}

int LiveScreen::width() const { return Size(fd_, &winsize::ws_col, 80); }
int LiveScreen::height() const { return Size(fd_, &winsize::ws_row, 24); }

bool LiveScreen::TakeChange() {
  const bool changed = g_changed != 0;
  g_changed = 0;
  return changed;
}

void LiveScreen::Draw(const std::vector<std::string>& lines) {
  std::string out = "\x1b[H";
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out += "\r\n";
    out += lines[i] + "\x1b[K";
  }
  Write(fd_, out + "\x1b[J");
}

}  // namespace thermoe
