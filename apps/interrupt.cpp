#include "apps/interrupt.h"

#include <signal.h>

#include <cstddef>
#include <iterator>

namespace proa {
namespace {

constexpr int kSignals[] = {SIGINT, SIGTERM};
std::atomic<bool> came = false;
std::atomic<std::atomic<bool>*> also_set = nullptr;
size_t watched = 0;  // the first so many of kSignals
struct sigaction before[std::size(kSignals)];

void on_signal(int) {
  came = true;
  if (std::atomic<bool>* also = also_set) *also = true;
  for (size_t i = 0; i < watched; ++i) ::signal(kSignals[i], SIG_DFL);
}

void watch(struct sigaction* old) {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);  // no SA_RESTART: a blocked read returns, so that Ctrl-C is felt at a prompt
  for (size_t i = 0; i < watched; ++i) ::sigaction(kSignals[i], &action, old ? &old[i] : nullptr);
}

}  // namespace

InterruptFlag::InterruptFlag(Signals signals, std::atomic<bool>* also) {
  came = false;
  also_set = also;
  watched = signals == Signals::interrupt ? 1 : std::size(kSignals);
  watch(before);
}

InterruptFlag::~InterruptFlag() {
  for (size_t i = 0; i < watched; ++i) ::sigaction(kSignals[i], &before[i], nullptr);
  watched = 0;
  also_set = nullptr;
}

bool InterruptFlag::interrupted() { return came; }
const std::atomic<bool>& InterruptFlag::flag() { return came; }

void InterruptFlag::clear() {
  came = false;
  watch(nullptr);
}

}  // namespace proa
