// An HTTP/1.1 server: keep-alive, answers that stream, everything bounded.
//
//   PROA_ASSIGN(auto server, Server::start({.port = 8000, .handler = [](Exchange& exchange) {
//     exchange.respond({.content_type = "text/plain", .body = "hello"});
//   }}));
//   ...
//   server->drain(std::chrono::seconds(5));
//
// One thread does all input and output and never waits for anything else; handlers run on threads of their own and may
// block, or return and be called again when there is more to say. What a client does wrong is answered by the server
// itself: 400 what is no HTTP, 408 too slow, 413 a body and 431 headers too large, 503 no connection, memory or thread
// left. After such an answer the connection is closed. Source: RFC 9110, RFC 9112. A request with both Content-Length
// and Transfer-Encoding is refused.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "core/result.h"
#include "http/message.h"

namespace proa::http {

// One request and its answer, in the hands of a handler: either respond(), or begin_stream(), write()... and
// end_stream(). A handler that returns without an answer gives a 500; one that returns inside a stream cuts the
// connection, so that the client sees that something is missing.
class Exchange {
 public:
  virtual ~Exchange() = default;

  virtual const Request& request() const = 0;

  virtual void respond(Response response) = 0;

  virtual void begin_stream(Response head) = 0;  // head.body is not sent
  // Hands over a part of the body. Waits while more than ServerConfig::max_unsent_bytes are under way to the client.
  // False: the client has left.
  virtual bool write(std::string_view part) = 0;
  virtual void end_stream() = 0;

  // The client closed the connection, or reads too slowly; asking costs next to nothing.
  virtual bool client_gone() const = 0;

  // An answer that comes by and by without a thread that waits for it: the handler returns after detach(), and `resume`
  // is called, by one thread at a time, once then, after each call of a waker, when the client has left, and when there
  // is room again after has_room() said no. It must not block; true: the answer is complete, and it is not called
  // again. What `resume` holds is let go then. request().body is empty by then: it goes with the handler's return.
  virtual void detach(std::function<bool()> resume) = 0;
  // May be called from any thread, at any time, also when the exchange is over. Costs little.
  virtual std::function<void()> waker() = 0;
  // Whether write() would wait.
  virtual bool has_room() = 0;
};

struct AccessRecord {
  enum class Event { started, finished };  // the answer's first byte, its last byte
  Event event;
  bool streamed;       // others are reported once, as finished
  std::string peer;    // "127.0.0.1:51234"
  std::string method;  // empty: the request could not be read
  std::string target;
  int version;  // 10 or 11
  int status;
  double seconds;  // since the request was complete
};

struct ServerConfig {
  std::string host = "0.0.0.0";  // a name or an address; empty: all IPv4 interfaces
  int port = 8000;               // 0: any free one, see Server::port()
  std::string uds;               // path of a unix socket, in place of host and port

  // TLS, where a certificate is named.
  std::string ssl_certfile, ssl_keyfile, ssl_ca_certs;
  int ssl_cert_reqs = 0;  // of clients: 0 none, 1 wanted, 2 required

  size_t max_connections = 4096;
  size_t max_header_bytes = size_t{64} << 10;
  size_t max_headers = 256;
  size_t max_body_bytes = size_t{64} << 20;            // of one request
  size_t max_body_bytes_in_all = size_t{512} << 20;    // of requests being received, waiting, or in a handler
  size_t max_unsent_bytes = size_t{256} << 10;         // of one stream
  size_t max_handlers = 512;                           // requests in work at a time
  size_t max_waiting = 512;                            // requests that wait for a thread
  std::chrono::milliseconds header_timeout{20'000};    // from the first byte of a request to the end of its headers
  std::chrono::milliseconds body_timeout{30'000};      // without a byte of the body
  std::chrono::milliseconds request_timeout{600'000};  // for all of it
  std::chrono::milliseconds idle_timeout{75'000};      // between requests
  std::chrono::milliseconds write_timeout{30'000};     // without the client taking a byte

  std::function<void(Exchange&)> handler;
  // Requests that are answered at once whatever else goes on (health, metrics): they have threads of their own.
  std::function<bool(const Request&)> is_quick;
  // Body and type of the server's own answers; the rest of the response it fills in.
  std::function<Response(int status, std::string_view message)> error_response;
  std::function<void(const AccessRecord&)> on_access;  // from any thread; must not block
};

class Server {
 public:
  // Listens and starts. Errors: an address that cannot be bound, a certificate that cannot be used, by name.
  static Result<std::unique_ptr<Server>> start(ServerConfig config);
  ~Server();  // as drain() without time
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  int port() const;             // 0 on a unix socket
  std::string address() const;  // "http://0.0.0.0:8000", "unix:/run/proa.sock"

  struct Load {
    size_t connections = 0;
    size_t requests = 0;  // in work, quick ones left out
  };
  Load load() const;

  // Takes no more connections, lets requests in work finish for that long, then cuts what is left (handlers see
  // client_gone()) and waits for the handlers to return. True: nothing had to be cut.
  bool drain(std::chrono::milliseconds timeout);

  struct Impl;  // in server.cpp

 private:
  explicit Server(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace proa::http
