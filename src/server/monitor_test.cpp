#include "server/monitor.h"

#include <gtest/gtest.h>

#include "server/testing.h"

namespace proa {
namespace {

using std::chrono::milliseconds;

struct Lines {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::string> all;

  void add(std::string line) {
    std::lock_guard lock(mutex);
    all.push_back(std::move(line));
    changed.notify_all();
  }
  std::string wait_for(const std::string& part) {
    std::unique_lock lock(mutex);
    std::string found;
    changed.wait_for(lock, std::chrono::seconds(20), [&] {
      for (const std::string& line : all) {
        if (line.find(part) != std::string::npos) found = line;
      }
      return !found.empty();
    });
    return found;
  }
};

TEST(Monitor, SaysWhatGoesOn) {
  ScriptedServer server;
  Lines lines;
  const Monitor monitor(*server.engine, server.service->metrics(),
                        {.interval = milliseconds(20), .info = [&](std::string line) { lines.add(std::move(line)); }});
  server.say("abc");
  server.post("/v1/completions", R"({"prompt":"xy","max_tokens":3})");
  const std::string line = lines.wait_for("Avg generation throughput: ");
  for (const char* part : {"Engine 000: Avg prompt throughput: ", " tokens/s, Running: 0 reqs, Waiting: 0 reqs, ",
                           "GPU KV cache usage: 0.0%, Prefix cache hit rate: 0.0%"}) {
    EXPECT_NE(line.find(part), std::string::npos) << line;
  }
}

TEST(Monitor, ReportsAStepThatHangs) {
  Gate gate;
  ScriptedServer server;
  server.model->on_step = [&] { gate.pass(); };
  server.say("abc");
  Lines lines;
  const Monitor monitor(*server.engine, server.service->metrics(),
                        {.stuck_after = milliseconds(20), .log_stats = false, .warning = [&](std::string line) {
                           lines.add(std::move(line));
                         }});
  http::TestClient client(server.port());
  client.post("/v1/completions", R"({"prompt":"xy","max_tokens":3})");
  EXPECT_NE(lines.wait_for("a step has not ended for "), "");
  const std::string metrics = server.get("/metrics").body;
  EXPECT_NE(metrics.find("proa:stuck_steps_total{engine=\"0\",model_name=\"tiny\"} 1.0"), std::string::npos) << metrics;
  EXPECT_EQ(metrics.find("proa:step_age_seconds{engine=\"0\",model_name=\"tiny\"} 0.0\n"), std::string::npos);
  gate.open();
  EXPECT_EQ(client.read().status, 200);
}

// A device that fails in one step: its requests are told, the next one is served.
class FailingBackend final : public HostBackend {
 public:
  Result<void> synchronize() override {
    if (fail_next_.exchange(false)) return Error{"compute", "cuda:0", "", "an illegal address", ""};
    return HostBackend::synchronize();
  }
  std::atomic<bool> fail_next_{false};
};

TEST(Monitor, AFailedStepFailsItsRequestsOnly) {
  const auto backend = std::make_shared<FailingBackend>();
  ScriptedServer server({}, {}, backend);
  server.say("abc");
  Lines lines;
  const Monitor monitor(*server.engine, server.service->metrics(),
                        {.stuck_after = milliseconds(40), .log_stats = false, .warning = [&](std::string line) {
                           lines.add(std::move(line));
                         }});
  backend->fail_next_ = true;
  const http::Response failed = server.post("/v1/completions", R"({"prompt":"xy","max_tokens":3})");
  EXPECT_EQ(failed.status, 500);
  EXPECT_NE(failed.body.find("InternalServerError"), std::string::npos) << failed.body;
  EXPECT_EQ(server.post("/v1/completions", R"({"prompt":"xy","max_tokens":3})").status, 200);
  EXPECT_EQ(server.get("/health").status, 200);
  EXPECT_EQ(lines.wait_for("steps failed"), "1 steps failed, and their requests");

  // A stream that has begun has its status: it ends with the error as an event.
  Gate gate;
  server.model->on_step = [&] { gate.pass(); };
  http::TestClient client(server.port());
  client.post("/v1/completions", R"({"prompt":"xy","max_tokens":3,"stream":true})");
  gate.permit(1);
  client.fill();
  backend->fail_next_ = true;
  gate.open();
  const http::Response cut = client.read();
  EXPECT_EQ(cut.status, 200);
  EXPECT_NE(cut.body.find("\"text\":\"a\""), std::string::npos) << cut.body;
  const size_t error = cut.body.find("data: {\"error\":{\"message\":");
  EXPECT_NE(error, std::string::npos) << cut.body;
  EXPECT_TRUE(cut.body.ends_with("\"code\":500}}\n\ndata: [DONE]\n\n")) << cut.body;
  server.model->on_step = nullptr;
  EXPECT_EQ(server.post("/v1/completions", R"({"prompt":"xy","max_tokens":3})").status, 200);
}

}  // namespace
}  // namespace proa
