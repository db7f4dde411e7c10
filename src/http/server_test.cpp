#include "http/server.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <fstream>
#include <future>
#include <mutex>
#include <thread>

#include "http/testing.h"

namespace proa::http {
namespace {

using std::chrono::milliseconds;

// What the handlers of these tests know: /echo gives method, path, query and body; the rest by name.
void echo(Exchange& exchange) {
  const Request& request = exchange.request();
  exchange.respond({.content_type = "text/plain",
                    .body = request.method + " " + request.path + " " + request.query + " " + request.body});
}

std::unique_ptr<Server> start(ServerConfig config) {
  config.host = "127.0.0.1";
  config.port = 0;
  if (!config.handler) config.handler = echo;
  auto server = Server::start(std::move(config));
  EXPECT_TRUE(server.ok()) << server.error().message();
  return *std::move(server);
}

TEST(HttpServer, AnswersOneRequestAfterTheOther) {
  const auto server = start({});
  TestClient client(server->port());
  client.get("/a%20b?x=1&y");
  Response response = client.read();
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.body, "GET /a b x=1&y ");
  client.post("/p", "{}");
  EXPECT_EQ(client.read().body, "POST /p  {}");
  client.send("POST /c HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n");
  EXPECT_EQ(client.read().body, "POST /c  abcde");
  client.send("HEAD /h HTTP/1.1\r\nHost: t\r\n\r\n");
  EXPECT_EQ(client.read(true).status, 200);
  client.send("GET http://t:80/absolute?q HTTP/1.1\r\nHost: t\r\n\r\n");
  EXPECT_EQ(client.read().body, "GET /absolute q ");
  // two at once, and one in two pieces
  client.send("GET /1 HTTP/1.1\r\nHost: t\r\n\r\nGET /2 HTTP/1.1\r\nHost: t\r\n\r\nGET /3 HT");
  EXPECT_EQ(client.read().body, "GET /1  ");
  EXPECT_EQ(client.read().body, "GET /2  ");
  client.send("TP/1.1\r\nHost: t\r\n\r\n");
  EXPECT_EQ(client.read().body, "GET /3  ");
  // a client that asks whether it may send
  client.send("POST /e HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
  EXPECT_EQ(client.read().status, 100);
  client.send("hi");
  EXPECT_EQ(client.read().body, "POST /e  hi");
  // the last one
  client.send("GET /z HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
  EXPECT_EQ(client.read().body, "GET /z  ");
  EXPECT_TRUE(client.at_end());

  TestClient old(server->port());
  old.send("GET /old HTTP/1.0\r\n\r\n");
  EXPECT_EQ(old.read().body, "GET /old  ");
  EXPECT_TRUE(old.at_end());
}

TEST(HttpServer, EveryByteOfARequestMayComeAlone) {
  const auto server = start({});
  TestClient client(server->port());
  for (const char byte : std::string_view("POST /b HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n\r\nxyz")) {
    client.send({&byte, 1});
  }
  EXPECT_EQ(client.read().body, "POST /b  xyz");
}

TEST(HttpServer, RefusesAndCloses) {
  ServerConfig config;
  config.max_body_bytes = 1000;
  config.max_header_bytes = 4000;
  config.max_headers = 20;
  config.header_timeout = config.body_timeout = milliseconds(100);
  const auto server = start(std::move(config));
  std::string many = "GET / HTTP/1.1\r\nHost: t\r\n";
  for (int i = 0; i < 20; ++i) many += "X" + std::to_string(i) + ": 1\r\n";
  const std::string post = "POST / HTTP/1.1\r\nHost: t\r\n";
  const struct {
    const char* what;
    std::string bytes;
    int status;
  } rows[] = {
      {"no HTTP", "hello\r\n\r\n", 400},
      {"TLS", std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11), 400},
      {"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400},
      {"no host", "GET / HTTP/1.1\r\n\r\n", 400},
      {"a bad escape", "GET /%zz HTTP/1.1\r\nHost: t\r\n\r\n", 400},
      {"a cut escape", "GET /%4 HTTP/1.1\r\nHost: t\r\n\r\n", 400},
      {"no path", "GET * HTTP/1.1\r\nHost: t\r\n\r\n", 400},
      {"a byte 0 in a header", std::string("GET / HTTP/1.1\r\nHost: t\r\nX: \0\r\n\r\n", 34), 400},
      {"a space before the colon", "GET / HTTP/1.1\r\nHost : t\r\n\r\n", 400},
      {"length and chunks", post + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {"chunks and length", post + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400},
      {"two lengths", post + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400},
      {"a negative length", post + "Content-Length: -1\r\n\r\n", 400},
      {"a huge length", post + "Content-Length: 99999999999999999999\r\n\r\n", 400},
      {"a chunk that is no number", post + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400},
      {"an endless chunk size", post + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 400},
      {"a large body", post + "Content-Length: 1001\r\n\r\n" + std::string(1001, 'x'), 413},
      {"a body of 1 GB", post + "Content-Length: 1000000000\r\n\r\n" + std::string(100000, 'x'), 413},
      {"a large body in chunks", post + "Transfer-Encoding: chunked\r\n\r\n3e9\r\n" + std::string(1001, 'x') + "\r\n",
       413},
      {"large headers", "GET / HTTP/1.1\r\nHost: t\r\nX: " + std::string(5000, 'x') + "\r\n\r\n", 431},
      {"a long target", "GET /" + std::string(5000, 'x') + " HTTP/1.1\r\nHost: t\r\n\r\n", 431},
      {"many headers", many + "\r\n", 431},
      // forms by which a request was smuggled past other servers
      {"an unknown coding", post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400},
      {"chunked, but not last", post + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400},
      {"chunked twice", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {"a coding behind a tab", post + "Transfer-Encoding:\tchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400},
      {"a folded header", post + "Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400},
      {"a coding and a byte", post + "Transfer-Encoding: chunked\x0b\r\n\r\n0\r\n\r\n", 400},
      {"a length with a sign", post + "Content-Length: +3\r\n\r\nabc", 400},
      {"a list of lengths", post + "Content-Length: 3, 3\r\n\r\nabc", 400},
      {"a length in hex", post + "Content-Length: 0x3\r\n\r\nabc", 400},
      {"a space in a chunk size", post + "Transfer-Encoding: chunked\r\n\r\n1 1\r\nx\r\n0\r\n\r\n", 400},
      {"a signed chunk size", post + "Transfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n", 400},
      {"a chunk longer than it says", post + "Transfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n", 400},
      {"lines without carriage returns", "GET / HTTP/1.1\nHost: t\n\n", 400},
      {"a bare line feed in a header", "GET / HTTP/1.1\r\nHost: t\r\nX: a\nY: b\r\n\r\n", 400},
      {"two hosts", "GET / HTTP/1.1\r\nHost: t\r\nHost: u\r\n\r\n", 400},
      {"a space in the target", "GET /a b HTTP/1.1\r\nHost: t\r\n\r\n", 400},
      {"chunk extensions without end", post + "Transfer-Encoding: chunked\r\n\r\n1;" + std::string(100000, 'x'), 400},
      {"trailers without end", post + "Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + std::string(100000, 'x'), 400},
      {"chunks of an old client", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {"slow headers", "GET / HTTP/1.1\r\nHost:", 408},
      {"a slow body", post + "Content-Length: 10\r\n\r\nabc", 408},
  };
  for (const auto& row : rows) {
    TestClient client(server->port());
    client.send(row.bytes);
    EXPECT_EQ(client.read().status, row.status) << row.what;
    EXPECT_TRUE(client.at_end()) << row.what;
  }
  TestClient client(server->port());
  client.get("/good");
  EXPECT_EQ(client.read().status, 200) << "after all that";
}

// A proxy that checks headers never saw what a client adds behind a chunked body.
TEST(HttpServer, TrailersAreNoHeaders) {
  ServerConfig config;
  config.handler = [](Exchange& exchange) {
    const Request& request = exchange.request();
    exchange.respond({.body = std::string(request.header("X-Kept")) + "|" +
                              std::string(request.header("Authorization")) + "|" + request.body});
  };
  const auto server = start(std::move(config));
  const std::string head = "POST / HTTP/1.1\r\nHost: t\r\nX-Kept: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
  const std::string rest = "3;a=b\r\nabc\r\n0\r\nAuthorization: Bearer k\r\nX-Kept: 2\r\n\r\n";
  TestClient client(server->port());
  client.send(head + rest);
  EXPECT_EQ(client.read().body, "1||abc");
  client.send(head);  // in two parts, on the same connection
  std::this_thread::sleep_for(milliseconds(20));
  client.send(rest);
  EXPECT_EQ(client.read().body, "1||abc");
}

// Who has said all it will looks like one who leaves: the answer or the end of the connection, at once.
TEST(HttpServer, HalfClosedConnections) {
  const auto server = start({});
  TestClient half(server->port());
  half.post("/p", "{}");
  half.shutdown_send();
  const int status = half.read().status;
  EXPECT_TRUE(status == 200 || status == 0) << status;
  for (const char* part :
       {"", "G", "GET / HTTP/1.1\r\nHost:", "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\nab"}) {
    TestClient client(server->port());
    client.send(part);
    client.shutdown_send();
    EXPECT_TRUE(client.at_end()) << part;
  }
}

TEST(HttpServer, SilentConnectionsAreClosed) {
  ServerConfig config;
  config.idle_timeout = milliseconds(50);
  const auto server = start(std::move(config));
  TestClient silent(server->port());
  EXPECT_TRUE(silent.at_end());
  TestClient idle(server->port());
  idle.get("/");
  EXPECT_EQ(idle.read().status, 200);
  EXPECT_TRUE(idle.at_end());
}

TEST(HttpServer, StreamsAndKeepsTheConnection) {
  ServerConfig config;
  config.handler = [](Exchange& exchange) {
    exchange.begin_stream({.content_type = "text/event-stream", .headers = {{"x-test", "a\r\nb"}}});
    for (const char* part : {"one", "", "two"}) EXPECT_TRUE(exchange.write(part));
    exchange.end_stream();
  };
  const auto server = start(std::move(config));
  TestClient client(server->port());
  for (int i = 0; i < 2; ++i) {
    client.get("/");
    const Response response = client.read();
    EXPECT_EQ(response.body, "onetwo");
    EXPECT_EQ(response.content_type, "text/event-stream");
    Request view;
    view.headers = response.headers;
    EXPECT_EQ(view.header("X-Test"), "a  b") << "no header can be smuggled into another";
  }
  TestClient old(server->port());
  old.send("GET / HTTP/1.0\r\n\r\n");
  EXPECT_EQ(old.read().body, "onetwo");
}

TEST(HttpServer, AHandlerThatFailsIsSeen) {
  ServerConfig config;
  config.handler = [](Exchange& exchange) {
    if (exchange.request().path == "/throws") throw std::runtime_error("no");
    if (exchange.request().path == "/nothing") return;
    exchange.begin_stream({});
    exchange.write("half");
  };
  const auto server = start(std::move(config));
  TestClient client(server->port());
  for (const char* path : {"/throws", "/nothing"}) {
    client.get(path);
    EXPECT_EQ(client.read().status, 500) << path;
  }
  client.get("/half");
  EXPECT_EQ(client.read().status, 0) << "the last chunk is missing";
}

// What has been written once all that lies between server and client is full.
size_t when_full(const std::atomic<size_t>& written) {
  size_t before = 0;
  do {
    before = written;
    std::this_thread::sleep_for(milliseconds(50));
  } while (written != before);
  return before;
}

TEST(HttpServer, AStreamWaitsForItsClientAndEndsWithIt) {
  ServerConfig config;
  config.max_unsent_bytes = 1000;
  std::atomic<size_t> written{0};
  std::promise<void> gave_up;
  config.handler = [&](Exchange& exchange) {
    exchange.begin_stream({});
    const std::string part(1000, 'x');
    while (exchange.write(part)) written += part.size();
    EXPECT_TRUE(exchange.client_gone());
    gave_up.set_value();
  };
  const auto server = start(std::move(config));
  {
    TestClient client(server->port());
    client.get("/");
    client.fill();
    EXPECT_LT(when_full(written), size_t{64} << 20);
  }
  EXPECT_EQ(gave_up.get_future().wait_for(std::chrono::seconds(10)), std::future_status::ready);
}

TEST(HttpServer, AClientThatReadsNothingIsGivenUp) {
  ServerConfig config;
  config.max_unsent_bytes = 1000;
  config.write_timeout = milliseconds(100);
  std::promise<void> gave_up;
  config.handler = [&](Exchange& exchange) {
    exchange.begin_stream({});
    while (exchange.write(std::string(1000, 'x'))) {
    }
    gave_up.set_value();
  };
  const auto server = start(std::move(config));
  TestClient client(server->port());
  client.get("/");
  EXPECT_EQ(gave_up.get_future().wait_for(std::chrono::seconds(10)), std::future_status::ready);
}

// An answer whose handler has returned: wakers bring its parts, from any thread and as often as they like.
TEST(HttpServer, AnswersThatNoThreadWaitsFor) {
  ServerConfig config;
  config.max_handlers = 1;
  std::mutex mutex;
  std::vector<std::function<void()>> wakers;
  std::atomic<int> part{0};
  config.handler = [&](Exchange& exchange) {
    if (exchange.request().path == "/at once") return exchange.detach([&exchange] { return echo(exchange), true; });
    if (exchange.request().path == "/throws") {
      return exchange.detach([]() -> bool { throw std::runtime_error("no"); });
    }
    exchange.begin_stream({});
    exchange.detach([&exchange, &part, sent = 0]() mutable {
      for (; sent < part; ++sent) exchange.write(std::to_string(sent) + ";");
      if (sent == 3) exchange.end_stream();
      return sent == 3;
    });
    std::lock_guard lock(mutex);
    wakers.push_back(exchange.waker());
  };
  const auto server = start(std::move(config));
  std::vector<std::unique_ptr<TestClient>> clients;
  for (int i = 0; i < 50; ++i) {
    clients.push_back(std::make_unique<TestClient>(server->port()));
    clients.back()->get("/stream");
  }
  TestClient other(server->port());
  other.get("/at%20once");
  EXPECT_EQ(other.read().body, "GET /at once  ") << "one thread for handlers, and fifty answers under way";
  other.get("/throws");
  EXPECT_EQ(other.read().status, 500);
  while (server->load().requests < 50) std::this_thread::sleep_for(milliseconds(1));
  const auto wake_all = [&] {
    std::lock_guard lock(mutex);
    for (const auto& wake : wakers) wake();
  };
  std::thread also([&] {
    for (int i = 0; i < 100; ++i) wake_all();
  });
  for (int i = 0; i < 3; ++i) {
    ++part;
    wake_all();
  }
  for (const auto& client : clients) EXPECT_EQ(client->read().body, "0;1;2;");
  also.join();
  EXPECT_EQ(server->load().requests, 0u);
  for (const auto& client : clients) client->get("/stream");
  for (const auto& client : clients) EXPECT_EQ(client->read().body, "0;1;2;") << "all of it is there at once";
  const auto late = wakers;
  EXPECT_TRUE(server->drain(std::chrono::seconds(10)));
  for (const auto& wake : late) wake();  // exchanges that are no more
}

TEST(HttpServer, ADetachedStreamWaitsForItsClientAndEndsWithIt) {
  ServerConfig config;
  config.max_unsent_bytes = 1000;
  std::atomic<size_t> written{0};
  std::promise<void> gave_up;
  config.handler = [&](Exchange& exchange) {
    exchange.begin_stream({});
    exchange.detach([&exchange, &written, &gave_up] {
      while (exchange.has_room()) {
        if (exchange.client_gone()) return gave_up.set_value(), true;
        exchange.write(std::string(1000, 'x'));
        written += 1000;
      }
      return false;
    });
  };
  const auto server = start(std::move(config));
  {
    TestClient client(server->port());
    client.get("/");
    client.fill();
    const size_t before = when_full(written);
    EXPECT_LT(before, size_t{64} << 20);
    client.fill();
    while (written == before && client.fill()) {
    }
    EXPECT_GT(written, before) << "room is told of";
  }
  EXPECT_EQ(gave_up.get_future().wait_for(std::chrono::seconds(10)), std::future_status::ready);
}

TEST(HttpServer, CutsADetachedAnswer) {
  ServerConfig config;
  std::atomic<int> calls{0};
  config.handler = [&](Exchange& exchange) {
    exchange.begin_stream({});
    exchange.write("x");
    exchange.detach([&exchange, &calls] { return ++calls, exchange.client_gone(); });
  };
  const auto server = start(std::move(config));
  TestClient client(server->port());
  client.get("/");
  EXPECT_TRUE(client.fill());
  EXPECT_FALSE(server->drain(milliseconds(20)));
  EXPECT_GE(calls, 1);
  EXPECT_EQ(client.read().status, 0);
}

TEST(HttpServer, AHandlerLearnsThatItsClientLeft) {
  ServerConfig config;
  std::promise<void> noticed;
  config.handler = [&](Exchange& exchange) {
    while (!exchange.client_gone()) std::this_thread::sleep_for(milliseconds(1));
    noticed.set_value();
  };
  const auto server = start(std::move(config));
  TestClient(server->port()).get("/");
  EXPECT_EQ(noticed.get_future().wait_for(std::chrono::seconds(10)), std::future_status::ready);
}

// A handler that waits until the test lets it go.
struct Gate {
  std::promise<void> opened;
  std::shared_future<void> open = opened.get_future().share();
  std::atomic<int> inside{0};

  void pass(Exchange& exchange) {
    ++inside;
    open.wait();
    echo(exchange);
  }
  void wait_for(int count) const {
    while (inside < count) std::this_thread::sleep_for(milliseconds(1));
  }
};

TEST(HttpServer, RefusesWhatItHasNoRoomFor) {
  Gate gate;
  ServerConfig config;
  config.max_connections = 4;
  config.max_handlers = 1;
  config.max_waiting = 1;
  config.is_quick = [](const Request& request) { return request.path == "/health"; };
  config.handler = [&](Exchange& exchange) {
    if (exchange.request().path == "/health") return echo(exchange);
    gate.pass(exchange);
  };
  config.error_response = [](int status, std::string_view message) {
    return Response{.body = std::to_string(status) + " " + std::string(message), .headers = {{"retry-after", "9"}}};
  };
  const auto server = start(std::move(config));
  TestClient working(server->port()), waiting(server->port()), third(server->port()), health(server->port());
  working.get("/1");
  gate.wait_for(1);
  waiting.get("/2");
  health.get("/health");
  EXPECT_EQ(health.read().status, 200) << "quick requests have their own threads";
  third.get("/3");
  const Response overloaded = third.read();
  EXPECT_EQ(overloaded.body, "503 The server is overloaded, please try again later");
  EXPECT_EQ(std::count_if(overloaded.headers.begin(), overloaded.headers.end(),
                          [](const Header& header) { return header.name == "retry-after"; }),
            1);
  EXPECT_TRUE(third.at_end());
  EXPECT_EQ(server->load().requests, 1u);

  TestClient fourth(server->port());
  EXPECT_TRUE(fourth.connected());
  TestClient fifth(server->port());
  fifth.get("/");
  EXPECT_EQ(fifth.read().body, "503 Too many connections");
  gate.opened.set_value();
  EXPECT_EQ(working.read().status, 200);
  EXPECT_EQ(waiting.read().status, 200);
}

TEST(HttpServer, BodiesShareABound) {
  ServerConfig config;
  config.max_body_bytes = 1000;
  config.max_body_bytes_in_all = 1500;
  const auto server = start(std::move(config));
  TestClient first(server->port()), second(server->port());
  first.send("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(first.read().status, 100);
  second.send("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 600\r\n\r\n");
  EXPECT_EQ(second.read().status, 503);
  first.send(std::string(1000, 'x'));
  EXPECT_EQ(first.read().status, 200);
  TestClient third(server->port());
  third.post("/", std::string(1000, 'x'));
  EXPECT_EQ(third.read().status, 200);
}

// A body counts as long as it is there: a client that sends and leaves cannot fill the memory with what waits.
TEST(HttpServer, BodiesThatWaitShareTheBound) {
  Gate gate;
  ServerConfig config;
  config.max_body_bytes_in_all = 2500;
  config.max_handlers = 1;
  config.handler = [&](Exchange& exchange) {
    gate.pass(exchange);
    EXPECT_EQ(exchange.request().body.size(), 1000u);
  };
  const auto server = start(std::move(config));
  TestClient working(server->port()), last(server->port());
  working.post("/", std::string(1000, 'x'));
  gate.wait_for(1);
  {
    TestClient leaves(server->port());
    leaves.post("/", std::string(1000, 'x'));
    leaves.shutdown_send();
    while (leaves.fill()) {
    }
  }
  last.post("/", std::string(1000, 'x'));
  EXPECT_EQ(last.read().status, 503);
  gate.opened.set_value();
  EXPECT_EQ(working.read().status, 200);
  gate.wait_for(2);  // the first body is gone
  working.post("/", std::string(1000, 'x'));
  EXPECT_EQ(working.read().status, 200);
}

// Who has read an answer finds the room that its question took, also while the handler has yet to return.
TEST(HttpServer, AnAnswerMakesRoom) {
  std::promise<void> end;
  const std::shared_future<void> ended = end.get_future().share();
  std::atomic<int> requests{0};
  ServerConfig config;
  config.max_body_bytes_in_all = 1500;
  config.handler = [&](Exchange& exchange) {
    echo(exchange);
    if (++requests == 1) ended.wait();
  };
  const auto server = start(std::move(config));
  TestClient first(server->port()), second(server->port());
  first.post("/", std::string(1000, 'x'));
  EXPECT_EQ(first.read().status, 200);
  second.post("/", std::string(1000, 'x'));
  EXPECT_EQ(second.read().status, 200);
  end.set_value();
}

TEST(HttpServer, DrainsWhatIsInWork) {
  Gate gate;
  ServerConfig config;
  config.handler = [&](Exchange& exchange) { gate.pass(exchange); };
  const auto server = start(std::move(config));
  TestClient working(server->port()), idle(server->port());
  working.get("/w");
  gate.wait_for(1);
  auto drained = std::async(std::launch::async, [&] { return server->drain(std::chrono::seconds(10)); });
  EXPECT_TRUE(idle.at_end());
  EXPECT_FALSE(TestClient(server->port()).connected());
  gate.opened.set_value();
  EXPECT_EQ(working.read().body, "GET /w  ");
  EXPECT_TRUE(drained.get());
}

TEST(HttpServer, CutsWhatDoesNotEnd) {
  ServerConfig config;
  config.handler = [](Exchange& exchange) {
    exchange.begin_stream({});
    while (exchange.write("x")) std::this_thread::sleep_for(milliseconds(1));
  };
  const auto server = start(std::move(config));
  TestClient client(server->port());
  client.get("/");
  EXPECT_TRUE(client.fill());
  EXPECT_FALSE(server->drain(milliseconds(20)));
  EXPECT_EQ(client.read().status, 0);
}

TEST(HttpServer, ReportsEveryAnswer) {
  std::mutex mutex;
  std::vector<std::string> lines;
  ServerConfig config;
  config.on_access = [&](const AccessRecord& record) {
    std::lock_guard lock(mutex);
    lines.push_back((record.event == AccessRecord::Event::started ? "started " : "finished ") + record.method + " " +
                    record.target + " " + std::to_string(record.status));
  };
  config.handler = [](Exchange& exchange) {
    if (exchange.request().path != "/stream") return echo(exchange);
    exchange.begin_stream({});
    exchange.end_stream();
  };
  const auto server = start(std::move(config));
  TestClient client(server->port());
  client.get("/a?b");
  client.read();
  client.get("/stream");
  client.read();
  client.send("nonsense\r\n\r\n");
  client.read();
  std::lock_guard lock(mutex);
  EXPECT_EQ(lines, (std::vector<std::string>{"finished GET /a?b 200", "started GET /stream 200",
                                             "finished GET /stream 200", "finished   400"}));
}

TEST(HttpServer, ListensOnAUnixSocket) {
  const std::string path = testing::TempDir() + "proa_http_test_" + std::to_string(::getpid()) + ".sock";
  for (int i = 0; i < 2; ++i) {
    ServerConfig config;
    config.uds = path;
    const auto server = start(std::move(config));
    EXPECT_EQ(server->address(), "unix:" + path);
    TestClient client(path);
    client.get("/u");
    EXPECT_EQ(client.read().body, "GET /u  ");
    ServerConfig again;
    again.uds = path;
    EXPECT_FALSE(Server::start(std::move(again)).ok());
  }
  EXPECT_NE(::access(path.c_str(), F_OK), 0);
}

TEST(HttpServer, TakesNoNameOfAFile) {
  const std::string path = testing::TempDir() + "proa_http_test_" + std::to_string(::getpid()) + ".txt";
  std::ofstream(path) << "precious";
  ServerConfig config;
  config.uds = path;
  const auto server = Server::start(std::move(config));
  ASSERT_FALSE(server.ok());
  EXPECT_NE(server.error().message().find("--uds " + path), std::string::npos);
  std::string kept;
  std::ifstream(path) >> kept;
  EXPECT_EQ(kept, "precious");
  std::remove(path.c_str());
}

TEST(HttpServer, SaysWhyItCannotStart) {
  const auto server = start({});
  const struct {
    ServerConfig config;
    const char* says;
  } rows[] = {
      {{.host = "127.0.0.1", .port = server->port()}, "another server runs there"},
      {{.host = "127.0.0.1", .port = 70000}, "--port"},
      {{.host = "256.1.1.1", .port = 0}, "256.1.1.1"},
      {{.uds = "/nowhere/at/all.sock"}, "--uds /nowhere/at/all.sock"},
      {{.uds = std::string(200, 'x')}, "too long"},
      {{.host = "127.0.0.1", .port = 0, .ssl_certfile = "/nowhere/cert.pem"}, "--ssl-certfile /nowhere/cert.pem"},
  };
  for (const auto& row : rows) {
    const auto started = Server::start(row.config);
    ASSERT_FALSE(started.ok()) << row.says;
    EXPECT_NE(started.error().message().find(row.says), std::string::npos) << started.error().message();
  }
}

}  // namespace
}  // namespace proa::http
