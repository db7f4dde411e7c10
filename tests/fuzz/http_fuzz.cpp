// libFuzzer target: any bytes as what a client sends over a connection, in pieces, before it closes its side. What
// comes back begins as an answer does, and the server goes on. The first byte is the size of the pieces.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "http/server.h"

namespace {

constexpr size_t kMaxBytes = 4096;

void expect(bool holds) {
  if (!holds) std::abort();
}

proa::http::Server& server() {
  static const std::unique_ptr<proa::http::Server> made = [] {
    proa::http::ServerConfig config{.host = "127.0.0.1", .port = 0};
    config.max_body_bytes = 512;
    config.max_header_bytes = 1024;
    config.max_headers = 16;
    config.handler = [](proa::http::Exchange& exchange) {
      const proa::http::Request& request = exchange.request();
      expect(request.body.size() <= 512 && request.headers.size() <= 16 && request.path.starts_with('/'));
      if (request.body.size() % 2 == 0) return exchange.respond({.body = request.body, .headers = request.headers});
      exchange.begin_stream({});
      exchange.write(request.body);
      exchange.end_stream();
    };
    auto started = proa::http::Server::start(std::move(config));
    expect(started.ok());
    return *std::move(started);
  }();
  return *made;
}

// libFuzzer looks at its watch by SIGALRM, which would cut short whatever call this thread is in.
void ignore_the_watch() {
  sigset_t alarm;
  sigemptyset(&alarm);
  sigaddset(&alarm, SIGALRM);
  pthread_sigmask(SIG_BLOCK, &alarm, nullptr);
}

int connect_to(int port) {
  const int client = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  expect(client >= 0 && ::connect(client, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  // Closing resets the connection, so that no port has to rest.
  const linger reset{.l_onoff = 1, .l_linger = 0};
  ::setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  return client;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0 || size > kMaxBytes) return 0;
  static const bool once = (server(), ignore_the_watch(), true);  // other threads take it, with time
  (void)once;
  const size_t piece = 1 + data[0] * size_t{8};
  std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const int client = connect_to(server().port());
  while (!text.empty()) {
    const ssize_t sent = ::send(client, text.data(), std::min(piece, text.size()), MSG_NOSIGNAL);
    if (sent <= 0) break;  // refused, and closed
    text.remove_prefix(static_cast<size_t>(sent));
  }
  ::shutdown(client, SHUT_WR);
  std::string answer;
  for (;;) {
    pollfd wait{client, POLLIN, 0};
    expect(::poll(&wait, 1, 20'000) > 0);  // answered or closed, at once
    char buffer[4096];
    const ssize_t received = ::recv(client, buffer, sizeof buffer, 0);
    if (received <= 0) break;
    answer.append(buffer, static_cast<size_t>(received));
  }
  ::close(client);
  expect(answer.empty() || answer.starts_with("HTTP/1.1 ") || answer.starts_with("HTTP/1.0 "));
  return 0;
}
