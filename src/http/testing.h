// A plain HTTP client over a socket, for tests: it sends bytes as they are and reads answers.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "http/message.h"

namespace proa::http {

class TestClient {
 public:
  explicit TestClient(int port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }
  explicit TestClient(const std::string& path) : fd_(::socket(AF_UNIX, SOCK_STREAM, 0)) {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
    connected_ = ::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }
  ~TestClient() { close(); }
  TestClient(const TestClient&) = delete;
  TestClient& operator=(const TestClient&) = delete;

  bool connected() const { return connected_; }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

  void send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return;  // the server has enough of it; what it answered can still be read
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
  }

  void shutdown_send() { ::shutdown(fd_, SHUT_WR); }

  void get(const std::string& target) { send("GET " + target + " HTTP/1.1\r\nHost: t\r\n\r\n"); }
  void post(const std::string& target, std::string_view body, const std::string& headers = "") {
    send("POST " + target + " HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n" + headers +
         "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + std::string(body));
  }

  // One answer with its body put together; status 0: the connection ended before it was complete. Of an answer without
  // a length, everything up to the end.
  Response read(bool head_request = false) {
    Response response{.status = 0, .content_type = ""};
    size_t end;
    while ((end = in_.find("\r\n\r\n")) == std::string::npos) {
      if (!fill()) return response;
    }
    const std::string head = in_.substr(0, end + 2);
    in_.erase(0, end + 4);
    const int status = std::atoi(head.c_str() + std::strlen("HTTP/1.1 "));
    for (size_t line = head.find("\r\n") + 2; line < head.size();) {
      const size_t stop = head.find("\r\n", line), colon = head.find(": ", line);
      response.headers.push_back({head.substr(line, colon - line), head.substr(colon + 2, stop - colon - 2)});
      line = stop + 2;
    }
    Request view;
    view.headers = response.headers;
    response.content_type = std::string(view.header("content-type"));
    if (head_request || status == 100) {
      response.status = status;
    } else if (view.header("transfer-encoding") == "chunked") {
      if (read_chunks(response.body)) response.status = status;
    } else if (const std::string_view length = view.header("content-length"); !length.empty()) {
      if (take(std::strtoul(std::string(length).c_str(), nullptr, 10), response.body)) response.status = status;
    } else {
      while (fill()) {
      }
      response.body = std::exchange(in_, {});
      response.status = status;
    }
    return response;
  }

  // Whether the server has closed the connection, and nothing is left of what it sent.
  bool at_end() { return in_.empty() && !fill(); }
  // Reads some bytes; false at the end of the connection, or after ten seconds without any.
  bool fill() {
    pollfd wait{fd_, POLLIN, 0};
    if (::poll(&wait, 1, 10'000) <= 0) return false;
    char buffer[65536];
    const ssize_t size = ::recv(fd_, buffer, sizeof buffer, 0);
    if (size <= 0) return false;
    in_.append(buffer, static_cast<size_t>(size));
    return true;
  }

 private:
  bool take(size_t size, std::string& out) {
    while (in_.size() < size) {
      if (!fill()) return false;
    }
    out += in_.substr(0, size);
    in_.erase(0, size);
    return true;
  }
  bool read_chunks(std::string& body) {
    for (;;) {
      size_t end;
      while ((end = in_.find("\r\n")) == std::string::npos) {
        if (!fill()) return false;
      }
      const size_t size = std::strtoul(in_.c_str(), nullptr, 16);
      in_.erase(0, end + 2);
      std::string line_end;
      if (!take(size, body) || !take(2, line_end)) return false;
      if (size == 0) return true;
    }
  }

  int fd_;
  bool connected_ = false;
  std::string in_;
};

}  // namespace proa::http
