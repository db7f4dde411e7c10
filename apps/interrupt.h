// Ctrl-C (and SIGTERM) as a flag, for commands that end their work by themselves.
#pragma once

#include <atomic>

namespace proa {

// While one lives, the first signal sets the flag, and a second one ends the program as it would without us. One at a
// time.
class InterruptFlag {
 public:
  enum class Signals { interrupt, interrupt_and_terminate };
  // `also` is set with the flag, by the signal handler itself.
  explicit InterruptFlag(Signals signals = Signals::interrupt_and_terminate, std::atomic<bool>* also = nullptr);
  ~InterruptFlag();
  InterruptFlag(const InterruptFlag&) = delete;
  InterruptFlag& operator=(const InterruptFlag&) = delete;

  static bool interrupted();
  static const std::atomic<bool>& flag();
  static void clear();  // the next signal is a first one again
};

}  // namespace proa
