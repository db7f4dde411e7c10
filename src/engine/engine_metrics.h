// What the engine counts about its steps, for whoever shows it. Written by the engine's thread, read by
// any.
#pragma once

#include "telemetry/metrics.h"

namespace proa {

struct EngineMetrics {
  // One sample per step.
  Histogram iteration_tokens{{1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384}};
  // Seconds in which the backend worked, and what the engine's thread spent before and after it: scheduling, stops,
  // text, hand-over.
  Histogram step_device{{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5}};
  Histogram step_host{{.00001, .00002, .00005, .0001, .0002, .0005, .001, .002, .005, .01, .02, .05, .1}};
  Counter failed_steps;
};

}  // namespace proa
